"""Triangles, writes into a copy of a tensor at the places of a view, and the backward operators of views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, normalize_axis
from pushforward.linear.kinds.concat import Concat
from pushforward.linear.kinds.expand import Expand, broadcast_first
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.indexing import between, masked, one_axis_mask
from pushforward.rules.registry import no_map, nondifferentiable, rule, with_output
from pushforward.rules.views import (
    as_strided_index,
    as_strided_map,
    diagonal_map,
    identity_map,
    place_along,
    select_map,
    shape_of,
    slice_map,
    unfold_map,
)

aten = torch.ops.aten

# Triangles and diagonals


def _tril(x: Tensor, diagonal: int = 0) -> AbstractLinearMap:
    return masked(x, _ones(x, shape_of(x)[-2:]).tril(diagonal))


def _triu(x: Tensor, diagonal: int = 0) -> AbstractLinearMap:
    return masked(x, _ones(x, shape_of(x)[-2:]).triu(diagonal))


def _ones(x: Tensor, shape: Shape) -> Tensor:
    return torch.ones(shape, dtype=torch.bool, device=x.device)


@with_output
def _diag_embed(
    x: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1, *, out: Tensor
) -> AbstractLinearMap:
    return transpose(diagonal_map(x, shape_of(out), offset, dim1, dim2))


rule(aten.tril, _tril)
rule(aten.triu, _triu)
rule(aten.diag_embed, _diag_embed)


# Writes into a copy: the first argument keeps what is not written


def _select_scatter_self(x: Tensor, src: Tensor, dim: int, index: int) -> AbstractLinearMap:
    axis = normalize_axis(dim, x.ndim)
    return one_axis_mask(x, axis, place_along(x.shape[axis], x) != index % x.shape[axis])


def _select_scatter_src(x: Tensor, src: Tensor, dim: int, index: int) -> AbstractLinearMap:
    axis = normalize_axis(dim, x.ndim)
    written = Concat(shape_of(src), shape_of(x), axis, index % x.shape[axis], new_axis=True)
    return written if x.ndim else identity_map(shape_of(x))


def _slice_scatter_self(
    x: Tensor,
    src: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> AbstractLinearMap:
    axis = normalize_axis(dim, x.ndim)
    keep = torch.ones(x.shape[axis], dtype=torch.bool, device=x.device)
    written = torch.zeros_like(keep)[slice(start, end, step)]
    return one_axis_mask(x, axis, torch.slice_scatter(keep, written, 0, start, end, step))


def _slice_scatter_src(
    x: Tensor,
    src: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> AbstractLinearMap:
    return between(
        transpose(slice_map(shape_of(x), dim, start, end, step)), shape_of(src), shape_of(x)
    )


def _diagonal_scatter_self(
    x: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> AbstractLinearMap:
    ones = _ones(x, shape_of(x))
    zeros = torch.zeros_like(ones.diagonal(offset, dim1, dim2))
    return masked(x, torch.diagonal_scatter(ones, zeros, offset, dim1, dim2))


def _diagonal_scatter_src(x: Tensor, src: Tensor, *diagonal: int) -> AbstractLinearMap:
    return transpose(diagonal_map(x, shape_of(x), *diagonal))


def _as_strided_scatter_self(
    x: Tensor,
    src: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> AbstractLinearMap:
    index = as_strided_index(x, size, stride, storage_offset)
    keep = torch.ones(x.numel() + 1, dtype=torch.bool, device=x.device)
    keep = keep.index_fill(0, index.remainder(x.numel() + 1), False)[:-1]
    return masked(x, keep.reshape(shape_of(x)))


def _as_strided_scatter_src(x: Tensor, src: Tensor, *place: Any) -> AbstractLinearMap:
    return transpose(as_strided_map(x, *place))


rule(aten.select_scatter, _select_scatter_self, _select_scatter_src, like=0)
rule(aten.slice_scatter, _slice_scatter_self, _slice_scatter_src, like=0)
rule(aten.diagonal_scatter, _diagonal_scatter_self, _diagonal_scatter_src, like=0)
rule(aten.as_strided_scatter, _as_strided_scatter_self, _as_strided_scatter_src, like=0)


# Backward operators of views: the views, transposed


def _unfold_backward(
    y: Tensor, input_sizes: Sequence[int], dim: int, size: int, step: int
) -> AbstractLinearMap:
    to_input = transpose(unfold_map(y, tuple(input_sizes), dim, size, step))
    return broadcast_first(shape_of(y), to_input)  # as the kernel does


rule(aten.select_backward, lambda y, shape, *place: transpose(select_map(tuple(shape), *place)))
rule(aten.slice_backward, lambda y, shape, *cut: transpose(slice_map(tuple(shape), *cut)))
rule(
    aten.diagonal_backward,
    lambda y, shape, *diagonal: transpose(diagonal_map(y, tuple(shape), *diagonal)),
)
rule(aten.unfold_backward, _unfold_backward)


# Copies over another tensor


def _written_over(x: Tensor, source: Tensor, *_: Any) -> AbstractLinearMap:
    return Expand(shape_of(source), shape_of(x))


rule(aten.copy, no_map, _written_over, like=0)
rule(aten.fill.Tensor, no_map, _written_over, like=0)

nondifferentiable(aten.fill.Scalar)
