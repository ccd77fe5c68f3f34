"""SciPy's solvers with our derivatives and with finite differences: ``python benchmarks/scipy_solves.py``.

Both sides solve for the same function of PyTorch, from the same start, with SciPy's defaults; only where derivatives
come from differs. Times are of whole solves: CPU time of one thread, medians of interleaved solves, after those that
compile. A ratio below 1 says that ours is faster. "calls" counts how often the function was called: differences call it
once more for each unknown. "left" is the norm of the residuals, or the objective, at the end.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import integrate, optimize
from torch import Tensor

import pushforward.scipy as ours


@dataclass
class Case:
    """A problem, and how it is solved: by a solver of SciPy's or of ours, whose names are the same."""

    name: str
    unknowns: int
    func: Callable[..., Any]
    solve: Callable[[Any, Any], Any]  # of solvers, and a function of arrays or tensors
    module: Any  # SciPy's


# ---- Ordinary differential equations ----


def robertson(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y
    slow, fast = -0.04 * a + 1e4 * b * c, 3e7 * b * b
    return torch.stack([slow, -slow - fast, fast])


def hires(t: Tensor, y: Tensor) -> Tensor:
    """High irradiance responses of photomorphogenesis: Hairer and Wanner II (1996), section IV.10."""
    a, b, c, d, e, f, g, h = y
    bound = 280 * f * h
    return torch.stack(
        [
            -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
            1.71 * a - 8.75 * b,
            -10.03 * c + 0.43 * d + 0.035 * e,
            8.32 * b + 1.71 * c - 1.12 * d,
            -1.745 * e + 0.43 * f + 0.43 * g,
            -bound + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
            bound - 1.81 * g,
            -bound + 1.81 * g,
        ]
    )


def burgers(t: Tensor, u: Tensor) -> Tensor:
    before, after = u.roll(1), u.roll(-1)
    return 0.002 * len(u) ** 2 * (before - 2 * u + after) - u * (after - before) * len(u) / 2


def equations() -> Iterator[Case]:
    starts = {
        "Robertson": (robertson, [1.0, 0, 0], (0, 1e4)),
        "HIRES": (hires, [1.0, 0, 0, 0, 0, 0, 0, 0.0057], (0, 321.8122)),
        "Burgers": (burgers, 1.3 + np.sin(2 * np.pi * np.arange(100) / 100), (0, 0.5)),
    }
    for name, (func, start, span) in starts.items():
        for method in ("BDF", "Radau"):

            def solve(solver: Any, f: Any, start=start, span=span, method=method) -> Any:
                return solver.solve_ivp(f, span, start, method=method)

            yield Case(f"{name}, {method}", len(start), func, solve, integrate)


# ---- Least squares, equations, minima ----


def decay(x: Tensor) -> Tensor:
    times = torch.linspace(0, 4, 50, dtype=x.dtype)
    return x[0] * torch.exp(-x[1] * times) + x[2] - (2.5 * torch.exp(-1.3 * times) + 0.5)


def osborne(x: Tensor) -> Tensor:
    """Two exponentials of five parameters (Osborne 1): Moré, Garbow and Hillstrom (1981), problem 17."""
    times = torch.arange(33, dtype=x.dtype) * 10
    seen = 0.3754 + 1.9358 * torch.exp(-0.012868 * times) - 1.4647 * torch.exp(-0.022123 * times)
    return x[0] + x[1] * torch.exp(-x[3] * times) + x[2] * torch.exp(-x[4] * times) - seen


def powell(x: Tensor) -> Tensor:
    """Helical valley: Moré, Garbow and Hillstrom (1981), problem 7, of three unknowns."""
    turn = torch.atan2(x[1], x[0]) / (2 * torch.pi)
    return torch.stack([10 * (x[2] - 10 * turn), 10 * (torch.hypot(x[0], x[1]) - 1), x[2]])


def broyden(x: Tensor) -> Tensor:
    """A tridiagonal system: Moré, Garbow and Hillstrom (1981), problem 30."""
    wide = torch.nn.functional.pad(x, (1, 1))
    return (3 - 2 * x) * x - wide[:-2] - 2 * wide[2:] + 1


def rosenbrock(x: Tensor) -> Tensor:
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def rosenbrock_residuals(x: Tensor) -> Tensor:
    return torch.cat([1 - x[:-1], 10 * (x[1:] - x[:-1] ** 2)])


def optima() -> Iterator[Case]:
    def fit(start: Any) -> Callable[..., Any]:
        return lambda solver, f: solver.least_squares(f, start)

    def solve(start: Any) -> Callable[..., Any]:
        return lambda solver, f: solver.root(f, start)

    def descend(start: Any, method: str) -> Callable[..., Any]:
        options = {"maxfun": 10**6} if method == "L-BFGS-B" else {}
        return lambda solver, f: solver.minimize(f, start, method=method, options=options)

    yield Case("decay, least_squares", 3, decay, fit([1.0, 1.0, 0.0]), optimize)
    start = [0.5, 1.5, -1.0, 0.01, 0.02]
    yield Case("Osborne, least_squares", 5, osborne, fit(start), optimize)
    for n in (10, 100):
        residuals = rosenbrock_residuals
        yield Case("Rosenbrock, least_squares", n, residuals, fit([-1.2, 1] * (n // 2)), optimize)
    yield Case("helical valley, root", 3, powell, solve([-1.0, 0.1, 0.1]), optimize)
    for n in (10, 100):
        yield Case("Broyden, root", n, broyden, solve([-1.0] * n), optimize)
    for n in (3, 10, 100):
        for method in ("BFGS", "L-BFGS-B"):
            start = ([-1.2, 1] * n)[:n]
            yield Case(f"Rosenbrock, {method}", n, rosenbrock, descend(start, method), optimize)


# ---- Measuring ----


def of_arrays(func: Callable[..., Any], is_scalar: bool) -> Callable[..., Any]:
    """Return what SciPy calls where it takes differences: as little around the function as can be."""
    if is_scalar:
        return lambda x: func(torch.from_numpy(x)).item()
    return lambda *args: func(*args[:-1], torch.from_numpy(args[-1])).numpy()


def counted(func: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    calls = [0]

    def wrapped(*args: Any) -> Any:
        calls[0] += 1
        return func(*args)

    return wrapped, calls


def quality(result: Any) -> float:
    """Return how good a result is: the objective, the residuals' norm; of equations in time, nothing."""
    value = getattr(result, "cost", None)
    value = getattr(result, "fun", 0.0) if value is None else value
    return float(np.linalg.norm(value))


def measured(case: Case) -> None:
    is_scalar = case.func is rosenbrock
    by_hand = of_arrays(case.func, is_scalar)
    sides = {
        "differences": lambda: case.solve(case.module, by_hand),
        "ours": lambda: case.solve(ours, case.func),
    }
    for backend in ("eager", "inductor"):
        made = Reused(case.func, backend)
        sides[backend] = functools.partial(case.solve, made, case.func)
    calls = []
    for module, func in ((case.module, by_hand), (ours, case.func)):
        f, count = counted(func)
        result = case.solve(module, f)
        assert result.success, (case.name, result.message)
        calls.append(count[0])
    for side in sides.values():
        for _ in range(3):
            result = side()
    found = [quality(side()) for side in sides.values()]
    times = medians(list(sides.values()))
    ratios = "".join(f"{t / times[0]:6.2f}" for t in times[1:])
    left = "".join(f"{q:10.1e}" for q in found) if any(found) else ""
    print(
        f"{case.name:27}{case.unknowns:5}{calls[0]:9}{calls[1]:6}"
        f"{1e3 * times[0]:10.2f} ms{ratios}  {left}",
        flush=True,
    )


def medians(functions: list[Callable[[], Any]], seconds: float = 1.5) -> list[float]:
    """Return the median CPU time of each; calls alternate."""
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds * len(functions)
    while len(times[0]) < 5 or time.perf_counter() < end:
        for function, found in zip(functions, times, strict=True):
            begin = time.process_time()
            function()
            found.append(time.process_time() - begin)
    return [statistics.median(found) for found in times]


class Reused:
    """The solvers of SciPy, given adapters that are made, and compiled, once."""

    def __init__(self, func: Callable[..., Any], backend: str) -> None:
        make = {rosenbrock: ours.ScalarFunction}.get(func, ours.VectorFunction)
        make = ours.Rates if func in (robertson, hires, burgers) else make
        self.made = make(func, compile=backend)

    def solve_ivp(self, _: Any, *args: Any, **options: Any) -> Any:
        return integrate.solve_ivp(self.made.fun, *args, jac=self.made.jac, **options)

    def least_squares(self, _: Any, *args: Any, **options: Any) -> Any:
        return optimize.least_squares(self.made.fun, *args, jac=self.made.jac, **options)

    def root(self, _: Any, *args: Any, **options: Any) -> Any:
        return optimize.root(self.made.fun, *args, jac=self.made.jac, **options)

    def minimize(self, _: Any, *args: Any, **options: Any) -> Any:
        return optimize.minimize(self.made.fun, *args, jac=self.made.jac, **options)


def main() -> None:
    torch.set_num_threads(1)
    print(
        "                                calls of f    a solve by  ratio to it: ours,     left by\n"
        "                         unknowns  diff.  ours  differences  as graph, fused     "
        "diff.      ours     graph     fused"
    )
    for case in (*equations(), *optima()):
        measured(case)


if __name__ == "__main__":
    main()
