"""Two stiff equations solved by SciPy's BDF with our sparse Jacobian, and with SciPy's finite differences.

a. The 2-D Brusselator, periodic: two substances that react and diffuse, with a source that is switched on at t = 1.1.
b. Burgers' equation, upwind: a wave that steepens until its front is as wide as diffusion allows.

Finite differences need to be told the pattern, so that SciPy can group columns; they are given ours.
Run it by ``.venv/bin/python examples/stiff_pdes.py`` (under a minute). It saves out/stiff_pdes.png.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from reporting import best_of, in_units, print_table, save, timed
from scipy.integrate import solve_ivp
from scipy.optimize._numdiff import approx_derivative, group_columns  # what jac_sparsity= calls
from scipy.sparse import csc_array
from torch import Tensor

import pushforward.scipy
from pushforward import clear_plans, pattern, spy

Rates = Callable[[float, Tensor], Tensor]


# ---- Equations, as tensors ----


def laplacian(u: Tensor) -> Tensor:
    """Return the five-point stencil on a periodic grid of unit width."""
    return u.roll(1, 0) + u.roll(-1, 0) + u.roll(1, 1) + u.roll(-1, 1) - 4 * u


def brusselator(num: int, diffusion: float = 2e-3) -> tuple[Rates, Tensor]:
    """Return the rates on a ``num`` × ``num`` grid of the unit square, and the initial values."""
    x, y = torch.meshgrid(*[torch.arange(num, dtype=torch.float64) / num] * 2, indexing="ij")
    source = 5.0 * ((x - 0.3) ** 2 + (y - 0.6) ** 2 <= 0.1**2)
    strength = diffusion * num**2

    def rates(t: float, state: Tensor) -> Tensor:
        u, v = state.view(2, num, num)
        reaction = u * u * v
        u_dot = 1 + reaction - 4.4 * u + strength * laplacian(u)
        v_dot = 3.4 * u - reaction + strength * laplacian(v)
        if t >= 1.1:
            u_dot = u_dot + source
        return torch.stack([u_dot, v_dot]).view(-1)

    start = torch.stack([22 * (y * (1 - y)) ** 1.5, 27 * (x * (1 - x)) ** 1.5])
    return rates, start.view(-1)


def burgers(num: int, viscosity: float = 2e-3) -> tuple[Rates, Tensor]:
    """Return the rates u' = -u u_x + ν u_xx on ``num`` points of a periodic line, and the initial values."""
    x = torch.arange(num, dtype=torch.float64) / num

    def rates(t: float, u: Tensor) -> Tensor:
        before, after = u.roll(1), u.roll(-1)
        slope = torch.where(u > 0, u - before, after - u) * num  # from where the wave comes
        return viscosity * num**2 * (before - 2 * u + after) - u * slope

    return rates, 0.3 + torch.sin(2 * torch.pi * x)


# ---- What SciPy asks for ----


def jacobian_for_scipy(rates: Rates) -> Callable[[float, np.ndarray], csc_array]:
    """Return the sparse Jacobian as SciPy calls it."""
    return pushforward.scipy.Rates(rates, output="csc").jac


class RatesForScipy:
    """The rates as SciPy calls them, and how often it does, finite differences included."""

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self.num_calls = 0

    def __call__(self, t: float, y: np.ndarray) -> np.ndarray:
        self.num_calls += 1
        return self.rates(t, torch.from_numpy(y)).numpy()


@dataclass
class Solved:
    """Both solutions of one equation, and the structure of its Jacobian."""

    solution: Any
    structure: Any


def solve(name: str, rates: Rates, start: Tensor, times: np.ndarray) -> Solved:
    """Solve twice, print what it took, and check that the solutions agree."""
    structure = pattern(rates, 0.0, start, argnums=1)
    rows, solutions = [], []
    for how, options in {
        "pushforward": {"jac": jacobian_for_scipy(rates)},
        "finite differences": {"jac_sparsity": structure.to_scipy()},
    }.items():

        def solution(options=options) -> Any:
            counted, span = RatesForScipy(rates), (times[0], times[-1])
            tolerances = {"rtol": 1e-4, "atol": 1e-6}
            found = solve_ivp(
                counted, span, start.numpy(), method="BDF", t_eval=times, **tolerances, **options
            )
            return found, counted.num_calls

        # The better of two: machines are noisy.
        (found, num_calls), seconds = min((timed(solution) for _ in range(2)), key=lambda t: t[1])
        if not found.success:
            raise RuntimeError(f"{name}: {found.message}")
        counts = [found.nfev, num_calls, found.njev, found.nlu]
        rows.append([f"{name}, {how}", str(len(start)), *map(str, counts), in_units(seconds)])
        solutions.append(found)
    header = ["equation, Jacobian by", "unknowns", "nfev", "calls", "njev", "nlu", "solve"]
    print_table(header, rows)
    np.testing.assert_allclose(solutions[0].y, solutions[1].y, atol=2e-3)
    print()
    return Solved(solutions[0], structure)


# ---- One Jacobian ----


