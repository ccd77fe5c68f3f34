"""A physics-informed network: Poisson's equation solved by a network, trained by Levenberg-Marquardt beside Adam.

The residuals are u_xx + u_yy - f at points inside a square, and u - g on its border. They have second derivatives of
the network in them (``vmap(hessian)``), and Levenberg-Marquardt takes their Jacobian by all parameters on top of that.
Run it by ``.venv/bin/python examples/pinn.py`` (under a minute). It saves out/pinn.png.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from reporting import print_table, save, timed
from torch import Tensor

from pushforward import hessian, value_and_jacobian, vmap

F64 = torch.float64


# ---- Problem: a solution that we know, so that errors can be told ----


def solution(x: Tensor) -> Tensor:
    """Return u at points ``(..., 2)``."""
    return (
        torch.sin(torch.pi * x[..., 0]) * torch.sin(2 * torch.pi * x[..., 1])
        + x[..., 0] * x[..., 1]
    )


def source(x: Tensor) -> Tensor:
    """Return u_xx + u_yy, by hand."""
    return -5 * torch.pi**2 * torch.sin(torch.pi * x[..., 0]) * torch.sin(2 * torch.pi * x[..., 1])


# ---- Network and residuals ----


@dataclass(frozen=True)
class Network:
    """A tanh network with layers of these sizes, and its parameters in one vector."""

    sizes: tuple[int, ...]

    @property
    def num_parameters(self) -> int:
        """The length of the vector."""
        return sum(m * n + n for m, n in zip(self.sizes, self.sizes[1:], strict=False))

    def start(self) -> Tensor:
        """Draw parameters."""
        parts = []
        for m, n in zip(self.sizes, self.sizes[1:], strict=False):
            parts += [torch.randn(m * n, dtype=F64) * (1.5 / m) ** 0.5, torch.zeros(n, dtype=F64)]
        return torch.cat(parts)

    def __call__(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return the output at points ``(..., 2)``."""
        begin = 0
        for m, n in zip(self.sizes, self.sizes[1:], strict=False):
            if begin:
                x = torch.tanh(x)
            weight, bias = parameters[begin : begin + m * n], parameters[begin + m * n :][:n]
            x = x @ weight.view(m, n) + bias
            begin += m * n + n
        return x[..., 0]


def residuals_of(network: Network, inside: Tensor, border: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function of the parameters: by how much equation and border values are missed."""

    def laplacian(parameters: Tensor, x: Tensor) -> Tensor:
        return hessian(lambda x: network(parameters, x))(x).diagonal().sum()

    def residuals(parameters: Tensor) -> Tensor:
        equation = vmap(laplacian, (None, 0))(parameters, inside) - source(inside)
        values = network(parameters, border) - solution(border)
        return torch.cat([equation / len(inside) ** 0.5, 10 * values / len(border) ** 0.5])

    return residuals


def points(num: int) -> tuple[Tensor, Tensor]:
    """Return points that fill the unit square evenly (Sobol), and points on its border."""
    inside = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(num, dtype=F64)
    along = torch.linspace(0, 1, num // 8 + 1, dtype=F64)[:-1]
    low, high = torch.zeros_like(along), torch.ones_like(along)
    sides = (along, low), (high, along), (1 - along, high), (low, 1 - along)
    return inside, torch.cat([torch.stack(side, dim=1) for side in sides])


# ---- Training ----


@dataclass
class Run:
    """Parameters found, and errors of the solution after so many seconds."""

    parameters: Tensor
    seconds: list[float]
    errors: list[float]


def error_of(network: Network, parameters: Tensor) -> float:
    """Return the root mean square error on a grid, relative to that of u."""
    line = torch.linspace(0, 1, 41, dtype=F64)
    x = torch.stack(torch.meshgrid(line, line, indexing="ij"), 2)
    with torch.no_grad():
        return float((network(parameters, x) - solution(x)).norm() / solution(x).norm())


def levenberg_marquardt(
    network: Network, residuals: Callable[[Tensor], Tensor], start: Tensor, num_steps: int
) -> Run:
    """Solve (JᵀJ + λ I) step = -Jᵀr; λ shrinks after steps that help and grows after those that do not."""
    run, damping = Run(start, [0.0], [error_of(network, start)]), 1e-2
    both, identity = value_and_jacobian(residuals), torch.eye(len(start), dtype=F64)

    def step() -> None:
        nonlocal damping
        r, jac = both(run.parameters)
        normal, gradient = jac.T @ jac, jac.T @ r
        while damping < 1e8:
            moved = run.parameters - torch.linalg.solve(normal + damping * identity, gradient)
            if residuals(moved).norm() < r.norm():
                run.parameters, damping = moved, max(damping / 5, 1e-14)
                return
            damping *= 5

    for _ in range(num_steps):
        _, seconds = timed(step)
        run.seconds.append(run.seconds[-1] + seconds)
        run.errors.append(error_of(network, run.parameters))
    return run


def adam(
    network: Network, residuals: Callable[[Tensor], Tensor], start: Tensor, budget: float
) -> Run:
    """Train by Adam for ``budget`` seconds."""
    leaf = start.clone().requires_grad_()
    run = Run(leaf, [0.0], [error_of(network, start)])
    optimizer = torch.optim.Adam([leaf], lr=3e-3)

    def steps() -> None:
        for _ in range(20):
            optimizer.zero_grad()
            residuals(leaf).square().sum().backward()
            optimizer.step()

    while run.seconds[-1] < budget:
        _, seconds = timed(steps)
        run.seconds.append(run.seconds[-1] + seconds)
        run.errors.append(error_of(network, leaf))
    return run


# ---- Picture ----


def picture(network: Network, runs: dict[str, Run]) -> Figure:
    """Draw the solution, its error, and the errors over time."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.3])
    line = torch.linspace(0, 1, 101, dtype=F64)
    x = torch.stack(torch.meshgrid(line, line, indexing="ij"), 2)
    found = network(next(iter(runs.values())).parameters, x)
    for axis, field, title, colors in (
        (left, found, "u, by the network", "viridis"),
        (middle, found - solution(x), "its error", "coolwarm"),
    ):
        shown = axis.imshow(
            field.detach().T.numpy(), origin="lower", extent=(0, 1, 0, 1), cmap=colors
        )
        figure.colorbar(shown, ax=axis, shrink=0.8)
        axis.set(title=title, xlabel="x", ylabel="y")
    for name, run in runs.items():
        right.semilogy(run.seconds, run.errors, label=name)
    right.set(title="Error of the solution, relative", xlabel="seconds")
    right.legend()
    return figure


def main(num_points: int = 240, width: int = 16, num_steps: int = 100) -> None:
    """Train both ways for the same time, print the errors, and save the picture."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = Network((2, width, width, 1))
    residuals = residuals_of(network, *points(num_points))
    start = network.start()
    runs = {"Levenberg-Marquardt": levenberg_marquardt(network, residuals, start, num_steps)}
    runs["Adam"] = adam(network, residuals, start, runs["Levenberg-Marquardt"].seconds[-1])
    print_table(
        [f"Poisson, {network.num_parameters} parameters", "seconds", "relative error"],
        [[name, f"{r.seconds[-1]:.1f}", f"{r.errors[-1]:.1e}"] for name, r in runs.items()],
    )
    print(f"\nPicture: {save(picture(network, runs), 'pinn.png')}")


if __name__ == "__main__":
    main()
