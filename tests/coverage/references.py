"""Derivatives by torch.autograd and by central differences, as real matrices.

A complex number counts as two real ones, so that every Jacobian is one real matrix: a row for each real number in the
outputs, a column for each in the point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from entries import Case, Point, seeded
from torch import Tensor

STEP = 6e-6  # balances truncation (h²) against rounding (eps/h)
SECOND_STEP = 1e-4  # the same for second differences (h² against eps/h²)


def real_vector(tensors: Sequence[Tensor]) -> Tensor:
    """Return all numbers of ``tensors``, real and imaginary parts side by side."""
    parts = [
        (torch.stack([t.real, t.imag], dim=-1) if t.is_complex() else t).reshape(-1)
        for t in tensors
    ]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def like_point(vector: Tensor, point: Point) -> Point:
    """Return the real vector in the shapes and dtypes of ``point``."""
    result, start = [], 0
    for x in point:
        size = x.numel() * (2 if x.is_complex() else 1)
        part = vector[start : start + size]
        start += size
        if x.is_complex():
            part = torch.complex(part[::2], part[1::2])
        result.append(part.reshape(x.shape).to(x.dtype))
    return tuple(result)


def size(tensors: Sequence[Tensor]) -> int:
    """Return how many real numbers ``tensors`` hold."""
    return sum(t.numel() * (2 if t.is_complex() else 1) for t in tensors)


class Autograd:
    """The value and derivatives of a case by torch.autograd; one evaluation of the function."""

    def __init__(self, case: Case, point: Point | None = None, *, records: bool = True) -> None:
        """Evaluate the function; without ``records``, for its value alone."""
        self.point = tuple(x.detach().clone().requires_grad_(records) for x in point or case.point)
        self.outs = seeded(lambda: case.function(*self.point))
        self.value = real_vector(self.outs)
        self.num_inputs = size(self.point)
        self.num_outputs = self.value.numel()

    def row(self, cotangent: Tensor, *, create_graph: bool = False) -> Tensor:
        """Return one row of the Jacobian, or a combination of them."""
        if not self.value.requires_grad:
            return torch.zeros(self.num_inputs, dtype=torch.float64)
        found = torch.autograd.grad(
            self.value,
            self.point,
            cotangent.to(self.value.dtype),
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        return real_vector(found)

    def jacobian(self) -> Tensor:
        """Return the matrix of all rows."""
        rows = [self.row(e) for e in torch.eye(self.num_outputs, dtype=self.value.dtype)]
        return torch.stack(rows) if rows else torch.zeros(0, self.num_inputs, dtype=torch.float64)

    def second(self, weights: Tensor, directions: Tensor) -> Tensor:
        """Return the products of the Hessian of <weights, outputs> with each direction, by double backward."""
        gradient = self.row(weights, create_graph=True)
        if not gradient.requires_grad:
            return torch.zeros_like(directions)
        products = [
            real_vector(
                torch.autograd.grad(
                    gradient,
                    self.point,
                    direction,
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
            )
            for direction in directions
        ]
        return torch.stack(products)


def difference(function: Callable[[Point], Tensor], point: Point, direction: Tensor) -> Tensor:
    """Return the central difference of ``function`` along ``direction``."""
    step = like_point(STEP * direction, point)
    there = tuple(x.detach() + s for x, s in zip(point, step, strict=True))
    back = tuple(x.detach() - s for x, s in zip(point, step, strict=True))
    return (function(there) - function(back)) / (2 * STEP)


def value_difference(case: Case, direction: Tensor, point: Point | None = None) -> Tensor:
    """Return the central difference of the case's values."""
    return difference(lambda p: _value(case, p), point or case.point, direction)


def difference_jacobian(case: Case) -> Tensor:
    """Return the matrix of central differences, column by column."""
    units = torch.eye(size(case.point), dtype=torch.float64)
    if not len(units):
        return _value(case, case.point).reshape(-1, 1)[:, :0]
    return torch.stack([value_difference(case, e) for e in units], dim=1)


def gradient_difference(case: Case, weights: Tensor, direction: Tensor) -> Tensor:
    """Return the central difference of the gradient of <weights, outputs>, the gradient by torch.autograd."""
    return difference(lambda p: Autograd(case, p).row(weights).detach(), case.point, direction)


def second_difference(case: Case, weights: Tensor, u: Tensor, v: Tensor) -> float:
    """Return uᵀ H v of <weights, outputs> by differences of the values alone."""

    def at(a: float, b: float) -> float:
        step = like_point(SECOND_STEP * (a * u + b * v), case.point)
        moved = tuple(x.detach() + s for x, s in zip(case.point, step, strict=True))
        return float(weights @ _value(case, moved))

    return (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / (4 * SECOND_STEP**2)


def _value(case: Case, point: Point) -> Tensor:
    return seeded(lambda: real_vector(case.function(*point))).detach()
