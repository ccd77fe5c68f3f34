"""Scans: running sums and products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import normalize_axis
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.scan import Scan
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.reductions import all_but, conj, identity
from pushforward.rules.registry import rule

aten = torch.ops.aten
Dim = int | Sequence[int] | None

# Scans


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
        added = values.narrow(axis, step, rest) + late * values.narrow(axis, 0, rest)
        values = torch.cat([values.narrow(axis, 0, step), added], axis)
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

    return General(tuple(x.shape), tuple(x.shape), push, pull, all_but(x, axis))


def _shift(x: Tensor, axis: int, first: float) -> Tensor:
    """Return x_{i-1} at i, and ``first`` at 0."""
    start = torch.full_like(x.narrow(axis, 0, 1), first)
    return torch.cat([start, x.narrow(axis, 0, x.shape[axis] - 1)], axis)


def _cumprod(x: Tensor, dim: int, *, dtype: Any = None, out: Tensor) -> AbstractLinearMap:
    # ẏ_i = x_i ẏ_{i-1} + y_{i-1} ẋ_i: no division, so right with zeros.
    axis = normalize_axis(dim, x.ndim)
    if x.ndim == 0 or x.numel() == 0:
        return identity(x)
    return _recurrence(x, x.to(out.dtype), _shift(out, axis, 1.0), axis)


def _logcumsumexp(x: Tensor, dim: int, *, out: Tensor) -> AbstractLinearMap:
    # ẏ_i = exp(y_{i-1} - y_i) ẏ_{i-1} + exp(x_i - y_i) ẋ_i: no exponent above 0.
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
    keep, add = torch.exp(_shift(out, axis, -math.inf) - end), torch.exp(x_wide - end)
    return _recurrence(x, keep.to(x.dtype), add.to(x.dtype), axis)


rule(aten.cumsum, _cumsum)
rule(aten.cumprod, _cumprod)
rule(aten.logcumsumexp, _logcumsumexp)
