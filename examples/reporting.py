"""What the examples share: times, tables, where pictures go.

Times are those of this process's processor: what else runs on the machine does not count.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[1] / "out"


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what ``work`` returns and the seconds it took."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def best_of(num_times: int, work: Callable[[], Any]) -> float:
    """Return the least seconds of several calls, after two that do not count."""
    for _ in range(2):
        work()
    return min(timed(work)[1] for _ in range(num_times))


def in_units(seconds: float) -> str:
    """Return a time as text, in milliseconds or seconds."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    for first, *others in [header, rule, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))


def save(figure: Any, name: str) -> Path:
    """Save the picture under ``out/`` and return where."""
    OUT.mkdir(exist_ok=True)
    path = OUT / name
    figure.savefig(path, dpi=130)
    return path
