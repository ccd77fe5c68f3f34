"""Derivatives by pushforward, in the form of ``references``: real matrices and vectors."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from entries import Case, Point, seeded
from references import like_point, real_vector, size
from torch import Tensor

import pushforward
from pushforward.planning import replay

Transform = Callable[..., Any]

FIRST = ("jacfwd", "jacrev", "jacobian")
# outer over inner
SECOND = (("jacfwd", "jacfwd"), ("jacfwd", "jacrev"), ("jacrev", "jacfwd"), ("jacrev", "jacrev"))


def jacobian(name: str, case: Case, outs: Sequence[Tensor]) -> Tensor:
    """Return the Jacobian by ``jacfwd``, ``jacrev`` or ``jacobian`` as a real matrix."""
    derivative = _transform(name, case)(case.function, _argnums(case))
    return matrix(seeded(lambda: derivative(*case.point)), case.point, outs)


def repeated_jacobian(case: Case, outs: Sequence[Tensor]) -> Tensor:
    """Return the Jacobian of the third call of ``jacrev``, which repeats the kernels of calls with other elements."""
    compute = _transform("jacrev", case)(case.function, _argnums(case))
    other = tuple(x.flatten().flip(0).reshape(x.shape) for x in case.point)
    try:
        seeded(lambda: case.function(*other))
    except Exception:
        other = tuple(0.75 * x for x in case.point)  # another matrix may have no factorization
    for _ in range(replay.FIRST_WRITTEN):
        seeded(lambda: compute(*other))
    return matrix(seeded(lambda: compute(*case.point)), case.point, outs)


def derivative(name: str, case: Case) -> Any:
    """Return what ``jacrev``, or ``jacfwd(jacrev)``, or ``vmap(jacfwd)`` gives: the way a user calls it."""
    outer, _, inner = name.rstrip(")").partition("(")
    outs = seeded(lambda: case.function(*case.point))
    weights = torch.ones(size(outs), dtype=torch.float64)
    if outer == "vmap":
        return batched_jacobians(inner, case, (case.point, case.point), outs)
    if inner:
        return hessian(outer, inner, case, weights)
    match name:
        case "jvp":
            return push(case, torch.ones(size(case.point), dtype=torch.float64))
        case "vjp":
            return pull(case, weights)
        case _:
            return jacobian(name, case, outs)


def push(case: Case, direction: Tensor) -> Tensor:
    """Return the Jacobian times a direction, by ``jvp``."""
    tangents = like_point(direction, case.point)
    return real_vector(seeded(lambda: pushforward.jvp(case.function, case.point, tangents))[1])


def pull(case: Case, cotangent: Tensor) -> Tensor:
    """Return a combination of the Jacobian's rows, by ``vjp``."""

    def compute() -> Any:
        outs, pullback = pushforward.vjp(case.function, *case.point)
        return pullback(like_point(cotangent, outs))

    return real_vector(seeded(compute))


def hessian(outer: str, inner: str, case: Case, weights: Tensor) -> Tensor:
    """Return the second derivatives of <weights, outputs> by two transforms, as a real matrix."""
    first = _transform(inner, case)(projection(case, weights), _argnums(case))

    def gradient(*point: Tensor) -> tuple[Tensor, ...]:
        return tuple(block.real for block in first(*point))

    second = _transform(outer, case)(gradient, _argnums(case))
    blocks = seeded(lambda: second(*case.point))
    return torch.cat([_rows(row, case.point, is_complex=False) for row in blocks])


