"""The problems of the sparse benchmark: their sizes, points and constants, for any library. NumPy and SciPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial import Delaunay

Data = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A function to differentiate, at several sizes."""

    name: str
    make: Callable[[int], Data]  # from a size; "x" is the point
    sizes: tuple[int, ...]
    small: int  # for which the dense matrix is formed
    is_hessian: bool = False

    def data(self, size: int, seed: int = 0) -> Data:
        """Return the constants, and the point ``x`` that ``seed`` draws."""
        found = self.make(size)
        shape = found.pop("shape")
        found["x"] = np.random.default_rng(seed).uniform(0.1, 1.1, shape)
        return found


def _rng(size: int) -> np.random.Generator:
    return np.random.default_rng(size)


def _mesh(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the points and the triangles of an unstructured mesh of the unit square."""
    points = _rng(size).uniform(0, 1, (size, 2))
    return points, Delaunay(points).simplices.astype(np.int64)


def brusselator(size: int) -> Data:
    """Two fields on a periodic grid."""
    return {"shape": (2, size, size), "scale": 10.0 / (1 / size) ** 2}


def finite_elements(size: int) -> Data:
    """Stiffness matrices of linear triangles."""
    points, triangles = _mesh(size)
    corners = points[triangles]
    edges = np.roll(corners, -1, 1) - np.roll(corners, 1, 1)
    normals = np.stack([-edges[..., 1], edges[..., 0]], -1)
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / 2
    stiffness = np.einsum("eik,ejk->eij", normals, normals) / (4 * area[:, None, None])
    return {"shape": (size,), "triangles": triangles, "stiffness": stiffness}


def bundle_adjustment(size: int) -> Data:
    """Cameras of nine parameters, points of three, four cameras that see each point."""
    num_cameras, rng = max(size // 40, 5), _rng(size)
    seen = np.argsort(rng.uniform(size=(size, num_cameras)), 1)[:, :4]
    return {
        "shape": (9 * num_cameras + 3 * size,),
        "cameras": np.sort(seen, 1).reshape(-1).astype(np.int64),
        "points": np.arange(size, dtype=np.int64).repeat(4),
        "num_cameras": num_cameras,
        "seen": rng.uniform(-1, 1, (4 * size, 2)),
    }


def graph_network(size: int) -> Data:
    """A random graph of about six neighbours a node, four features."""
    rng = _rng(size)
    pairs = _edges(_mesh(size)[1])
    names = ("first", "second", "third", "fourth")
    weights = {name: rng.normal(size=(4, 4)) / 2 for name in names}
    return {
        "shape": (size, 4),
        "source": np.concatenate([pairs[:, 0], pairs[:, 1]]),
        "target": np.concatenate([pairs[:, 1], pairs[:, 0]]),
        **weights,
    }


def _edges(triangles: np.ndarray) -> np.ndarray:
    pairs = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    return np.unique(np.sort(pairs, 1), axis=0)


def batch(size: int) -> Data:
    """A network of four inputs, sixteen hidden units and one output, of a batch."""
    rng = _rng(size)
    return {"shape": (size, 4), "inner": rng.normal(size=(4, 16)), "outer": rng.normal(size=16)}


def convolutions(size: int) -> Data:
    """Two convolutions of an image."""
    rng = _rng(size)
    kernels = {"inner": rng.normal(size=(4, 1, 3, 3)), "outer": rng.normal(size=(1, 4, 3, 3))}
    return {"shape": (1, 1, size, size), **kernels}


def springs(size: int) -> Data:
    """Nodes in the plane, springs along the edges of a mesh."""
    points, triangles = _mesh(size)
    pairs = _edges(triangles)
    rest = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    return {"shape": (size, 2), "begin": pairs[:, 0], "end": pairs[:, 1], "rest": rest}


def _line(size: int) -> Data:
    return {"shape": (size,)}


def _square(size: int) -> Data:
    return {"shape": (size, size)}


def _cube(size: int) -> Data:
    return {"shape": (size, size, size)}


GRIDS = (32, 100, 316, 708)
PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("brusselator roll", brusselator, GRIDS, 6),
        Problem("brusselator pad", brusselator, GRIDS, 6),
        Problem("burgers upwind", _line, (100_000,), 30),
        Problem("heat 3-D", _cube, (40,), 5),
        Problem("broyden tridiagonal", _line, (100_000,), 30),
        Problem("arrow", _line, (1_000,), 30),
        Problem("bundle adjustment", bundle_adjustment, (2_000,), 12),
        Problem("finite elements", finite_elements, (5_000,), 40),
        Problem("graph network", graph_network, (500,), 30),
        Problem("batch", batch, (100, 10_000), 10),
        Problem("convolutions", convolutions, (64,), 9),
        Problem("rosenbrock", _line, (10_000,), 30, True),
        Problem("springs", springs, (2_000,), 20, True),
        Problem("minimal surface", _square, (100,), 7, True),
    )
}
