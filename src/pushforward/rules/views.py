"""Views, their copies, and conversions: operators that rename positions and compute nothing.

The maps state the mathematics (a reshape, a slice), never the strides. The functions that end in
``_map`` are also what the scatters and backward operators of indexing.py are made of, transposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, kept_axes, normalize_axis, with_size
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.expand import Expand
from pushforward.linear.kinds.gather import Gather, Select, Slice
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.permute import Permute
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.tables import table
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten


def shape_of(x: Tensor) -> Shape:
    """Return the shape as a plain tuple."""
    return tuple(x.shape)


def place_along(n: int, x: Tensor) -> Tensor:
    """Return 0, ..., n-1 where ``x`` lives."""
    return torch.arange(n, device=x.device)


# Identity


def identity_map(shape: Shape) -> AbstractLinearMap:
    """Return the map that changes nothing; the engine converts dtypes."""
    return Reshape(shape, shape)


def unchanged(x: Tensor, *_: Any, **__: Any) -> AbstractLinearMap:
    """Return the map of an argument that the output starts as, whatever the others are."""
    return identity_map(shape_of(x))


rule(aten.alias, unchanged)
rule(aten.alias_copy, unchanged)
rule(aten.clone, unchanged)
rule(aten._lazy_clone, unchanged)
rule(aten._to_copy, unchanged)
rule(aten.lift_fresh_copy, unchanged)


# Reshape


@with_output
def _reshape(x: Tensor, *_: Any, out: Tensor, **__: Any) -> AbstractLinearMap:
    return Reshape(shape_of(x), shape_of(out))


rule(aten.view.default, _reshape)
rule(aten.view_copy.default, _reshape)
rule(aten._unsafe_view, _reshape)
rule(aten._reshape_alias, _reshape)
rule(aten._reshape_copy, _reshape)
rule(aten._reshape_alias_copy, _reshape)
rule(aten.unsqueeze, _reshape)
rule(aten.unsqueeze_copy, _reshape)
rule(aten.squeeze, _reshape)
rule(aten.squeeze_copy, _reshape)


# Permute


def _permute(x: Tensor, dims: Sequence[int]) -> AbstractLinearMap:
    return permute_map(shape_of(x), [normalize_axis(d, x.ndim) for d in dims])


def permute_map(shape: Shape, dims: Sequence[int]) -> AbstractLinearMap:
    """Return the map that puts axis ``dims[i]`` at place i."""
    return Permute(shape, tuple(shape[d] for d in dims), tuple(dims))


def _transpose(x: Tensor, dim0: int, dim1: int) -> AbstractLinearMap:
    return transpose_map(shape_of(x), normalize_axis(dim0, x.ndim), normalize_axis(dim1, x.ndim))


def transpose_map(shape: Shape, dim0: int, dim1: int) -> AbstractLinearMap:
    """Return the map that exchanges two axes."""
    if not shape:
        return identity_map(shape)
    dims = list(range(len(shape)))
    dims[dim0], dims[dim1] = dim1, dim0
    return permute_map(shape, dims)


def _t(x: Tensor) -> AbstractLinearMap:
    return permute_map(shape_of(x), range(x.ndim)[::-1])


rule(aten.permute, _permute)
rule(aten.permute_copy, _permute)
rule(aten.transpose.int, _transpose)
rule(aten.transpose_copy.int, _transpose)
rule(aten.t, _t)
rule(aten.t_copy, _t)


# Expand


@with_output
def _expand(x: Tensor, *_: Any, out: Tensor, **__: Any) -> AbstractLinearMap:
    return Expand(shape_of(x), shape_of(out))


rule(aten.expand, _expand)
rule(aten.expand_copy, _expand)


# Select and slice


def select_map(shape: Shape, dim: int, index: int) -> AbstractLinearMap:
    """Return the map of ``aten.select.int``."""
    axis = normalize_axis(dim, len(shape))
    out_shape = shape[:axis] + shape[axis + 1 :]
    return Select(shape, out_shape, axis, index + shape[axis] if index < 0 else index)


def slice_map(
    shape: Shape, dim: int, start: int | None, end: int | None, step: int = 1
) -> AbstractLinearMap:
    """Return the map of ``aten.slice.Tensor``; the identity where all is taken: it keeps ties."""
    axis = normalize_axis(dim, len(shape))
    length = shape[axis]
    first = 0 if start is None else _within(start, length)
    last = length if end is None else _within(end, length)
    taken = max((last - first + step - 1) // step, 0)
    if taken == length:
        return identity_map(shape)
    return Slice(shape, with_size(shape, axis, taken), axis, first, step)


def _within(place: int, length: int) -> int:
    """Return a place from the beginning, none before or behind. Not by `slice.indices`, which knows no symbols."""
    return min(max(place + length, 0) if place < 0 else place, length)


def _select(x: Tensor, dim: int, index: int) -> AbstractLinearMap:
    return select_map(shape_of(x), dim, index)


def _slice(
    x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> AbstractLinearMap:
    return slice_map(shape_of(x), dim, start, end, step)


def _narrow(x: Tensor, dim: int, start: int, length: int) -> AbstractLinearMap:
    axis = normalize_axis(dim, x.ndim)
    start = start + x.shape[axis] if start < 0 else start
    return slice_map(shape_of(x), axis, start, start + length)


rule(aten.select.int, _select)
rule(aten.select_copy.int, _select)
rule(aten.slice.Tensor, _slice)
rule(aten.slice_copy.Tensor, _slice)
rule(aten.narrow_copy, _narrow)


# Split: one map for each piece


def _split_with_sizes(
    x: Tensor, split_sizes: Sequence[int], dim: int = 0
) -> tuple[AbstractLinearMap, ...]:
    maps, start = [], 0
    for size in split_sizes:
        maps.append(slice_map(shape_of(x), dim, start, start + size))
        start += size
    return tuple(maps)


def _split(x: Tensor, split_size: int, dim: int = 0) -> tuple[AbstractLinearMap, ...]:
    length = x.shape[normalize_axis(dim, x.ndim)]
    if length == 0:
        return (identity_map(shape_of(x)),)
    sizes = [min(split_size, length - start) for start in range(0, length, split_size)]
    return _split_with_sizes(x, sizes, dim)


def _unbind(x: Tensor, dim: int = 0) -> tuple[AbstractLinearMap, ...]:
    length = x.shape[normalize_axis(dim, x.ndim)]
    return tuple(select_map(shape_of(x), dim, i) for i in range(length))


rule(aten.split.Tensor, _split)
rule(aten.split_copy.Tensor, _split)
rule(aten.unsafe_split.Tensor, _split)
rule(aten.split_with_sizes, _split_with_sizes)
rule(aten.split_with_sizes_copy, _split_with_sizes)
rule(aten.unsafe_split_with_sizes, _split_with_sizes)
rule(aten.unbind.int, _unbind)
rule(aten.unbind_copy.int, _unbind)


# Diagonals, windows, strides: the operator itself, run on positions, says which position is taken


def diagonal_map(
    x: Tensor, shape: Shape, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> AbstractLinearMap:
    """Return the map of ``aten.diagonal`` on a tensor of ``shape``; ``x`` gives the device."""
    ndim = len(shape)
    axis1, axis2 = normalize_axis(dim1, ndim), normalize_axis(dim2, ndim)
    low, high = sorted((axis1, axis2))
    place = place_along(shape[low] * shape[high], x).reshape(shape[low], shape[high])
    index = place.diagonal(offset, int(axis1 > axis2), int(axis1 < axis2)).reshape(-1)
    index = table(index)
    kept = tuple(n for i, n in enumerate(shape) if i not in (low, high))
    out_shape = (*kept, index.shape[0])
    return Gather(shape, out_shape, index, (low, high), (ndim - 2,), is_total=True)


def _diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> AbstractLinearMap:
    return diagonal_map(x, shape_of(x), offset, dim1, dim2)


def unfold_map(x: Tensor, shape: Shape, dim: int, size: int, step: int) -> AbstractLinearMap:
    """Return the map of ``aten.unfold`` on a tensor of ``shape``; ``x`` gives the device."""
    if not shape:
        following = unfold_map(x, (1,), 0, size, step)
        last = Reshape(following.out_shape, following.out_shape[1:])
        return compose(Reshape((), (1,)), following, last)
    axis = normalize_axis(dim, len(shape))
    index = place_along(shape[axis], x).unfold(0, size, step)
    out_shape = (*shape[:axis], index.shape[0], *shape[axis + 1 :], size)
    taken = table(index.reshape(-1))
    return Gather(shape, out_shape, taken, (axis,), (axis, len(shape)), is_total=True)


def _unfold(x: Tensor, dimension: int, size: int, step: int) -> AbstractLinearMap:
    return unfold_map(x, shape_of(x), dimension, size, step)


def as_strided_index(
    x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """Return the flat position in ``x`` of each element of its ``as_strided``, -1 where outside."""
    shape = shape_of(x)
    offset = 0 if storage_offset is None else int(storage_offset - x.storage_offset())
    low = min(0, offset)
    length = max(_extent(shape, x.stride()), offset + _extent(size, stride)) - low
    memory = torch.full((max(length, 1),), -1, device=x.device)
    where = torch.arange(max(length, 1), device=x.device)
    mine = where.as_strided(shape, x.stride(), -low).reshape(-1)
    memory = memory.index_put((mine,), place_along(x.numel(), x))
    return memory.as_strided(tuple(size), tuple(stride), offset - low).reshape(-1)


def _extent(size: Sequence[int], stride: Sequence[int]) -> int:
    if 0 in size:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))


def flat_gather(
    in_shape: Shape, out_shape: Shape, index: Tensor, is_total: bool = False
) -> AbstractLinearMap:
    """Return the map that takes the flat positions ``index``; nothing stays tied."""
    ins, outs = tuple(range(len(in_shape))), tuple(range(len(out_shape)))
    return Gather(in_shape, out_shape, index.reshape(-1), ins, outs, is_total)


def as_strided_map(
    x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> AbstractLinearMap:
    """Return the map of ``aten.as_strided``."""
    index = as_strided_index(x, size, stride, storage_offset)
    return flat_gather(shape_of(x), tuple(size), index)


rule(aten.diagonal, _diagonal)
rule(aten.diagonal_copy, _diagonal)
rule(aten.unfold, _unfold)
rule(aten.unfold_copy, _unfold)


# Complex numbers as pairs of real ones


def _view_as_real(x: Tensor) -> AbstractLinearMap:
    return pair_map(shape_of(x))


def _view_as_complex(x: Tensor) -> AbstractLinearMap:
    return transpose(pair_map(shape_of(x)[:-1]))


def pair_map(shape: Shape) -> AbstractLinearMap:
    """Return the map from complex numbers to (real, imaginary) along a new last axis.

    Its adjoint is its inverse.
    """
    return General(shape, (*shape, 2), _to_pair, _from_pair, kept_axes(len(shape)), uniform=True)


def _to_pair(z: Tensor) -> Tensor:
    if not z.is_complex():
        return torch.stack([z, torch.zeros_like(z)], -1)
    return torch.stack([z.real, z.imag], -1)


def _from_pair(pair: Tensor) -> Tensor:
    return pair[..., 0] + 1j * pair[..., 1]


rule(aten.view_as_real, _view_as_real)
rule(aten.view_as_real_copy, _view_as_real)
rule(aten.view_as_complex, _view_as_complex)