def time_jacobians(name: str, equation: Callable[..., Any], sizes: list[int]) -> np.ndarray:
    """Print and return for each size: unknowns, seconds of the first call, of a later one, of differences."""
    rows, figures = [], []
    for num in sizes:
        rates, start = equation(num)
        y = start.numpy() + 0.1
        ours = jacobian_for_scipy(rates)
        clear_plans()
        jac, first = timed(lambda ours=ours, y=y: ours(2.0, y))
        later = best_of(5, lambda ours=ours, y=y: ours(2.0, y))
        structure = pattern(rates, 2.0, start, argnums=1).to_scipy()
        (groups, grouping) = timed(lambda structure=structure: group_columns(structure))

        def differences(rates=rates, y=y, sparsity=(structure, groups)) -> Any:
            function = RatesForScipy(rates)
            return approx_derivative(lambda x: function(2.0, x), y, "2-point", sparsity=sparsity)

        by_differences, seconds = timed(differences)
        check(rates, start + 0.1, jac)
        error = abs(by_differences - jac).max() / abs(jac).max()
        figures.append((len(y), first, later, seconds))
        rows.append(
            [
                f"{name}, {len(y)} unknowns",
                str(jac.nnz),
                in_units(first),
                in_units(later),
                f"{groups.max() + 1}",
                in_units(grouping),
                in_units(seconds),
                f"{seconds / later:.0f}",
                f"{error:.0e}",
            ]
        )
    print_table(
        [
            "one Jacobian",
            "non-zeros",
            "ours, first",
            "ours, later",
            "groups",
            "grouping",
            "differences",
            "ratio",
            "their error",
        ],
        rows,
    )
    print()
    return np.array(figures)


def check(rates: Rates, state: Tensor, jac: csc_array) -> None:
    """Hold a product with the Jacobian against PyTorch's own derivative."""
    direction = torch.randn_like(state)
    _, expected = torch.func.jvp(lambda x: rates(2.0, x), (state,), (direction,))
    largest = float(expected.abs().max())
    np.testing.assert_allclose(jac @ direction.numpy(), expected.numpy(), atol=1e-12 * largest)


# ---- Picture ----


def picture(flow: Solved, wave: Solved, num: int, figures: dict[str, np.ndarray]) -> Figure:
    """Draw the solutions, a pattern, and the times."""
    figure = Figure(figsize=(14, 7), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[0.85, 1])
    upper.suptitle("2-D Brusselator: u, by SciPy's BDF with the sparse Jacobian of pushforward")
    axes = upper.subplots(1, 6)
    fields = flow.solution.y.reshape(2, num, num, -1)[0]
    for axis, t, field in zip(axes, flow.solution.t, np.moveaxis(fields, -1, 0), strict=True):
        shown = axis.imshow(field.T, origin="lower", cmap="magma", vmin=0, vmax=fields.max())
        axis.set_title(f"t = {t:g}")
        axis.set_axis_off()
    upper.colorbar(shown, ax=axes, shrink=0.85)
    left, middle, right = lower.subplots(1, 3, width_ratios=[0.85, 1.2, 1.2])
    spy(flow.structure, left)
    left.set_title(f"Its Jacobian: {flow.structure.nnz} non-zeros")
    x = np.arange(len(wave.solution.y)) / len(wave.solution.y)
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(wave.solution.t)))
    for t, u, shade in zip(wave.solution.t, wave.solution.y.T, shades, strict=True):
        middle.plot(x, u, color=shade, label=f"t = {t:g}")
    middle.set(title=f"Burgers' equation, {len(x)} points", xlabel="x", ylabel="u")
    middle.legend()
    draw_times(right, figures)
    return figure


def draw_times(axis: Any, figures: dict[str, np.ndarray]) -> None:
    """Draw what one Jacobian takes: a color for each way, a marker for each equation."""
    ways = {
        "finite differences": ("tab:red", "--", 3),
        "pushforward, first call": ("tab:gray", ":", 1),
        "pushforward, later calls": ("tab:blue", "-", 2),
    }
    for how, (color, line, column) in ways.items():
        axis.plot([], [], line, color=color, label=how)
        for values, marker in zip(figures.values(), "os", strict=True):
            axis.loglog(values[:, 0], 1e3 * values[:, column], marker + line, color=color)
    for name, marker in zip(figures, "os", strict=True):
        axis.plot([], [], marker, color="black", label=name)
    largest = max(values[:, 1:].max() for values in figures.values())
    axis.set(title="One Jacobian", xlabel="unknowns", ylabel="ms", ylim=(None, 3e4 * largest))
    axis.legend(fontsize="small", ncols=2, loc="upper left")


def main(num: int = 64, num_points: int = 4096, sizes: tuple[int, ...] = (32, 64, 128, 256)) -> Any:
    """Solve both equations, time their Jacobians and save the picture."""
    torch.set_num_threads(1)
    flow = solve("Brusselator", *brusselator(num), np.array([0, 0.5, 1.5, 6.6, 7.0, 7.4]))
    wave = solve("Burgers", *burgers(num_points), np.array([0, 0.1, 0.2, 0.5, 1.0]))
    print(
        "nfev, njev, nlu: SciPy's counts; calls: those of the rates, finite differences included."
    )
    print(
        "SciPy rarely asks for a Jacobian: in two dimensions its LU factors take most of the time.\n"
    )
    figures = {
        "Brusselator": time_jacobians("Brusselator", brusselator, list(sizes)),
        "Burgers": time_jacobians("Burgers", burgers, [2 * size**2 for size in sizes]),
    }
    print(f"Picture: {save(picture(flow, wave, num, figures), 'stiff_pdes.png')}")


if __name__ == "__main__":
    main()
