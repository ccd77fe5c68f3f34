"""The problems in PyTorch, by pushforward: ``python -m sparse_cases.with_torch NAME SIZE CLOCK CORE``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pushforward as pf
from sparse_cases.problems import PROBLEMS, Data
from sparse_cases.serving import Clock, serve

Function = Callable[[Tensor], Tensor]


def _reaction(u: Tensor, v: Tensor, lap_u: Tensor, lap_v: Tensor, scale: float) -> Tensor:
    uuv = u * u * v
    return torch.stack([1 + uuv - 4.4 * u + scale * lap_u, 3.4 * u - uuv + scale * lap_v])


def brusselator_roll(d: Any) -> Function:
    def laplace(a: Tensor) -> Tensor:
        return a.roll(1, 0) + a.roll(-1, 0) + a.roll(1, 1) + a.roll(-1, 1) - 4 * a

    def f(w: Tensor) -> Tensor:
        u, v = w
        return _reaction(u, v, laplace(u), laplace(v), d["scale"])

    return f


def brusselator_pad(d: Any) -> Function:
    def f(w: Tensor) -> Tensor:
        p = F.pad(w, (1, 1, 1, 1), mode="circular")
        lap = p[:, 2:, 1:-1] + p[:, :-2, 1:-1] + p[:, 1:-1, 2:] + p[:, 1:-1, :-2] - 4 * w
        return _reaction(w[0], w[1], lap[0], lap[1], d["scale"])

    return f


def burgers_upwind(d: Any) -> Function:
    def f(u: Tensor) -> Tensor:
        p = F.pad(u, (1, 1))
        left, right = u - p[:-2], p[2:] - u
        return 0.01 * (right - left) - u * torch.where(u > 0.5, left, right)

    return f


def heat(d: Any) -> Function:
    def f(u: Tensor) -> Tensor:
        p = F.pad(u, (1, 1, 1, 1, 1, 1))
        c = slice(1, -1)
        around = (
            p[2:, c, c] + p[:-2, c, c] + p[c, 2:, c] + p[c, :-2, c] + p[c, c, 2:] + p[c, c, :-2]
        )
        return around - 6 * u - 0.1 * u**4

    return f


def broyden(d: Any) -> Function:
    def f(x: Tensor) -> Tensor:
        p = F.pad(x, (1, 1))
        return (3 - 2 * x) * x - p[:-2] - 2 * p[2:] + 1

    return f


def arrow(d: Any) -> Function:
    def f(x: Tensor) -> Tensor:
        return torch.cat([(x**2).sum()[None], x[0] * x[1:] + x[1:] ** 3])

    return f


def bundle_adjustment(d: Any) -> Function:
    def f(x: Tensor) -> Tensor:
        split = 9 * d["num_cameras"]
        camera = x[:split].reshape(-1, 9)[d["cameras"]]
        point = x[split:].reshape(-1, 3)[d["points"]]
        turn, shift, focal = camera[:, :3], camera[:, 3:6], camera[:, 6]
        angle = torch.sqrt((turn * turn).sum(1, keepdim=True))
        axis = turn / angle
        cosine, sine = torch.cos(angle), torch.sin(angle)
        along = (axis * point).sum(1, keepdim=True)
        crossed = torch.linalg.cross(axis, point)
        turned = point * cosine + crossed * sine + axis * along * (1 - cosine) + shift
        seen = -turned[:, :2] / turned[:, 2:]
        square = (seen * seen).sum(1)
        distorted = focal * (1 + camera[:, 7] * square + camera[:, 8] * square * square)
        return distorted[:, None] * seen - d["seen"]

    return f


def finite_elements(d: Any) -> Function:
    def f(u: Tensor) -> Tensor:
        e = u[d["triangles"]]
        conductivity = 1 + e.mean(1) ** 2
        flow = conductivity[:, None] * torch.einsum("eij,ej->ei", d["stiffness"], e)
        return torch.zeros_like(u).index_add(0, d["triangles"].reshape(-1), flow.reshape(-1))

    return f


def graph_network(d: Any) -> Function:
    def layer(h: Tensor, own: Tensor, sent: Tensor) -> Tensor:
        message = (h @ sent)[d["source"]]
        return torch.tanh(h @ own + torch.zeros_like(h).index_add(0, d["target"], message))

    def f(h: Tensor) -> Tensor:
        return layer(layer(h, d["first"], d["second"]), d["third"], d["fourth"])

    return f


def batch(d: Any) -> Function:
    def f(x: Tensor) -> Tensor:
        return torch.tanh(x @ d["inner"]) @ d["outer"]

    return f


def convolutions(d: Any) -> Function:
    def f(x: Tensor) -> Tensor:
        return F.conv2d(torch.tanh(F.conv2d(x, d["inner"], padding=1)), d["outer"], padding=1)

    return f


def rosenbrock(d: Any) -> Function:
    def f(x: Tensor) -> Tensor:
        return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()

    return f


def springs(d: Any) -> Function:
    def f(x: Tensor) -> Tensor:
        along = x[d["begin"]] - x[d["end"]]
        length = torch.sqrt((along * along).sum(1))
        return ((length - d["rest"]) ** 2).sum() / 2

    return f


def minimal_surface(d: Any) -> Function:
    def f(x: Tensor) -> Tensor:
        down, right = x[1:, :-1] - x[:-1, :-1], x[:-1, 1:] - x[:-1, :-1]
        return torch.sqrt(1 + down**2 + right**2).sum()

    return f


FUNCTIONS: dict[str, Callable[[Any], Function]] = {
    "brusselator roll": brusselator_roll,
    "brusselator pad": brusselator_pad,
    "burgers upwind": burgers_upwind,
    "heat 3-D": heat,
    "broyden tridiagonal": broyden,
    "arrow": arrow,
    "bundle adjustment": bundle_adjustment,
    "finite elements": finite_elements,
    "graph network": graph_network,
    "batch": batch,
    "convolutions": convolutions,
    "rosenbrock": rosenbrock,
    "springs": springs,
    "minimal surface": minimal_surface,
}


def as_torch(data: Data) -> dict[str, Any]:
    """Return the data with tensors in place of arrays."""
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in data.items()}


class Ours:
    """pushforward."""

    def __init__(self, name: str, data: Data) -> None:
        self._name = name
        found = as_torch(data)
        self._x = found.pop("x")
        self._f = FUNCTIONS[name](found)
        self.parts: dict[str, float] = {}
        self.numbers: dict[str, int] = {}

    def prepare(self, clock: Clock) -> None:
        transform = pf.hessian if PROBLEMS[self._name].is_hessian else pf.jacobian
        self._derivative = transform(self._f, output="csr")
        if os.environ.get("COMPILED"):
            self._derivative = pf.compile(self._derivative)
        self._last = self._derivative(self._x)
        self.numbers = {"columns": self._last.shape[1], "stored": self._last.values().numel()}

    def value(self) -> Any:
        return self._f(self._x)

    def matrix(self) -> Any:
        self._last = self._derivative(self._x)
        return self._last

    def product(self, vector: np.ndarray) -> np.ndarray:
        return (self._last @ torch.from_numpy(vector)).numpy()

    def true(self) -> dict[str, int]:
        problem, nonzero = PROBLEMS[self._name], None
        dense = torch.func.hessian if problem.is_hessian else torch.func.jacrev
        for seed in range(3):
            data = as_torch(problem.data(problem.small, seed))
            x = data.pop("x")
            found = dense(FUNCTIONS[self._name](data))(x).reshape(-1, x.numel()) != 0
            nonzero = found if nonzero is None else nonzero | found
        transform = pf.hessian if problem.is_hessian else pf.jacobian
        stored = transform(FUNCTIONS[self._name](data), output="csr")(x)
        return {"stored": stored.values().numel(), "true": int(nonzero.sum())}


def warm_up() -> None:
    """Differentiate other functions, so that what is imported or compiled at first use is."""
    for _ in range(3):
        x = torch.rand(5, dtype=torch.float64)
        pf.jacobian(lambda x: x.sin() * x.flip(0), output="csr")(x)
        pf.hessian(lambda x: (x**3).sum(), output="csr")(x)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(Ours, warm_up)
