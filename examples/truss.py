"""A roof of bars under snow: Newton's method with the sparse Hessian of its energy.

The roof is a space frame, two grids of joints with bars between neighbours. Bars are springs, deflections are large,
and the load grows in steps. An entry of the Hessian tells how the force on one joint depends on the place of another:
it can be non-zero only where a bar joins the two.
Run it by ``.venv/bin/python examples/truss.py`` (under a minute). It saves out/truss.png.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Line3DCollection
from reporting import best_of, in_units, print_table, save, timed
from scipy.optimize._numdiff import approx_derivative, group_columns  # what jac_sparsity= calls
from scipy.sparse import csc_array
from scipy.sparse.linalg import splu
from torch import Tensor

from pushforward import grad, hessian, jacobian, pattern, spy

F64 = torch.float64
TOLERANCE = 1e-7  # of the forces that are not in balance, relative to the load


# ---- Roof ----


@dataclass(frozen=True)
class Roof:
    """Joints at rest ``(j, 3)``, bars as pairs of joints ``(b, 2)``, and the joints that can move."""

    joints: Tensor
    bars: Tensor
    free: Tensor
    stiffness: float = 1e5  # force by which a bar is stretched to twice its length
    weight: float = 12.0  # of the snow on one joint

    def joints_at(self, moved: Tensor) -> Tensor:
        """Return where all joints are if the free ones have ``moved`` ``(f, 3)``."""
        return self.joints.index_add(0, self.free, moved)

    def lengths(self, places: Tensor) -> Tensor:
        """Return the lengths of the bars."""
        first, second = self.bars.unbind(1)
        return (places[first] - places[second]).norm(dim=1)

    def forces(self, places: Tensor) -> Tensor:
        """Return the forces in the bars, positive in those that are stretched."""
        at_rest = self.lengths(self.joints)
        return self.stiffness * (self.lengths(places) - at_rest) / at_rest

    def energy(self, moved: Tensor, load: float) -> Tensor:
        """Return the energy of bars and snow."""
        places, at_rest = self.joints_at(moved), self.lengths(self.joints)
        strain = (self.lengths(places) - at_rest) / at_rest
        in_bars = (0.5 * self.stiffness * at_rest * strain**2).sum()
        return in_bars + load * self.weight * moved[:, 2].sum()


def make_roof(num: int) -> Roof:
    """Make a gently arched roof of ``num`` × ``num`` cells that stands on its four corners."""
    lower = grid(num + 1, 0.0, 0.0)
    upper = grid(num, 0.5, 1.0)
    joints = torch.cat([lower, upper])
    middle = num / 2
    x, y = joints[:, 0] - middle, joints[:, 1] - middle
    joints[:, 2] += 0.12 * num * (1 - (x / middle) ** 2) * (1 - (y / middle) ** 2)
    low = torch.arange((num + 1) ** 2).view(num + 1, num + 1)
    high = low.numel() + torch.arange(num**2).view(num, num)
    pairs = [
        (low[1:], low[:-1]), (low[:, 1:], low[:, :-1]), (high[1:], high[:-1]), (high[:, 1:], high[:, :-1]),
        (high, low[1:, 1:]), (high, low[1:, :-1]), (high, low[:-1, 1:]), (high, low[:-1, :-1]),
    ]  # fmt: skip
    bars = torch.cat([torch.stack([a.flatten(), b.flatten()], 1) for a, b in pairs])
    width = max(1, num // 10)
    ends = torch.cat([torch.arange(width + 1), torch.arange(num - width, num + 1)])
    held = low[ends][:, ends].flatten()
    is_free = torch.ones(len(joints), dtype=torch.bool).index_fill(0, held, False)
    return Roof(joints, bars, is_free.nonzero().squeeze(1))


def grid(num: int, offset: float, height: float) -> Tensor:
    """Return ``num`` × ``num`` joints in a plane."""
    line = torch.arange(num, dtype=F64) + offset
    x, y = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y, torch.full_like(x, height)], 2).view(-1, 3)


# ---- Newton ----

Hessian = Callable[[Tensor, float], csc_array]


def hessian_by_pushforward(roof: Roof) -> Hessian:
    """Return the Hessian of the energy as SciPy has it; symmetric, so rows can be taken for columns."""
    sparse = hessian(roof.energy, output="csc")

    def at(moved: Tensor, load: float) -> csc_array:
        found = sparse(moved, load)
        arrays = (found.values(), found.row_indices(), found.ccol_indices())
        return csc_array(tuple(array.numpy() for array in arrays), shape=found.shape)

    return at


def hessian_by_differences(roof: Roof) -> Hessian:
    """Return the same by SciPy's differences of gradients, with columns grouped once."""
    gradient, structure = grad(roof.energy), structure_of(roof)
    sparsity = structure, group_columns(structure)

    def at(moved: Tensor, load: float) -> csc_array:
        def function(x: np.ndarray) -> np.ndarray:
            return gradient(torch.from_numpy(x).view_as(moved), load).numpy().ravel()

        x = moved.numpy().ravel()
        return approx_derivative(function, x, "2-point", sparsity=sparsity).tocsc()

    return at


