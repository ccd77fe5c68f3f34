"""Bundle adjustment: cameras and points from what the cameras saw, by Gauss-Newton with sparse Jacobians.

The scene is made up, and its cameras have the nine parameters of the BAL data sets (Agarwal, Snavely, Seitz, Szeliski,
Bundle Adjustment in the Large, 2010): rotation, translation, focal length, two coefficients of radial distortion.
Each pixel depends on one camera and one point: the Jacobian is one 2×9 and one 2×3 block a row, and the points are
eliminated before the cameras are solved for (Schur complement).
Run it by ``.venv/bin/python examples/bundle_adjustment.py`` (under a minute). It saves out/bundle_adjustment.png.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Line3DCollection
from reporting import best_of, in_units, print_table, save, timed
from scipy.optimize import least_squares
from scipy.optimize._numdiff import approx_derivative, group_columns  # what jac_sparsity= calls
from scipy.sparse import bsr_array, csr_array, hstack
from torch import Tensor

from pushforward import jacobian, pattern, spy

F64 = torch.float64
NOISE = 0.5  # pixels


# ---- Scene ----


@dataclass(frozen=True)
class Scene:
    """Who saw what: pixels ``(n, 2)`` of the points ``point_ids`` in the cameras ``camera_ids``."""

    cameras: Tensor  # (c, 9), as they really are
    points: Tensor  # (p, 3)
    camera_ids: Tensor
    point_ids: Tensor
    pixels: Tensor

    def seen(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return camera, point and place of each observation."""
        return self.camera_ids, self.point_ids, self.pixels

    def residuals(self, cameras: Tensor, points: Tensor) -> Tensor:
        """Return by how many pixels ``(n, 2)`` the points are seen elsewhere than they should be."""
        return project(cameras[self.camera_ids], points[self.point_ids]) - self.pixels


def project(cameras: Tensor, points: Tensor) -> Tensor:
    """Return where cameras ``(n, 9)`` see points ``(n, 3)``, in pixels ``(n, 2)``."""
    turn, shift = cameras[:, :3], cameras[:, 3:6]
    focal, first, second = cameras[:, 6:].unsqueeze(-1).unbind(1)
    seen = rotate(turn, points) + shift
    x = -seen[:, :2] / seen[:, 2:]
    square = (x * x).sum(1, keepdim=True)
    return focal * (1 + square * (first + second * square)) * x


def rotate(turn: Tensor, points: Tensor) -> Tensor:
    """Turn points around the axes ``turn`` by their lengths (Rodrigues' formula)."""
    angle = turn.norm(dim=1, keepdim=True)
    axis = turn / angle
    along = (axis * points).sum(1, keepdim=True) * axis
    return along + angle.cos() * (points - along) + angle.sin() * axis.cross(points, dim=1)


def make_scene(num_cameras: int, num_points: int) -> Scene:
    """Put cameras on a winding path around a knotted tube, of which each sees what faces it."""
    torch.manual_seed(0)
    along, around = 2 * torch.pi * torch.rand(2, num_points, dtype=F64)  # on the tube
    center = knot(along)
    tangent = knot(along + 1e-4) - center
    side = torch.linalg.cross(tangent, center)
    side, up = (v / v.norm(dim=1, keepdim=True) for v in (side, torch.linalg.cross(tangent, side)))
    outward = around.cos()[:, None] * side + around.sin()[:, None] * up
    points = center + 0.5 * outward
    angles = 2 * torch.pi * torch.arange(num_cameras, dtype=F64) / num_cameras
    positions = torch.stack(
        [7 * angles.cos(), 7 * angles.sin(), 2.5 + 2 * (3 * angles).sin()], dim=1
    )
    turns = torch.stack([look_at_origin(position) for position in positions])
    shifts = -rotate(turns, positions)
    lens = torch.tensor([800.0, -0.05, 0.01], dtype=F64).expand(num_cameras, 3)
    cameras = torch.cat([turns, shifts, lens], dim=1)
    facing = ((positions[:, None] - points) * outward).sum(2) > 1.0
    seen = facing & (torch.rand(facing.shape) < 0.5)
    is_kept = seen.sum(0) >= 3
    points, (camera_ids, point_ids) = points[is_kept], seen[:, is_kept].nonzero().unbind(1)
    pixels = project(cameras[camera_ids], points[point_ids])
    pixels = pixels + NOISE * torch.randn_like(pixels)
    return Scene(cameras, points, camera_ids, point_ids, pixels)


