"""Scans: running sums and products."""

from __future__ import annotations

import math
import string
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import kept_axes, normalize_axis
from pushforward.linear.kinds.contract import Contract
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.scan import Scan
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.elementwise import conj
from pushforward.rules.reductions import MAX_ENTRIES, identity
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten


def _cumsum(x: Tensor, dim: int, *, dtype: Any = None) -> AbstractLinearMap:
    if x.ndim == 0:
        return identity(x)
    shape = tuple(x.shape)
    return Scan(shape, shape, normalize_axis(dim, x.ndim))


def _recur(factor: Tensor, values: Tensor, axis: int) -> Tensor:
    """Solve h_i = factor_i h_{i-1} + values_i along an axis counted from the end.

    By doubling: after step s every h_i holds the last 2s terms (Hillis and Steele, Data parallel
    algorithms, 1986).
    """
    size = values.shape[axis]
    step = 1
    while step < size:
        rest = size - step
        late = factor.narrow(axis, step, rest)
        # What is added has no name: values may be as large as the Jacobian, and names hold them for another step.
        before, here = values.narrow(axis, 0, rest), values.narrow(axis, step, rest)
        values = torch.cat([values.narrow(axis, 0, step), here + late * before], axis)
        longer = late * factor.narrow(axis, 0, rest)
        factor = torch.cat([factor.narrow(axis, 0, step), longer], axis)
        step *= 2
    return values


def _recurrence(x: Tensor, factor: Tensor, scale: Tensor, axis: int) -> AbstractLinearMap:
    """Return the map ẏ_i = factor_i ẏ_{i-1} + scale_i ẋ_i."""
    back = axis - x.ndim
    turned = conj(factor).flip(back).roll(1, back)  # factor_{i+1}, last one first
    turned_scale = conj(scale)

    def push(tangent: Tensor) -> Tensor:
        return _recur(factor, scale * tangent, back)

    def pull(cotangent: Tensor) -> Tensor:
        return turned_scale * _recur(turned, cotangent.flip(back), back).flip(back)

    return General(tuple(x.shape), tuple(x.shape), push, pull, kept_axes(x.ndim, axis))


def _shift(x: Tensor, axis: int, first: float) -> Tensor:
    """Return x_{i-1} at i, and ``first`` at 0."""
    start = torch.full_like(x.narrow(axis, 0, 1), first)
    return torch.cat([start, x.narrow(axis, 0, x.shape[axis] - 1)], axis)


def _is_short(x: Tensor, axis: int) -> bool:
    """Tell whether a matrix along ``axis`` is small enough to beat doubling, which makes eight calls a step."""
    return x.numel() * x.shape[axis] <= MAX_ENTRIES


def _places(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return i and j of a matrix whose rows are ``axis`` and whose columns are an axis put before it."""
    i = torch.arange(x.shape[axis], device=x.device).reshape(-1, *(1,) * (x.ndim - axis - 1))
    return i, i.unsqueeze(1)


def _by_matrix(x: Tensor, axis: int, matrix: Tensor) -> AbstractLinearMap:
    """Return the map ẏ_i = Σ_j matrix_{ji} ẋ_j, where the axes j and i stand in the place of ``axis``."""
    shape = tuple(x.shape)
    letters, new = string.ascii_lowercase[: len(shape)], string.ascii_lowercase[len(shape)]
    both = letters[: axis + 1] + new + letters[axis + 1 :]
    return Contract(shape, shape, letters, both, letters.replace(letters[axis], new), matrix)


@with_output
def _cumprod(x: Tensor, dim: int, *, dtype: Any = None, out: Tensor) -> AbstractLinearMap:
    # No division, so right with zeros.
    axis = normalize_axis(dim, x.ndim)
    if x.ndim == 0 or x.numel() == 0:
        return identity(x)
    factors = x.to(out.dtype)
    if _is_short(x, axis):  # ∂y_i/∂x_j = Π_{k≤i, k≠j} x_k for j ≤ i: x_j is made 1
        i, j = _places(x, axis)
        products = torch.where(i == j, 1, factors.unsqueeze(axis)).cumprod(axis + 1)
        return _by_matrix(x, axis, torch.where(i >= j, products, 0))
    # ẏ_i = x_i ẏ_{i-1} + y_{i-1} ẋ_i
    return _recurrence(x, factors, _shift(out, axis, 1.0), axis)


@with_output
def _logcumsumexp(x: Tensor, dim: int, *, out: Tensor) -> AbstractLinearMap:
    # No exponent above 0.
    axis = normalize_axis(dim, x.ndim)
    if x.ndim == 0 or x.numel() == 0:
        return identity(x)
    is_low = x.dtype in (torch.float16, torch.bfloat16)
    if is_low:  # y_i - y_{i-1} is below the spacing of numbers near y
        x_wide = x.float()
        out = x_wide.logcumsumexp(axis)
    else:
        x_wide = x
    end = torch.where(out == -math.inf, 0, out)
    if _is_short(x, axis):  # ∂y_i/∂x_j = exp(x_j - y_i) for j ≤ i
        i, j = _places(x, axis)
        matrix = torch.exp(
            torch.where(i >= j, x_wide.unsqueeze(axis + 1) - end.unsqueeze(axis), -math.inf)
        )
        return _by_matrix(x, axis, matrix.to(x.dtype))
    # ẏ_i = exp(y_{i-1} - y_i) ẏ_{i-1} + exp(x_i - y_i) ẋ_i
    keep, add = torch.exp(_shift(out, axis, -math.inf) - end), torch.exp(x_wide - end)
    return _recurrence(x, keep.to(x.dtype), add.to(x.dtype), axis)


rule(aten.cumsum, _cumsum)
rule(aten.cumprod, _cumprod)
rule(aten.logcumsumexp, _logcumsumexp)
