"""A robot arm with three joints: where its hand moves freely, and how it follows a path.

The Jacobian of the hand's place by the joints' angles tells how fast the hand can move in each direction: joints that
turn at unit speed take it into an ellipse, whose area is the manipulability. Arms that are stretched or folded have
none.
Run it by ``.venv/bin/python examples/robot_arm.py`` (seconds). It saves out/robot_arm.png.
"""

from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from reporting import print_table, save
from torch import Tensor

from pushforward import jacobian, value_and_jacobian, vmap

F64 = torch.float64
BARS = torch.tensor([1.0, 0.8, 0.5], dtype=F64)


def joints(angles: Tensor) -> Tensor:
    """Return the places of the joints and of the hand, ``(4, 2)``."""
    directions = angles.cumsum(0)
    steps = BARS[:, None] * torch.stack([directions.cos(), directions.sin()], dim=1)
    return torch.cat([torch.zeros(1, 2, dtype=F64), steps.cumsum(0)])


def hand(angles: Tensor) -> Tensor:
    """Return the place of the hand."""
    return joints(angles)[-1]


def manipulability(jac: Tensor) -> Tensor:
    """Return the area, but for π, of the ellipse that the hand can reach at unit speed of the joints."""
    return torch.linalg.det(jac @ jac.mT).clamp(min=0).sqrt()


# ---- Where the hand can be ----


@dataclass(frozen=True)
class Workspace:
    """Places of the hand ``(n, 2)`` and its manipulability there ``(n,)``."""

    places: Tensor
    areas: Tensor


def workspace(num: int) -> Workspace:
    """Try ``num`` arms."""
    angles = (2 * torch.rand(num, 3, dtype=F64) - 1) * torch.tensor([torch.pi, 2.5, 2.5])
    places, jacobians = vmap(value_and_jacobian(hand))(angles)
    # By hand: turning joint i moves the hand at right angles to the line from the joint to it.
    arms = places[:, None] - torch.func.vmap(joints)(angles)[:, :3]
    by_hand = torch.stack([-arms[..., 1], arms[..., 0]], dim=1)
    torch.testing.assert_close(jacobians, by_hand)
    return Workspace(places, manipulability(jacobians))


# ---- A path ----


@dataclass(frozen=True)
class Followed:
    """Angles along the way ``(n, 3)``, and by how much the hand is off the path ``(n,)``."""

    angles: Tensor
    errors: Tensor


def path(num: int) -> Tensor:
    """Return a path like an eight, ``(num, 2)``."""
    t = torch.linspace(0, 2 * torch.pi, num, dtype=F64)
    return torch.stack([1.1 + 0.5 * t.sin(), 0.7 + 0.45 * (2 * t).sin()], dim=1)


def follow(targets: Tensor) -> Followed:
    """Bring the hand to one target after another by Newton's method, with the smallest turns that do."""
    angles = torch.tensor([-0.4, 1.2, 0.8], dtype=F64)
    found, errors = [], []
    at_hand = value_and_jacobian(hand)
    for target in targets:
        for _ in range(20):
            place, jac = at_hand(angles)
            if (target - place).norm() < 1e-12:
                break
            angles = angles + jac.T @ torch.linalg.solve(jac @ jac.T, target - place)
        found.append(angles)
        errors.append((target - hand(angles)).norm())
    return Followed(torch.stack(found), torch.stack(errors))


# ---- Picture ----


def picture(space: Workspace, targets: Tensor, followed: Followed) -> Figure:
    """Draw where the hand moves freely, and the arm on its way."""
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = left.hexbin(*space.places.T, C=space.areas, gridsize=60, reduce_C_function=max)
    figure.colorbar(shown, ax=left, shrink=0.8, label="largest manipulability, √det JJᵀ")
    left.set(title="Where the hand can be, and how freely it moves there", aspect="equal")
    right.plot(*targets.T, color="tab:gray", linewidth=1)
    num = len(targets)
    for angles in followed.angles[:: num // 12]:
        draw_arm(right, angles)
    right.set(title="Following a path, with ellipses of velocity", aspect="equal")
    right.margins(0.08)
    return figure


def draw_arm(axis: Any, angles: Tensor) -> None:
    """Draw an arm and the ellipse of its hand's velocities, a tenth as large."""
    places = joints(angles)
    axis.plot(*places.T, "o-", color="tab:blue", alpha=0.35, markersize=3)
    directions, lengths, _ = torch.linalg.svd(jacobian(hand)(angles))
    turn = torch.rad2deg(torch.atan2(directions[1, 0], directions[0, 0]))
    width, height = (0.2 * lengths).tolist()
    axis.add_patch(
        Ellipse(places[-1].tolist(), width, height, angle=float(turn), fill=False, color="tab:red")
    )


def main(num_arms: int = 200_000, num_targets: int = 240) -> None:
    """Take many Jacobians, follow the path, print how well, and save the picture."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    space = workspace(num_arms)
    targets = path(num_targets)
    followed = follow(targets)
    print_table(
        ["robot arm", "number"],
        [
            ["Jacobians at once, equal to those by hand", str(num_arms)],
            ["targets on the path", str(num_targets)],
            ["largest distance from a target", f"{followed.errors.max():.0e}"],
        ],
    )
    if followed.errors.max() > 1e-10:
        raise AssertionError("the hand left the path")
    print(f"\nPicture: {save(picture(space, targets, followed), 'robot_arm.png')}")


if __name__ == "__main__":
    main()
