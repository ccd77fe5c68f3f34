"""Where the microseconds of ``jacfwd(func)(x)`` on 5 numbers go: ``python benchmarks/profile_overhead.py [--chain N]``.

Two views of the same call: the floor (what PyTorch's own steps in it cost alone), and cProfile's own time by
function (cProfile adds about 0.1 µs a Python call, so its shares are to be read, not its sum).
"""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
import timeit
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pushforward


class _Shell(torch.Tensor):
    """A wrapper subclass that does nothing: the least that a tracer costs."""

    @staticmethod
    def __new__(cls, x: Tensor) -> _Shell:
        shell: _Shell = torch.Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype)
        return shell

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> None:
        return None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> None:
        return None


def microseconds(function: Callable[[], Any], repeat: int = 9) -> float:
    """Return the best time of one call."""
    timer = timeit.Timer(function)
    count, _ = timer.autorange()
    count = max(1, count // 10)
    return min(timer.repeat(repeat, count)) / count * 1e6


def stages(func: Callable[[Tensor], Tensor], x: Tensor) -> list[tuple[str, float]]:
    """Return what a call costs, and what its indispensable parts cost alone."""
    jac = pushforward.jacfwd(func)
    theirs = torch.func.jacfwd(func)
    values = x.cos()
    shell = _Shell(x)  # the first makes caches

    return [
        ("torch.func.jacfwd(func)(x)", microseconds(lambda: theirs(x))),
        ("pushforward.jacfwd(func)(x)", microseconds(lambda: jac(x))),
        ("  making jacfwd(func) alone", microseconds(lambda: pushforward.jacfwd(func))),
        ("  func(x) alone", microseconds(lambda: func(x))),
        ("  one wrapper tensor", microseconds(lambda: _Shell(x))),
        ("  one __torch_function__ call", microseconds(lambda: torch.sin(shell))),
        ("  x.cos() (the residual)", microseconds(lambda: x.cos())),
        ("  one product of 5 numbers", microseconds(lambda: values * values)),
        ("  torch.diag_embed (assembly)", microseconds(lambda: torch.diag_embed(values))),
    ]


def profile(func: Callable[[Tensor], Tensor], x: Tensor, calls: int, lines: int) -> str:
    """Return cProfile's table, by own time, per call."""
    jac = pushforward.jacfwd(func)
    jac(x)
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(calls):
        jac(x)
    profiler.disable()
    stats: Any = pstats.Stats(profiler, stream=io.StringIO())
    rows = []
    for (file, line, name), (_, count, own, total, _) in stats.stats.items():
        place = file.split("pushforward/")[-1] if "pushforward/" in file else file.split("/")[-1]
        rows.append(
            (own / calls * 1e6, total / calls * 1e6, count / calls, f"{place}:{line} {name}")
        )
    rows.sort(reverse=True)
    table = [f"{'own µs':>8} {'total µs':>9} {'calls':>6}  function"]
    table += [
        f"{own:8.2f} {total:9.2f} {count:6.1f}  {name}" for own, total, count, name in rows[:lines]
    ]
    return "\n".join(table)


def main() -> None:
    """Print both views."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chain", type=int, default=1, help="how many sines")
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--lines", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(5)

    def chain(x: Tensor) -> Tensor:
        for _ in range(options.chain):
            x = torch.sin(x)
        return x

    func = torch.sin if options.chain == 1 else chain
    for label, time in stages(func, x):
        print(f"{time:9.2f} µs  {label}")
    print()
    print(profile(func, x, options.calls, options.lines))


if __name__ == "__main__":
    main()
