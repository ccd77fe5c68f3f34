"""The command line: ``python -m fuzz --seconds 600 --seed 0``."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import faulthandler
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator

import torch

from fuzz.fresh import Fresh
from fuzz.generate import generate
from fuzz.run import Failure, run_program
from fuzz.shrink import shrunk

BLOCK = 25  # programs that share one store of plans
LIMIT = 20.0  # seconds of the processor for one program


@dataclasses.dataclass
class Report:
    """What was run."""

    programs: int = 0
    compared: int = 0
    skips: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    failures: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def lines(self, seconds: float) -> list[str]:
        text = [f"{self.programs} programs, {self.compared} results compared, {seconds:.0f} s"]
        text += [f"  skipped {count}: {reason}" for reason, count in self.skips.most_common()]
        text += [f"  FAILED {count}: {kind}" for kind, count in self.failures.most_common()]
        return text


class Late(BaseException):
    """A program took too long."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `Late` after so many seconds of the processor."""

    def ring(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run_seed(seed: int, report: Report, fresh: Fresh | None) -> Failure | None:
    """Run one program, and count."""
    try:
        with limited(LIMIT):
            program = generate(seed)
            failure, compared = run_program(
                program, report.skips, is_fresh=seed % BLOCK == 0, fresh=fresh
            )
    except Late:
        report.skips["took too long"] += 1
        print(f"seed {seed} took too long")
        return None
    report.programs += 1
    report.compared += compared
    if failure is not None:
        report.failures[failure.kind] += 1
    return failure


def explain(seed: int, failure: Failure, seconds: float, fresh: Fresh | None) -> None:
    """Print a failing program, made small."""
    program = generate(seed)
    print(f"\n===== seed {seed}: {failure.kind}", flush=True)
    again, _ = run_program(program, fresh=fresh)
    if again is None or again.kind != failure.kind:
        first = seed - seed % BLOCK
        print(f"alone it runs; after the seeds from {first} on it does not: {failure.details}")
        return
    small, failure = shrunk(program, again, seconds, fresh)
    print(small.script())
    print(f"# call {failure.call}: {failure.kind}\n{failure.details}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run random programs, and compare derivatives.")
    parser.add_argument("--seed", type=int, default=0, help="the first program")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--programs", type=int, default=sys.maxsize, help="how many at most")
    parser.add_argument(
        "--shrink", type=float, default=40.0, help="seconds to make a failure small"
    )
    parser.add_argument("--each", type=int, default=2, help="failures of one kind to print")
    parser.add_argument(
        "--fresh",
        type=int,
        default=10,
        help="every so many programs are compared with fresh processes",
    )
    parser.add_argument(
        "--show", action="store_true", help="print the program of the seed, and run it"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    faulthandler.enable()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # say what was run
    warnings.simplefilter("ignore")
    report, server = Report(), Fresh()
    start = time.monotonic()
    seed = options.seed
    if options.show:
        print(generate(seed).script())
        options.programs = 1
    try:
        while time.monotonic() - start < options.seconds and seed < options.seed + options.programs:
            try:
                fresh = None if seed % options.fresh else server
                failure = run_seed(seed, report, fresh)
            except Exception:
                report.failures["the machine itself"] += 1
                print(f"\n===== seed {seed}: the machine\n{traceback.format_exc()}")
                failure = None
            if failure is not None and report.failures[failure.kind] <= options.each:
                with contextlib.suppress(Late), limited(2 * options.shrink + LIMIT):
                    explain(seed, failure, options.shrink, fresh)
            seed += 1
    except KeyboardInterrupt:
        pass
    finally:
        server.close()
        print(f"\nseeds {options.seed} to {seed - 1}")
        print("\n".join(report.lines(time.monotonic() - start)), flush=True)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
