"""Neural tangent kernels on a circle: wider networks come closer to the kernel of infinite width, and train as it says.

The network has one hidden layer of ReLUs and no biases, f(x) = Σ aⱼ relu(wⱼ·x) / √m. Of infinite width its kernel is
known (Cho and Saul, Kernel Methods for Deep Learning, 2009; Jacot et al., Neural Tangent Kernel, 2018).
Run it by ``.venv/bin/python examples/tangent_kernel.py`` (seconds). It saves out/tangent_kernel.png.
"""

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from reporting import print_table, save
from torch import Tensor

from pushforward import jacrev

F64 = torch.float64
Parameters = dict[str, Tensor]


def network(parameters: Parameters, x: Tensor) -> Tensor:
    """Return the outputs ``(n,)`` for inputs ``(n, 2)``."""
    inner, outer = parameters["inner"], parameters["outer"]
    return torch.relu(x @ inner.T) @ outer / len(outer) ** 0.5


def draw(width: int) -> Parameters:
    """Draw parameters."""
    return {"inner": torch.randn(width, 2, dtype=F64), "outer": torch.randn(width, dtype=F64)}


def on_circle(angles: Tensor) -> Tensor:
    """Return points of the unit circle."""
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def by_parameters(parameters: Parameters, x: Tensor) -> Tensor:
    """Return the Jacobian of the outputs by all parameters, ``(n, p)``."""
    return torch.cat([part.flatten(1) for part in jacrev(network)(parameters, x).values()], dim=1)


def kernel(parameters: Parameters, x1: Tensor, x2: Tensor) -> Tensor:
    """Return the tangent kernel, ``(n1, n2)``."""
    return by_parameters(parameters, x1) @ by_parameters(parameters, x2).T


def infinite_kernel(x1: Tensor, x2: Tensor) -> Tensor:
    """Return the tangent kernel of infinite width between points of the circle."""
    cosine = (x1 @ x2.T).clamp(-1, 1)
    angle = cosine.acos()
    left = torch.pi - angle
    return (2 * cosine * left + angle.sin()) / (2 * torch.pi)


# ---- Width ----


@dataclass(frozen=True)
class Widths:
    """Kernels between the first point and all, by width ``(draws, n)``, and their mean error."""

    angles: Tensor
    kernels: dict[int, Tensor]
    limit: Tensor

    def errors(self) -> dict[int, float]:
        """Return the root mean square error of each width, relative to the largest entry."""
        return {
            width: float((found - self.limit).square().mean().sqrt() / self.limit.max())
            for width, found in self.kernels.items()
        }


def compare_widths(widths: list[int], num_draws: int) -> Widths:
    """Take kernels of networks drawn at random."""
    angles = torch.linspace(-torch.pi, torch.pi, 121, dtype=F64)
    x, middle = on_circle(angles), on_circle(torch.zeros(1, dtype=F64))
    kernels = {
        width: torch.cat([kernel(draw(width), middle, x) for _ in range(num_draws)])
        for width in widths
    }
    return Widths(angles, kernels, infinite_kernel(middle, x)[0])


# ---- Training ----


@dataclass(frozen=True)
class Trained:
    """Outputs on a fine circle ``(n,)``: before, after training, and as the kernel says; the data."""

    angles: Tensor
    before: Tensor
    after: Tensor
    predicted: Tensor
    data: tuple[Tensor, Tensor]


def train(width: int, num_steps: int) -> Trained:
    """Train by gradient descent, and predict what comes out by the kernel at the start."""
    angles = torch.tensor([-2.5, -1.6, -0.9, 0.2, 0.8, 1.7, 2.6], dtype=F64)
    x, y = on_circle(angles), torch.sin(2 * angles)
    fine = torch.linspace(-torch.pi, torch.pi, 181, dtype=F64)
    circle = on_circle(fine)
    parameters = draw(width)
    with torch.no_grad():
        before, gap = network(parameters, circle), y - network(parameters, x)
        at_data = kernel(parameters, x, x)
        rate = 1 / float(torch.linalg.eigvalsh(at_data)[-1])
        # Gradient descent on the linearized network: the gap shrinks by I - rate K a step.
        values, vectors = torch.linalg.eigh(at_data)
        closed = vectors @ ((1 - (1 - rate * values) ** num_steps) / values * (vectors.T @ gap))
        predicted = before + kernel(parameters, circle, x) @ closed
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    for _ in range(num_steps):
        loss = (network(leaves, x) - y).square().sum() / 2
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        with torch.no_grad():
            for leaf, gradient in zip(leaves.values(), gradients, strict=True):
                leaf -= rate * gradient
    with torch.no_grad():
        after = network(leaves, circle)
    return Trained(fine, before, after, predicted, (angles, y))


# ---- Picture ----


def picture(widths: Widths, trained: Trained, width: int) -> Figure:
    """Draw kernels by width, their errors, and a trained network beside what its kernel says."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.2, 0.9, 1.2])
    for index, (size, found) in enumerate(widths.kernels.items()):
        if index % 2 == 0:
            low, high = found.quantile(0.1, 0), found.quantile(0.9, 0)
            color = f"C{index // 2}"
            left.fill_between(
                widths.angles, low, high, color=color, alpha=0.35, label=f"width {size}"
            )
    left.plot(widths.angles, widths.limit, "k", label="infinite width")
    left.set(title="Kernel, 80 % of networks", xlabel="angle between the inputs")
    left.legend(fontsize="small")
    sizes, errors = zip(*widths.errors().items(), strict=True)
    middle.loglog(sizes, errors, "o-", label="found")
    middle.loglog(
        sizes, errors[0] * (sizes[0] / torch.tensor(sizes)) ** 0.5, "k--", label="1 / √width"
    )
    middle.set(title="Distance to infinite width", xlabel="width")
    middle.legend(fontsize="small")
    right.plot(trained.angles, trained.before, color="lightgray", label="before training")
    right.plot(trained.angles, trained.after, label="trained")
    right.plot(trained.angles, trained.predicted, "--", label="as its kernel says")
    right.plot(*trained.data, "ko", label="data")
    right.set(title=f"Training a network of width {width}", xlabel="angle")
    right.set(ylim=(-1.1, 1.7))
    right.legend(fontsize="small", ncols=2, loc="upper center")
    return figure


def main(
    widths: tuple[int, ...] = (16, 64, 256, 1024, 4096), num_draws: int = 40, num_steps: int = 400
) -> None:
    """Compare widths, train a network, and save the picture."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    compared = compare_widths(list(widths), num_draws)
    trained = train(widths[-1], num_steps)
    off = (trained.after - trained.predicted).abs().max()
    print_table(
        ["width", "error of the kernel"],
        [[str(w), f"{e:.3f}"] for w, e in compared.errors().items()],
    )
    print(f"\nLargest difference between trained and predicted: {off:.3f}")
    if off > 0.5 or compared.errors()[widths[-1]] > 3 / widths[-1] ** 0.5:
        raise AssertionError("the kernel is not what it should be")
    print(f"\nPicture: {save(picture(compared, trained, widths[-1]), 'tangent_kernel.png')}")


if __name__ == "__main__":
    main()
