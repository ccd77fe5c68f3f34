"""Thirteen atoms that attract each other: the vibrations of the cluster, from the Hessian of its energy.

The atoms are Lennard-Jones', in units where the pair's energy and size are 1. Their best arrangement is an icosahedron
with one atom in the middle. Its symmetry says how many vibrations share a frequency: 1, 3, 4 or 5.
Run it by ``.venv/bin/python examples/cluster_modes.py`` (seconds). It saves out/cluster_modes.png.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from reporting import print_table, save
from torch import Tensor

from pushforward import grad, hessian

F64 = torch.float64
# Global minimum of 13 atoms: Hoare and Pal (1971); in the Cambridge Cluster Database with six decimals.
PUBLISHED_ENERGY = -44.326801


def energy(places: Tensor) -> Tensor:
    """Return the energy of atoms at ``places`` ``(n, 3)``: 4 (r⁻¹² - r⁻⁶) for each pair."""
    first, second = torch.triu_indices(len(places), len(places), 1)
    inverse = 1 / (places[first] - places[second]).square().sum(1) ** 3
    return 4 * (inverse * inverse - inverse).sum()


def icosahedron(radius: float) -> Tensor:
    """Return a middle and twelve corners."""
    golden = (1 + 5**0.5) / 2
    corners = [
        shifted
        for a in (-1, 1)
        for b in (-golden, golden)
        for shifted in ((0, a, b), (a, b, 0), (b, 0, a))
    ]
    places = torch.tensor([(0, 0, 0), *corners], dtype=F64)
    return radius * places / (1 + golden**2) ** 0.5


def relax(places: Tensor) -> Tensor:
    """Find the balance by Newton steps; shifts and turns of the whole cluster are left out of them."""
    for _ in range(20):
        force = grad(energy)(places).flatten()
        curvature = hessian(energy)(places).reshape(len(force), len(force))
        step = torch.linalg.pinv(curvature, rtol=1e-6, hermitian=True) @ force
        places = places - step.view_as(places)
        if step.abs().max() < 1e-13:
            break
    return places


@dataclass(frozen=True)
class Modes:
    """Squared frequencies ``(39,)`` of atoms with mass 1, and how the atoms move ``(39, 13, 3)``."""

    squares: Tensor
    shapes: Tensor

    @property
    def frequencies(self) -> Tensor:
        """The frequencies; what is zero but for rounding is zero."""
        return self.squares.clamp(min=0).sqrt()

    def multiplets(self) -> list[tuple[float, int]]:
        """Return the frequencies that are not zero, and how many vibrations have each."""
        found: list[tuple[float, int]] = []
        for frequency in self.frequencies[6:].tolist():
            if found and abs(found[-1][0] - frequency) < 1e-6 * frequency:
                found[-1] = found[-1][0], found[-1][1] + 1
            else:
                found.append((frequency, 1))
        return found


def modes_of(places: Tensor) -> Modes:
    """Return the vibrations around ``places``."""
    num = places.numel()
    squares, vectors = torch.linalg.eigh(hessian(energy)(places).view(num, num))
    return Modes(squares, vectors.T.reshape(num, -1, 3))


def check(places: Tensor, modes: Modes) -> None:
    """Hold the energy against the published one, and the Hessian's modes against symmetry and differences."""
    if abs(energy(places) - PUBLISHED_ENERGY) > 1e-6:
        raise AssertionError(f"energy {energy(places)}, published is {PUBLISHED_ENERGY}")
    if modes.squares[:6].abs().max() > 1e-8 or not {n for _, n in modes.multiplets()} <= {
        1,
        3,
        4,
        5,
    }:
        raise AssertionError("the modes do not have the symmetry of an icosahedron")
    step = 1e-5 * modes.shapes[-1]
    leaf = torch.stack([places + step, places - step]).requires_grad_()
    forces = torch.autograd.grad(sum(map(energy, leaf)), leaf)[0]  # not ours
    expected = (forces[0] - forces[1]) / 2e-5
    torch.testing.assert_close(modes.squares[-1] * modes.shapes[-1], expected, rtol=1e-6, atol=1e-5)


# ---- Picture ----


def picture(places: Tensor, modes: Modes) -> Figure:
    """Draw the spectrum and three vibrations."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.5, 1])
    multiplets = modes.multiplets()
    ends = 6 + np.cumsum([n for _, n in multiplets])
    chosen = [0, [n for _, n in multiplets].index(1), len(multiplets) - 1]
    for k, index in enumerate(chosen):
        axis = upper.add_subplot(1, 3, k + 1, projection="3d")
        frequency, number = multiplets[index]
        axis.set_title(
            f"frequency {frequency:.2f}, one of {number}"
            if number > 1
            else f"breathing, {frequency:.2f}"
        )
        draw_mode(axis, places, modes.shapes[ends[index] - 1])
    axis = lower.subplots()
    for frequency, number in multiplets:
        axis.plot([frequency] * 2, [0, number], color="tab:blue", linewidth=2)
        axis.plot(frequency, number, "o", color="tab:blue")
    axis.set(title="All vibrations", xlabel="frequency", ylabel="how many", yticks=[1, 3, 4, 5])
    axis.set(ylim=(0, 5.6), xlim=(0, None))
    return figure


def draw_mode(axis: Any, places: Tensor, shape: Tensor) -> None:
    """Draw atoms, the pairs that touch, and how the atoms move."""
    x = places.numpy()
    for i, j in torch.triu_indices(len(x), len(x), 1).T.tolist():
        if np.linalg.norm(x[i] - x[j]) < 1.25:
            axis.plot(*x[[i, j]].T, color="lightgray", linewidth=1)
    axis.scatter(*x.T, s=60, color="tab:orange", edgecolors="black", linewidths=0.5)
    axis.quiver(*x.T, *(1.1 * shape.numpy()).T, color="tab:red", linewidth=1.5)
    axis.set_box_aspect((1, 1, 1), zoom=1.5)
    axis.view_init(elev=18, azim=35)
    axis.set_axis_off()


def main() -> None:
    """Relax the cluster, find and check its vibrations, and save the picture."""
    torch.set_num_threads(1)
    places = relax(icosahedron(1.1))
    modes = modes_of(places)
    check(places, modes)
    print(
        f"Energy {energy(places):.6f}, published {PUBLISHED_ENERGY:.6f}; 6 modes of 39 do not vibrate.\n"
    )
    print_table(["frequency", "vibrations"], [[f"{f:.4f}", str(n)] for f, n in modes.multiplets()])
    print(f"\nPicture: {save(picture(places, modes), 'cluster_modes.png')}")


if __name__ == "__main__":
    main()