def structure_of(roof: Roof) -> Any:
    """Return where the Hessian may be non-zero, for SciPy."""
    at_rest = torch.zeros(len(roof.free), 3, dtype=F64)
    return pattern(grad(roof.energy), at_rest, 1.0).to_scipy()


def newton(
    roof: Roof, moved: Tensor, load: float, hessian_at: Hessian
) -> tuple[Tensor, list[float]]:
    """Find the balance by Newton steps, halved while energy grows; return it and the imbalances on the way."""
    gradient = grad(roof.energy)
    scale = load * roof.weight
    imbalances = []
    for _ in range(30):
        force = gradient(moved, load)
        imbalances.append(float(force.abs().max()) / scale)
        if imbalances[-1] < TOLERANCE:
            return moved, imbalances
        factors = splu(hessian_at(moved, load), permc_spec="MMD_AT_PLUS_A")
        step = torch.from_numpy(factors.solve(force.numpy().ravel())).view_as(moved)
        before, share = roof.energy(moved, load), 1.0
        while (
            share > 1e-3
            and imbalances[-1] > 1e-4
            and roof.energy(moved - share * step, load) > before
        ):
            share /= 2
        moved = moved - share * step
    raise RuntimeError(f"no balance at load {load}: {imbalances}")


LOADS = (0.25, 0.5, 0.75, 1.0, 1.25)  # under the last the roof snaps through


@dataclass
class Bent:
    """Places of the joints, and the imbalance after each step, by load."""

    places: list[Tensor]
    imbalances: list[list[float]]


def bend(roof: Roof, hessian_at: Hessian) -> Bent:
    """Let it snow."""
    moved, places, imbalances = torch.zeros(len(roof.free), 3, dtype=F64), [], []
    for load in LOADS:
        moved, found = newton(roof, moved, load, hessian_at)
        places.append(roof.joints_at(moved))
        imbalances.append(found)
    return Bent(places, imbalances)


# ---- Report ----


def time_hessians(roof: Roof) -> None:
    """Print what one Hessian takes, and hold ours against PyTorch's own second derivative."""
    torch.manual_seed(0)
    moved, direction = 0.01 * torch.randn(2, len(roof.free), 3, dtype=F64)
    ours = hessian_by_pushforward(roof)
    jacobian(lambda x: x / x.norm())(moved[0])  # PyTorch imports modules for half a second, once
    found, first = timed(lambda: ours(moved, 1.0))
    later = best_of(5, lambda: ours(moved, 1.0))
    differences, preparing = timed(lambda: hessian_by_differences(roof))
    estimated = differences(moved, 1.0)
    seconds = best_of(3, lambda: differences(moved, 1.0))
    num_groups = group_columns(structure_of(roof)).max() + 1
    _, expected = torch.autograd.functional.vhp(lambda u: roof.energy(u, 1.0), moved, direction)
    product = found @ direction.numpy().ravel()
    np.testing.assert_allclose(product, expected.numpy().ravel(), atol=1e-9 * abs(product).max())
    error = abs(estimated - found).max() / abs(found).max()
    print_table(
        ["one Hessian", "first call", "later", "largest error"],
        [
            ["pushforward", in_units(first), in_units(later), "rounding"],
            [
                f"differences of gradients, {num_groups} groups",
                in_units(preparing + seconds),
                in_units(seconds),
                f"{error:.0e}",
            ],
        ],
    )
    print()


