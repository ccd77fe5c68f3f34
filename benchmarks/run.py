"""Time pushforward against torch.func and its own modes: ``python benchmarks/run.py [--quick] [--json]``.

One process, one thread, float32. The calls of all sides alternate; medians are printed, their ratio, and the target.
Peak memory is that of one call (after a small one that warms up) in a fresh process for each side: the growth of
VmHWM in /proc/self/status. ``DEVICE=cuda`` in the environment measures there; a call ends when the device has ended.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import CASES, SIDES, Case
from timing import DEVICE, interleaved_medians, memory_raised_by, peak_memory


def measure(case: Case, seconds: float, with_memory: bool) -> dict[str, Any]:
    """Check that all sides give the same numbers, then time them."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        func, x = case.make()
    sides = (case.ours, *case.peers)
    ours = SIDES[case.ours](func)(x)
    for peer in case.peers:
        torch.testing.assert_close(ours, SIDES[peer](func)(x), rtol=1e-4, atol=1e-5)
    del ours
    times = interleaved_medians([_call(side, func, x) for side in sides], seconds)
    mine, theirs = times[0], min(times[1:])
    result = {
        "case": case.name,
        "label": case.label,
        "ours": case.ours,
        "peer": case.peers[times.index(theirs, 1) - 1],
        "ours_us": mine * 1e6,
        "peer_us": theirs * 1e6,
        "ratio": mine / theirs,
        "target": case.target,
        "met": mine / theirs <= case.target,
    }
    if with_memory and case.with_memory:
        for key, side in (("ours_mib", case.ours), ("peer_mib", case.peers[0])):
            result[key] = peak_memory(Path(__file__), case.name, side)
    return result


def _call(side: str, func: Callable[..., Any], x: torch.Tensor) -> Callable[[], Any]:
    transform = SIDES[side]
    return lambda: transform(func)(x)


def measure_memory(name: str, side: str) -> float:
    """Return how many MiB one call of one side needs at its peak, beyond what is there before it."""
    torch.manual_seed(0)
    (case,) = (c for c in CASES if c.name == name)
    with torch.device(DEVICE):
        func, x = case.make()
    SIDES[side](func)(x[:2])  # imports and caches
    return memory_raised_by(lambda: SIDES[side](func)(x))


def show(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    header = (
        f"{'ours':9} {'of':32} {'time':>11} {'fastest peer':>13} {'its time':>11} {'ratio':>7} {'target':>7}      "
        f"{'peak: ours':>11} {'peer':>11}"
    )
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread, float32, {DEVICE}; medians"
    )
    print(header)
    for r in results:
        memory = ""
        if "peer_mib" in r:
            memory = f"{r['ours_mib']:7.1f} MiB {r['peer_mib']:7.1f} MiB"
        print(
            f"{r['ours']:9} {r['label']:32} {_time(r['ours_us'])} {r['peer']:>13} {_time(r['peer_us'])} "
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
