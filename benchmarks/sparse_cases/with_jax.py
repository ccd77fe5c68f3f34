"""The problems in JAX, by asdex: ``python -m sparse_cases.with_jax NAME SIZE CLOCK CORE``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import asdex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from sparse_cases.problems import PROBLEMS, Data
from sparse_cases.serving import Clock, serve

Function = Callable[[Any], Any]


def _reaction(u: Any, v: Any, lap_u: Any, lap_v: Any, scale: float) -> Any:
    uuv = u * u * v
    return jnp.stack([1 + uuv - 4.4 * u + scale * lap_u, 3.4 * u - uuv + scale * lap_v])


def brusselator_roll(d: Any) -> Function:
    def laplace(a: Any) -> Any:
        near = jnp.roll(a, 1, 0) + jnp.roll(a, -1, 0) + jnp.roll(a, 1, 1) + jnp.roll(a, -1, 1)
        return near - 4 * a

    def f(w: Any) -> Any:
        u, v = w
        return _reaction(u, v, laplace(u), laplace(v), d["scale"])

    return f


def brusselator_pad(d: Any) -> Function:
    def f(w: Any) -> Any:
        p = jnp.pad(w, ((0, 0), (1, 1), (1, 1)), mode="wrap")
        lap = p[:, 2:, 1:-1] + p[:, :-2, 1:-1] + p[:, 1:-1, 2:] + p[:, 1:-1, :-2] - 4 * w
        return _reaction(w[0], w[1], lap[0], lap[1], d["scale"])

    return f


def burgers_upwind(d: Any) -> Function:
    def f(u: Any) -> Any:
        p = jnp.pad(u, 1)
        left, right = u - p[:-2], p[2:] - u
        return 0.01 * (right - left) - u * jnp.where(u > 0.5, left, right)

    return f


def heat(d: Any) -> Function:
    def f(u: Any) -> Any:
        p = jnp.pad(u, 1)
        c = slice(1, -1)
        around = (
            p[2:, c, c] + p[:-2, c, c] + p[c, 2:, c] + p[c, :-2, c] + p[c, c, 2:] + p[c, c, :-2]
        )
        return around - 6 * u - 0.1 * u**4

    return f


def broyden(d: Any) -> Function:
    def f(x: Any) -> Any:
        p = jnp.pad(x, 1)
        return (3 - 2 * x) * x - p[:-2] - 2 * p[2:] + 1

    return f


def arrow(d: Any) -> Function:
    def f(x: Any) -> Any:
        return jnp.concatenate([(x**2).sum()[None], x[0] * x[1:] + x[1:] ** 3])

    return f


def bundle_adjustment(d: Any) -> Function:
    def f(x: Any) -> Any:
        split = 9 * d["num_cameras"]
        camera = x[:split].reshape(-1, 9)[d["cameras"]]
        point = x[split:].reshape(-1, 3)[d["points"]]
        turn, shift, focal = camera[:, :3], camera[:, 3:6], camera[:, 6]
        angle = jnp.sqrt((turn * turn).sum(1, keepdims=True))
        axis = turn / angle
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        along = (axis * point).sum(1, keepdims=True)
        crossed = jnp.cross(axis, point)
        turned = point * cosine + crossed * sine + axis * along * (1 - cosine) + shift
        seen = -turned[:, :2] / turned[:, 2:]
        square = (seen * seen).sum(1)
        distorted = focal * (1 + camera[:, 7] * square + camera[:, 8] * square * square)
        return distorted[:, None] * seen - d["seen"]

    return f


def finite_elements(d: Any) -> Function:
    def f(u: Any) -> Any:
        e = u[d["triangles"]]
        conductivity = 1 + e.mean(1) ** 2
        flow = conductivity[:, None] * jnp.einsum("eij,ej->ei", d["stiffness"], e)
        return jnp.zeros_like(u).at[d["triangles"].reshape(-1)].add(flow.reshape(-1))

    return f


def graph_network(d: Any) -> Function:
    def layer(h: Any, own: Any, sent: Any) -> Any:
        message = (h @ sent)[d["source"]]
        return jnp.tanh(h @ own + jnp.zeros_like(h).at[d["target"]].add(message))

    def f(h: Any) -> Any:
        return layer(layer(h, d["first"], d["second"]), d["third"], d["fourth"])

    return f


def batch(d: Any) -> Function:
    def f(x: Any) -> Any:
        return jnp.tanh(x @ d["inner"]) @ d["outer"]

    return f


def convolutions(d: Any) -> Function:
    def conv(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME")

    def f(x: Any) -> Any:
        return conv(jnp.tanh(conv(x, d["inner"])), d["outer"])

    return f


def rosenbrock(d: Any) -> Function:
    def f(x: Any) -> Any:
        return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()

    return f


def springs(d: Any) -> Function:
    def f(x: Any) -> Any:
        along = x[d["begin"]] - x[d["end"]]
        length = jnp.sqrt((along * along).sum(1))
        return ((length - d["rest"]) ** 2).sum() / 2

    return f


def minimal_surface(d: Any) -> Function:
    def f(x: Any) -> Any:
        down, right = x[1:, :-1] - x[:-1, :-1], x[:-1, 1:] - x[:-1, :-1]
        return jnp.sqrt(1 + down**2 + right**2).sum()

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


def as_jax(data: Data) -> dict[str, Any]:
    """Return the data with arrays of JAX."""
    return {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in data.items()}


class Asdex:
    """asdex: detection, colouring, then a call that JAX compiles."""

    def __init__(self, name: str, data: Data) -> None:
        self._name = name
        self._f, self._x = _flat(name, data)
        self._compiled = jax.jit(self._f)
        self.parts: dict[str, float] = {}
        self.numbers: dict[str, int] = {}

    def prepare(self, clock: Clock) -> None:
        detect, color, make = _steps(self._name)
        times = [clock()]
        pattern = detect(self._f, self._x)
        times.append(clock())
        coloring = color(pattern)
        times.append(clock())
        self._derivative = jax.jit(make(self._f, coloring))
        self._last = self._derivative(self._x)
        self._last.data.block_until_ready()
        times.append(clock())
        spans = [end - start for start, end in itertools.pairwise(times)]
        self.parts = dict(zip(("detect", "color", "compile"), spans, strict=True))
        self._pattern = pattern
        self.numbers = {
            "columns": pattern.shape[1],
            "stored": pattern.nnz,
            "colors": coloring.num_colors,
        }

    def value(self) -> Any:
        return self._compiled(self._x).block_until_ready()

    def matrix(self) -> Any:
        self._last = self._derivative(self._x)
        return self._last.data.block_until_ready()

    def product(self, vector: np.ndarray) -> np.ndarray:
        pattern, values = self._pattern, np.asarray(self._last.data)
        entries = (np.asarray(pattern.rows), np.asarray(pattern.cols))
        return scipy.sparse.coo_array((values, entries), shape=pattern.shape) @ vector

    def true(self) -> dict[str, int]:
        problem = PROBLEMS[self._name]
        flat = _flat(self._name, problem.data(problem.small))
        return {"stored": _steps(self._name)[0](*flat).nnz}


def _flat(name: str, data: Data) -> tuple[Function, Any]:
    """Return a function of a vector, and the point: matrices of tensors overflow int32 in JAX."""
    found = as_jax(data)
    x = found.pop("x")
    f, shape = FUNCTIONS[name](found), x.shape
    as_is = PROBLEMS[name].is_hessian
    return lambda v: f(v.reshape(shape)) if as_is else f(v.reshape(shape)).reshape(-1), x.reshape(
        -1
    )


def _steps(name: str) -> tuple[Any, Any, Any]:
    if PROBLEMS[name].is_hessian:
        color, make = asdex.hessian_coloring_from_sparsity, asdex.hessian_from_coloring
        return asdex.hessian_sparsity, color, make
    color, make = asdex.jacobian_coloring_from_sparsity, asdex.jacobian_from_coloring
    return asdex.jacobian_sparsity, color, make


def warm_up() -> None:
    """Differentiate other functions, so that what is imported or compiled at first use is."""
    x = jnp.linspace(0.0, 1.0, 5)
    jax.block_until_ready(jax.jit(asdex.jacobian(lambda x: jnp.sin(x) * jnp.flip(x), x))(x))
    jax.block_until_ready(jax.jit(asdex.hessian(lambda x: (x**3).sum(), x))(x))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    serve(Asdex, warm_up)