def disturbed(scene: Scene) -> tuple[Tensor, Tensor]:
    """Return cameras and points to start from: turned, moved, out of focus, and without distortion."""
    cameras, points = scene.cameras.clone(), scene.points
    cameras[:, :3] += 0.05 * torch.randn_like(cameras[:, :3])
    cameras[:, 3:6] += 0.25 * torch.randn_like(cameras[:, 3:6])
    cameras[:, 6:] *= torch.tensor([1.05, 0, 0], dtype=F64)
    return cameras, points + 0.2 * torch.randn_like(points)


def knot(angle: Tensor) -> Tensor:
    """Return points of a trefoil knot."""
    return torch.stack(
        [
            angle.sin() + 2 * (2 * angle).sin(),
            angle.cos() - 2 * (2 * angle).cos(),
            -(3 * angle).sin(),
        ],
        dim=1,
    )


def look_at_origin(position: Tensor) -> Tensor:
    """Return the rotation vector of a camera that looks along its negative z axis at the origin."""
    back = position / position.norm()
    right = torch.linalg.cross(torch.tensor([0, 0, 1.0], dtype=F64), back)
    right = right / right.norm()
    matrix = torch.stack([right, torch.linalg.cross(back, right), back])
    angle = ((matrix.trace() - 1) / 2).clamp(-1, 1).acos()
    lower = matrix - matrix.T
    axis = torch.stack([lower[2, 1], lower[0, 2], lower[1, 0]])
    return axis / axis.norm() * angle


# ---- Gauss-Newton ----

Jacobians = Callable[[Tensor, Tensor], tuple[bsr_array, bsr_array]]


def jacobians_by_pushforward(scene: Scene) -> Jacobians:
    """Return the Jacobians by cameras and by points as matrices of 2×9 and 2×3 blocks."""
    blocks = jacobian(scene.residuals, argnums=(0, 1), output="bsr")

    def at(cameras: Tensor, points: Tensor) -> tuple[bsr_array, bsr_array]:
        by_cameras, by_points = map(bsr_for_scipy, blocks(cameras, points))
        return by_cameras, by_points

    return at


def bsr_for_scipy(matrix: Tensor) -> bsr_array:
    """Return a sparse tensor of blocks as SciPy has it; the values are shared."""
    arrays = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
    return bsr_array(tuple(array.numpy() for array in arrays), shape=matrix.shape)


def jacobians_by_differences(scene: Scene) -> Jacobians:
    """Return the same by SciPy's finite differences, with columns grouped once."""
    function, structure = of_one_vector(scene), structure_of(scene)
    groups = group_columns(structure)
    num = 9 * len(scene.cameras)

    def at(cameras: Tensor, points: Tensor) -> tuple[bsr_array, bsr_array]:
        x = as_one_vector(cameras, points)
        jac = approx_derivative(function, x, "2-point", sparsity=(structure, groups)).tocsr()
        return jac[:, :num].tobsr((2, 9)), jac[:, num:].tobsr((2, 3))

    return at


@dataclass
class Adjusted:
    """Cameras and points found, the root mean square residual after each step, and when."""

    cameras: Tensor
    points: Tensor
    errors: list[float]
    seconds: list[float]


def adjust(scene: Scene, start: tuple[Tensor, Tensor], jacobians: Jacobians) -> Adjusted:
    """Take damped Gauss-Newton steps (Levenberg-Marquardt) until they no longer help."""
    begin, damping = time.process_time(), 1e-4
    cameras, points = start
    residuals = scene.residuals(cameras, points)
    errors, seconds = [rms(residuals)], [0.0]
    while len(errors) < 3 or errors[-1] < (1 - 1e-8) * errors[-2]:
        matrices = jacobians(cameras, points)
        while damping < 1e8:
            camera_step, point_step = schur_step(*matrices, residuals, damping)
            moved = cameras + camera_step.view_as(cameras), points + point_step.view_as(points)
            tried = scene.residuals(*moved)
            if rms(tried) <= errors[-1]:
                (cameras, points), residuals, damping = moved, tried, damping / 10
                break
            damping *= 10
        errors.append(rms(residuals))
        seconds.append(time.process_time() - begin)
    return Adjusted(cameras, points, errors, seconds)


