"""Time pushforward.jacfwd against torch.func.jacfwd: ``python benchmarks/run.py [--quick] [--json]``.

One process, one thread, float32. The calls of the two alternate; medians are printed, their ratio, and the target.
Peak memory is that of one call (after a small one that warms up) in a fresh process for each side: the growth of
VmHWM in /proc/self/status.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jacfwd import CASES, Case
from timing import interleaved_medians, memory_raised_by, peak_memory

import pushforward

SIDES: dict[str, Callable[..., Any]] = {
    "pushforward": pushforward.jacfwd,
    "torch": torch.func.jacfwd,
}


def measure(case: Case, seconds: float, with_memory: bool) -> dict[str, Any]:
    """Check that both give the same Jacobian, then time them."""
    torch.manual_seed(0)
    func, x = case.make()
    ours, theirs = pushforward.jacfwd(func)(x), torch.func.jacfwd(func)(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    del ours, theirs
    mine, their = interleaved_medians(
        lambda: pushforward.jacfwd(func)(x), lambda: torch.func.jacfwd(func)(x), seconds
    )
    result = {
        "case": case.name,
        "label": case.label,
        "pushforward_us": mine * 1e6,
        "torch_us": their * 1e6,
        "ratio": mine / their,
        "target": case.target,
        "met": mine / their <= case.target,
    }
    if with_memory and case.with_memory:
        for side in SIDES:
            result[f"{side}_mib"] = peak_memory(Path(__file__), case.name, side)
    return result


def measure_memory(name: str, side: str) -> float:
    """Return how many MiB one call of one side needs at its peak, beyond what is there before it."""
    torch.manual_seed(0)
    (case,) = (c for c in CASES if c.name == name)
    func, x = case.make()
    SIDES[side](func)(x[:2])  # imports and caches
    return memory_raised_by(lambda: SIDES[side](func)(x))


def show(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    header = (
        f"{'case':32} {'ours':>11} {'torch.func':>11} {'ratio':>7} {'target':>7}      "
        f"{'peak: ours':>11} {'torch.func':>11}"
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, float32; medians")
    print(header)
    for r in results:
        memory = ""
        if "torch_mib" in r:
            memory = f"{r['pushforward_mib']:7.1f} MiB {r['torch_mib']:7.1f} MiB"
        print(
            f"{r['label']:32} {_time(r['pushforward_us'])} {_time(r['torch_us'])} "
            f"{r['ratio']:7.3f} {r['target']:7.2f} {'ok ' if r['met'] else 'MISS'} {memory:>24}".rstrip()
        )


def _time(us: float) -> str:
    return f"{us:8.1f} µs" if us < 1e4 else f"{us / 1e3:8.1f} ms"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="0.2 s a case, no memory, without the slow last case"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--case", action="append", help="only this case (may be repeated)")
    parser.add_argument("--measure-memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure_memory:
        print(measure_memory(*options.measure_memory))
        return
    results = []
    for case in CASES:
        chosen = case.name in options.case if options.case else not (options.quick and case.is_slow)
        if not chosen:
            continue
        print(f"measuring {case.label} ...", file=sys.stderr)
        results.append(measure(case, 0.2 if options.quick else 2.0, not options.quick))
    if options.json:
        print(json.dumps({"torch": torch.__version__, "threads": 1, "results": results}, indent=2))
    else:
        show(results)


if __name__ == "__main__":
    main()