def bend_both_ways(roof: Roof) -> Bent:
    """Print what Newton's method takes with both Hessians, and return what ours led to."""
    rows, found = [], []
    for name, make in {
        "pushforward": hessian_by_pushforward,
        "finite differences": hessian_by_differences,
    }.items():
        bent, seconds = timed(lambda make=make: bend(roof, make(roof)))
        steps = sum(len(imbalances) - 1 for imbalances in bent.imbalances)
        last = ", ".join(f"{x:.0e}" for x in bent.imbalances[-1][-4:])
        rows.append([f"Newton, {name}", str(steps), in_units(seconds), last])
        found.append(bent)
    print_table(["Hessian by", "steps", "time", "imbalance in the last steps"], rows)
    torch.testing.assert_close(found[0].places, found[1].places, atol=1e-5, rtol=0)
    return found[0]


def picture(roof: Roof, bent: Bent) -> Figure:
    """Draw the roof before and after it snaps through, the Hessian, and the way to balance."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.2, 1])
    for part, number in zip(upper.subfigures(1, 2), (-2, -1), strict=True):
        places = bent.places[number]
        sag = float((roof.joints - places)[:, 2].max())
        part.suptitle(f"Load {LOADS[number]:g}: {len(roof.bars)} bars, sagging by {sag:.1f}")
        axis = part.add_axes((0.02, 0, 0.8, 0.95), projection="3d")
        bars = draw_roof(axis, roof, places)
        part.colorbar(bars, cax=part.add_axes((0.87, 0.15, 0.02, 0.65)))
        part.text(0.93, 0.84, "force (pulled: red)", ha="right", fontsize="small")
    left, right = lower.subplots(1, 2, width_ratios=[1, 1.6])
    structure = structure_of(roof)
    spy(structure, left)
    left.set_title(f"Hessian: {structure.nnz} non-zeros")
    for load, imbalances in zip(LOADS, bent.imbalances, strict=True):
        right.semilogy(imbalances, "o-", label=f"load {load:g}")
    right.set(title="Newton's method", xlabel="step", ylabel="forces out of balance / load")
    right.legend()
    return figure


def draw_roof(axis: Any, roof: Roof, places: Tensor) -> Line3DCollection:
    """Draw the bars, colored by the forces in them."""
    forces = roof.forces(places)
    limit = float(forces.abs().quantile(0.97))
    norm = Normalize(-limit, limit)
    bars = Line3DCollection(places[roof.bars].numpy(), cmap="coolwarm", norm=norm, linewidths=0.7)
    bars.set_array(forces.numpy())
    bars.set_clip_on(False)
    axis.add_collection3d(bars)
    size = roof.joints.max(0).values.numpy()
    size[2] *= 2.2
    axis.set(xlim=(0, size[0]), ylim=(0, size[1]), zlim=(-size[2] / 2, size[2] / 2))
    axis.set_box_aspect(size, zoom=1.4)
    axis.view_init(elev=22, azim=-62)
    axis.set_axis_off()
    return bars


def main(num: int = 32) -> None:
    """Make a roof, time its Hessian, bend it, and save the picture."""
    torch.set_num_threads(1)
    roof = make_roof(num)
    print(f"{len(roof.joints)} joints, {len(roof.bars)} bars, {3 * len(roof.free)} unknowns\n")
    time_hessians(roof)
    bent = bend_both_ways(roof)
    print(f"\nPicture: {save(picture(roof, bent), 'truss.png')}")


if __name__ == "__main__":
    main()
