"""Run the coverage suite and print its table; with ``--write``, write docs/reference/coverage.md as well."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

import torch
from checking import Outcome, check_entry, figures, limits, unexplained
from documentation import PAGE, render
from entries import entries
from summary import lines


def main() -> None:
    """Check all entries, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entry", action="append", help="part of an entry's name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--notes", action="store_true", help="print which references were used")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} and stop")
    options = parser.parse_args()
    if options.write:
        PAGE.write_text(render(), encoding="utf-8")
        return
    chosen = [e for e in entries() if not options.entry or any(p in e for p in options.entry)]
    start = time.perf_counter()
    outcomes = []
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.jobs, initializer=_one_thread, initargs=(sys.path,)) as pool:
        for outcome in pool.imap_unordered(_check, chosen):
            outcomes.append(outcome)
            _print(outcome, with_notes=options.notes)
    slowest = sorted(outcomes, key=lambda o: -o.seconds)[:5]
    print("slowest: " + ", ".join(f"{o.entry} {o.seconds:.0f} s" for o in slowest))
    print("\n".join(lines([figures(o) for o in outcomes])))
    print(limits())
    print(f"{time.perf_counter() - start:.0f} s on {options.jobs} processes")


def _one_thread(path: list[str]) -> None:
    sys.path[:] = path
    torch.set_num_threads(1)


def _check(name: str) -> Outcome:
    return check_entry(name, entries()[name])


def _print(outcome: Outcome, *, with_notes: bool) -> None:
    for sample, derivative, message in unexplained(outcome.entry, outcome.failures)[:8]:
        print(f"FAILED {outcome.entry}: {sample}: {derivative}: {message}")
    if with_notes:
        for note, count in outcome.notes.items():
            print(f"note   {outcome.entry}: {count} x {note}")
    if outcome.black_boxes:
        print(f"black box {outcome.entry}: {', '.join(sorted(outcome.black_boxes))}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
