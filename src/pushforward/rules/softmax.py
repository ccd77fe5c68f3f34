"""Softmax and its kin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import kept_axes, normalize_axis
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.reductions import over, weighted_sum
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten
Dim = int | Sequence[int] | None


@with_output
def _logsumexp(x: Tensor, dim: Dim, keepdim: bool = False, *, out: Tensor) -> AbstractLinearMap:
    finite = torch.where(out == -math.inf, 0, out)
    return weighted_sum(x, out, torch.exp(x - over(x, finite, dim)), dim)


def _softmax_map(y: Tensor, dim: int) -> AbstractLinearMap:
    """Return ẏ = y (ẋ - Σ y ẋ), which is its own adjoint."""
    if y.ndim == 0:
        return Scale((), (), y - y * y)
    axis = normalize_axis(dim, y.ndim)
    near = axis + 1

    def apply(tangent: Tensor) -> Tensor:
        weighted = y * tangent
        return torch.addcmul(weighted, y, weighted.sum(near, keepdim=True), value=-1)

    return General(tuple(y.shape), tuple(y.shape), apply, apply, kept_axes(y.ndim, axis))


def _log_softmax_map(y: Tensor, dim: int) -> AbstractLinearMap:
    """Return ẏ = ẋ - Σ p ẋ, with p = exp y."""
    if y.ndim == 0:
        return Scale((), (), 1 - y.exp())
    axis = normalize_axis(dim, y.ndim)
    near = axis + 1
    share = y.exp()

    def push(tangent: Tensor) -> Tensor:
        return tangent - (share * tangent).sum(near, keepdim=True)

    def pull(cotangent: Tensor) -> Tensor:
        if len(cotangent) == 1:
            pulled: Tensor = aten._log_softmax_backward_data(cotangent[0], y, axis, y.dtype)
            return pulled[None]
        return torch.addcmul(cotangent, share, cotangent.sum(near, keepdim=True), value=-1)

    return General(tuple(y.shape), tuple(y.shape), push, pull, kept_axes(y.ndim, axis))


def _softmax_twice(y_bar: Tensor, y: Tensor, dim: int, input_dtype: Any) -> AbstractLinearMap:
    # Of y (ȳ - Σ y ȳ) with respect to y.
    if y.ndim == 0:
        return Scale((), (), y_bar * (1 - 2 * y))
    axis = normalize_axis(dim, y.ndim)
    near = axis + 1
    centred = y_bar - (y_bar * y).sum(axis, keepdim=True)

    def push(tangent: Tensor) -> Tensor:
        return centred * tangent - y * (y_bar * tangent).sum(near, keepdim=True)

    def pull(cotangent: Tensor) -> Tensor:
        return centred * cotangent - y_bar * (y * cotangent).sum(near, keepdim=True)

    return General(tuple(y.shape), tuple(y.shape), push, pull, kept_axes(y.ndim, axis))


rule(aten.logsumexp, _logsumexp)
rule(aten._softmax, with_output(lambda x, dim, half_to_float, *, out: _softmax_map(out, dim)))
rule(aten._safe_softmax, with_output(lambda x, dim, dtype=None, *, out: _softmax_map(out, dim)))
rule(
    aten._log_softmax, with_output(lambda x, dim, half_to_float, *, out: _log_softmax_map(out, dim))
)
rule(
    aten._softmax_backward_data,
    lambda y_bar, y, dim, input_dtype: _softmax_map(y, dim),
    _softmax_twice,
)
rule(
    aten._log_softmax_backward_data,
    lambda y_bar, y, dim, input_dtype: transpose(_log_softmax_map(y, dim)),
    lambda y_bar, y, dim, input_dtype: Scale(
        tuple(y.shape), tuple(y.shape), -y.exp() * y_bar.sum(dim, keepdim=True)
    ),
)