def schur_step(
    by_cameras: bsr_array, by_points: bsr_array, residuals: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    """Solve the damped normal equations: the points' part of the matrix is inverted block by block."""
    r = residuals.numpy().ravel()
    corner = damped(by_cameras.T @ by_cameras, damping).toarray()
    mixed = by_cameras.T @ by_points
    inverse = damped(by_points.T @ by_points, damping).tobsr((3, 3))
    inverse.data = np.linalg.inv(inverse.data)
    to_points = mixed @ inverse
    gradient, point_gradient = by_cameras.T @ r, by_points.T @ r
    complement = corner - (to_points @ mixed.T).toarray()
    camera_step = np.linalg.solve(complement, to_points @ point_gradient - gradient)
    point_step = inverse @ (-point_gradient - mixed.T @ camera_step)
    return torch.from_numpy(camera_step), torch.from_numpy(point_step)


def damped(matrix: Any, damping: float) -> csr_array:
    """Enlarge the diagonal (Marquardt)."""
    matrix = matrix.tocsr()
    matrix.setdiag(matrix.diagonal() * (1 + damping) + 1e-12)
    return matrix


def rms(residuals: Tensor) -> float:
    """Return the root mean square of the residuals, in pixels."""
    return float(residuals.square().mean().sqrt())


# ---- The same as one vector, for scipy.optimize ----


def as_one_vector(cameras: Tensor, points: Tensor) -> np.ndarray:
    """Return cameras, then points."""
    return torch.cat([cameras.flatten(), points.flatten()]).numpy()


def of_one_vector(scene: Scene) -> Callable[[np.ndarray], np.ndarray]:
    """Return the residuals as SciPy calls them."""
    num = scene.cameras.numel()

    def function(x: np.ndarray) -> np.ndarray:
        both = torch.from_numpy(x)
        return scene.residuals(both[:num].view(-1, 9), both[num:].view(-1, 3)).numpy().ravel()

    return function


def jacobian_of_one_vector(scene: Scene) -> Callable[[np.ndarray], csr_array]:
    """Return the Jacobian by that vector as SciPy calls it."""
    num = scene.cameras.numel()

    def residuals(x: Tensor) -> Tensor:
        return scene.residuals(x[:num].view(-1, 9), x[num:].view(-1, 3))

    whole = jacobian(residuals, output="csr")

    def at(x: np.ndarray) -> csr_array:
        matrix = whole(torch.from_numpy(x))
        arrays = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
        return csr_array(tuple(array.numpy() for array in arrays), shape=matrix.shape)

    return at


def structure_of(scene: Scene) -> csr_array:
    """Return where the Jacobian by that vector may be non-zero."""
    both = pattern(scene.residuals, scene.cameras, scene.points, argnums=(0, 1))
    return hstack([part.to_scipy() for part in both]).tocsr()


# ---- Report ----


def time_jacobians(scene: Scene, cameras: Tensor, points: Tensor) -> None:
    """Print what one Jacobian takes, and hold ours against PyTorch's own derivative."""
    ours, differences = jacobians_by_pushforward(scene), jacobians_by_differences(scene)
    found, first = timed(lambda: ours(cameras, points))
    later = best_of(5, lambda: ours(cameras, points))
    estimated = differences(cameras, points)
    by_differences = best_of(3, lambda: differences(cameras, points))
    directions = torch.randn_like(cameras), torch.randn_like(points)
    _, product = torch.func.jvp(scene.residuals, (cameras, points), directions)
    mine = sum(m @ d.numpy().ravel() for m, d in zip(found, directions, strict=True))
    np.testing.assert_allclose(mine, product.numpy().ravel(), rtol=1e-9, atol=1e-7)
    error = max(abs(e - m).max() / abs(m).max() for e, m in zip(estimated, found, strict=True))
    print_table(
        ["one Jacobian", "first call", "later", "largest error"],
        [
            ["pushforward", in_units(first), in_units(later), "rounding"],
            ["finite differences, 12 groups", "", in_units(by_differences), f"{error:.0e}"],
        ],
    )
    print()


def solve(scene: Scene, start: tuple[Tensor, Tensor]) -> dict[str, Adjusted]:
    """Adjust in four ways, print what they took, and return those of Gauss-Newton."""
    found, rows = {}, []
    for name, make in {
        "pushforward": jacobians_by_pushforward,
        "finite differences": jacobians_by_differences,
    }.items():
        found[name] = adjusted = adjust(scene, start, make(scene))
        steps, seconds = len(adjusted.errors) - 1, in_units(adjusted.seconds[-1])
        rows.append(
            [f"Schur complement, {name}", str(steps), seconds, f"{adjusted.errors[-1]:.6f}"]
        )
    x, function = as_one_vector(*start), of_one_vector(scene)
    for name, options in {
        "pushforward": {"jac": jacobian_of_one_vector(scene)},
        "finite differences": {"jac_sparsity": structure_of(scene)},
    }.items():
        solved, seconds = timed(
            lambda options=options: least_squares(function, x, x_scale="jac", **options)
        )
        error = float(np.sqrt(np.mean(solved.fun**2)))
        rows.append(
            [f"SciPy's least_squares, {name}", str(solved.njev), in_units(seconds), f"{error:.6f}"]
        )
    print_table(["solver, Jacobian by", "Jacobians", "time", "rms in pixels"], rows)
    if not all(row[3] == rows[0][3] for row in rows):
        raise AssertionError("the solvers end at different places")
    return found


def picture(scene: Scene, start: tuple[Tensor, Tensor], found: dict[str, Adjusted]) -> Figure:
    """Draw the scene before and after, the normal matrix, and the way there."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    best = found["pushforward"]
    for part, title, error, scenery in zip(
        upper.subfigures(1, 2),
        ("Start", "Adjusted"),
        (best.errors[0], best.errors[-1]),
        (start, (best.cameras, best.points)),
        strict=True,
    ):
        part.suptitle(f"{title}: {error:.2f} pixels off (noise {NOISE})")
        draw_scene(part.add_axes((0, 0, 1, 0.95), projection="3d"), *scenery)
    left, right = lower.subplots(1, 2, width_ratios=[1, 1.6])
    some = scene.point_ids < 150
    smaller = Scene(scene.cameras, scene.points[:150], *[x[some] for x in scene.seen()])
    structure = structure_of(smaller).astype(int)
    spy(structure.T @ structure, left)
    left.set_title(f"JᵀJ: {len(scene.cameras)} cameras, 150 of {len(scene.points)} points")
    for (name, adjusted), line in zip(found.items(), ("o-", "s--"), strict=True):
        right.semilogy(adjusted.seconds, adjusted.errors, line, label=name)
    right.axhline(NOISE, color="gray", linewidth=1, label="noise of the pixels")
    title = f"Gauss-Newton, {len(scene.pixels)} pixels seen"
    right.set(title=title, xlabel="seconds", ylabel="root mean square residual")
    right.legend()
    return figure


def draw_scene(axis: Any, cameras: Tensor, points: Tensor) -> None:
    """Draw points, colored by height, and cameras as small pyramids."""
    x, y, z = points.numpy().T
    axis.scatter(x, y, z, c=z, cmap="viridis", s=1.5, alpha=0.8, linewidths=0)
    corners = torch.tensor([[1, 1, -1.6], [1, -1, -1.6], [-1, -1, -1.6], [-1, 1, -1.6]], dtype=F64)
    for camera in cameras:
        back = -camera[:3].expand(5, 3)
        frame = torch.cat([torch.zeros(1, 3, dtype=F64), 0.35 * corners])
        tip, *ring = rotate(back, frame - camera[3:6]).tolist()
        edges = [[tip, corner] for corner in ring]
        edges += [[a, b] for a, b in zip(ring, ring[1:] + ring[:1], strict=True)]
        pyramid = Line3DCollection(edges, colors="tab:red", linewidths=0.8)
        pyramid.set_clip_on(False)
        axis.add_collection3d(pyramid)
    axis.set(xlim=(-6, 6), ylim=(-6, 6), zlim=(-2.5, 4.5))
    axis.set_box_aspect((12, 12, 7), zoom=1.45)
    axis.view_init(elev=28, azim=-60)
    axis.set_axis_off()


def main(num_cameras: int = 48, num_points: int = 6000) -> None:
    """Make a scene, time its Jacobians, adjust it, and save the picture."""
    torch.set_num_threads(1)
    scene = make_scene(num_cameras, num_points)
    start = disturbed(scene)
    print(
        f"{num_cameras} cameras, {len(scene.points)} points, {len(scene.pixels)} pixels seen: a Jacobian of "
        f"{2 * len(scene.pixels)}×{sum(x.numel() for x in start)}\n"
    )
    time_jacobians(scene, *start)
    found = solve(scene, start)
    print(f"\nPicture: {save(picture(scene, start, found), 'bundle_adjustment.png')}")


if __name__ == "__main__":
    main()