def hessian_product(
    outer: str, inner: str, case: Case, weights: Tensor, u: Tensor, v: Tensor
) -> Tensor:
    """Return the Hessian of <weights, outputs> times ``u`` without writing it; vᵀ H u in forward over forward."""
    scalar = projection(case, weights)
    tangents = like_point(u, case.point)

    def slope(*point: Tensor) -> Tensor:
        return pushforward.jvp(scalar, point, tangents)[1]

    def gradient(*point: Tensor) -> tuple[Tensor, ...]:
        value, pullback = pushforward.vjp(scalar, *point)
        return tuple(pullback(torch.ones_like(value)))

    def compute() -> Any:
        match outer, inner:
            case "jacfwd", "jacfwd":
                others = like_point(v, case.point)
                return pushforward.jvp(slope, case.point, others)[1]
            case "jacfwd", "jacrev":
                return pushforward.jvp(gradient, case.point, tangents)[1]
            case "jacrev", "jacfwd":
                value, pullback = pushforward.vjp(slope, *case.point)
                return tuple(pullback(torch.ones_like(value)))
            case _:
                _, pullback = pushforward.vjp(gradient, *case.point)
                return tuple(pullback(tangents))

    product = seeded(compute)
    return product if isinstance(product, Tensor) else real_vector(product)


def batched_jacobians(name: str, case: Case, points: Sequence[Point], outs: Any) -> list[Tensor]:
    """Return the Jacobian at each of ``points``, by ``torch.func.vmap`` around one of our transforms."""
    derivative = _transform(name, case)(case.function, _argnums(case))
    stacked = [torch.stack(xs) for xs in zip(*points, strict=True)]
    rows = seeded(lambda: torch.func.vmap(derivative, randomness="same")(*stacked))
    return [
        matrix([[block[i] for block in row] for row in rows], case.point, outs)
        for i in range(len(points))
    ]


def batched_pushes(case: Case, points: Sequence[Point], direction: Tensor) -> list[Tensor]:
    """Return the Jacobian times a direction at each of ``points``, by ``torch.func.vmap`` around ``jvp``."""
    tangents = like_point(direction, case.point)

    def slope(*point: Tensor) -> Any:
        return pushforward.jvp(case.function, point, tangents)[1]

    stacked = [torch.stack(xs) for xs in zip(*points, strict=True)]
    outs = seeded(lambda: torch.func.vmap(slope, randomness="same")(*stacked))
    return [real_vector([out[i] for out in outs]) for i in range(len(points))]


def projection(case: Case, weights: Tensor) -> Callable[..., Tensor]:
    """Return the real function <weights, outputs>."""

    def function(*point: Tensor) -> Tensor:
        total, start = weights.new_zeros(()), 0
        for out in case.function(*point):
            parts = (out.real, out.imag) if out.is_complex() else (out,)
            step = len(parts)
            stop = start + out.numel() * step
            for k, part in enumerate(parts):
                total = total + (weights[start + k : stop : step].reshape(out.shape) * part).sum()
            start = stop
        return total

    return function


def matrix(blocks: Sequence[Sequence[Tensor]], point: Point, outs: Sequence[Tensor]) -> Tensor:
    """Return the blocks, by output and argument, as one real matrix."""
    rows = [
        _rows(row, point, is_complex=out.is_complex())
        for row, out in zip(blocks, outs, strict=True)
    ]
    return torch.cat(rows)


def _rows(row: Sequence[Tensor], point: Point, *, is_complex: bool) -> Tensor:
    flat = []
    for block, x in zip(row, point, strict=True):
        far = (*x.shape, 2) if x.is_complex() else tuple(x.shape)
        near = tuple(block.shape[: block.dim() - len(far)])
        assert near + far == tuple(block.shape), f"Jacobian {tuple(block.shape)} for {x.shape}"
        flat.append(block.reshape(math.prod(near), math.prod(far)))
    joined = torch.cat(flat, dim=1)
    if not joined.is_complex():
        return joined
    if not is_complex:
        assert not joined.imag.any(), "a real output has a Jacobian with imaginary parts"
        return joined.real
    parts = torch.stack([joined.real, joined.imag], dim=1)
    return parts.reshape(2 * joined.shape[0], joined.shape[1])


def _argnums(case: Case) -> tuple[int, ...]:
    return tuple(range(len(case.point)))


def _transform(name: str, case: Case) -> Transform:
    """Allow random operators where the case draws, and only there."""
    transform = getattr(pushforward, name)
    if case.is_random and "randomness" in inspect.signature(transform).parameters:
        return functools.partial(transform, randomness="same")
    return transform
