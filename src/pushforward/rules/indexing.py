"""Indexing, joining, padding, and writing into copies: operators whose Jacobian is 0 and 1.

Which position goes where is never worked out by formula twice: the operator itself, run on an array
of positions, says it. Where an operator overwrites, the same run says which of several writes to
one position wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, broadcast, normalize_axis, with_size
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.expand import Expand
from pushforward.linear.kinds.gather import Gather
from pushforward.linear.kinds.mask import Mask
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.take_along import TakeAlong
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import rule, with_output
from pushforward.rules.views import (
    flat_gather,
    identity_map,
    place_along,
    shape_of,
    slice_map,
    unchanged,
)

aten = torch.ops.aten

Indices = Sequence[Tensor | None]


def masked(x: Tensor, keep: Tensor) -> AbstractLinearMap:
    """Return the map that keeps what ``keep``, which broadcasts to ``x``, says."""
    return Mask(shape_of(x), shape_of(x), keep)


def between(linear_map: AbstractLinearMap, in_shape: Shape, out_shape: Shape) -> AbstractLinearMap:
    """Return the map with reshapes around it: a 0-d tensor is indexed as one of 1 axis."""
    if linear_map.in_shape != in_shape:
        linear_map = compose(Reshape(in_shape, linear_map.in_shape), linear_map)
    if linear_map.out_shape != out_shape:
        linear_map = compose(linear_map, Reshape(linear_map.out_shape, out_shape))
    return linear_map


def vector_shape(shape: Shape) -> Shape:
    """Return the shape, a 0-d one as that of one element."""
    return shape or (1,)


def vector_axis(x: Tensor, dim: int) -> tuple[Shape, int]:
    """Return the shape, a 0-d one as that of one element, and the axis of it that ``dim`` names."""
    shape = vector_shape(shape_of(x))
    return shape, normalize_axis(dim, len(shape))


def along_axis(
    shape: Shape,
    axis: int,
    index: Tensor,
    is_total: bool = True,
    inverse: Tensor | None = None,
    shift: int = 0,
) -> AbstractLinearMap:
    """Return the map that takes the positions ``index`` along one axis; of a permutation there is an inverse.

    Of one that rolls the axis there is also the ``shift``.
    """
    out_shape = with_size(shape, axis, index.shape[0])
    return Gather(shape, out_shape, index, (axis,), (axis,), is_total, inverse, shift)


def one_axis_mask(x: Tensor, axis: int, keep: Tensor) -> AbstractLinearMap:
    """Return the map that keeps what ``keep`` says of the places along one axis."""
    return masked(x, keep.reshape([-1 if i == axis else 1 for i in range(x.ndim)]))


# Advanced indexing


class _Indexing:
    """How ``x[indices]`` splits the axes: those indexed, and those taken whole, which stay tied."""

    def __init__(self, shape: Shape, indices: Indices) -> None:
        axes: list[int] = []
        self.tensors: list[Tensor] = []
        axis = 0
        for index in indices:
            if index is None:
                axis += 1
                continue
            index = index.bool() if index.dtype == torch.uint8 else index
            covered = index.ndim if index.dtype == torch.bool else 1
            axes.extend(range(axis, axis + covered))
            axis += covered
            self.tensors.append(index)
        self.shape = shape
        self.axes = tuple(axes)
        self.sizes = tuple(shape[i] for i in axes)

    def place(self) -> Tensor:
        """Return the flat position, within the indexed axes, of every element taken."""
        size = math.prod(self.sizes)
        place = torch.arange(size, device=self.tensors[0].device).reshape(self.sizes)
        return aten.index.Tensor(place, self.tensors)  # type: ignore[no-any-return]

    def winner(self, taken: Shape) -> Tensor:
        """Return which of the indices writes each position of the indexed axes last, -1 if none."""
        device = self.tensors[0].device
        order = torch.arange(math.prod(taken), device=device).reshape(taken)
        empty = torch.full(self.sizes, -1, device=device)
        return aten.index_put.default(empty, self.tensors, order)  # type: ignore[no-any-return]

    def front(self) -> int:
        """Return where the axes of the indices stand: in place if adjacent, else first."""
        adjacent = self.axes == tuple(range(self.axes[0], self.axes[0] + len(self.axes)))
        return self.axes[0] if adjacent else 0

    def out_shape(self, taken: Shape) -> Shape:
        kept = [n for i, n in enumerate(self.shape) if i not in self.axes]
        front = self.front()
        return (*kept[:front], *taken, *kept[front:])

    def mixed_out(self, taken: Shape) -> tuple[int, ...]:
        return tuple(range(self.front(), self.front() + len(taken)))

    def map(self) -> AbstractLinearMap:
        """Return the map of ``x[indices]``."""
        if not self.tensors:
            return identity_map(self.shape)
        place = self.place()
        taken = shape_of(place)
        shapes = self.shape, self.out_shape(taken)
        return Gather(*shapes, place.reshape(-1), self.axes, self.mixed_out(taken), is_total=True)

    def overwrite(self, taken: Shape) -> AbstractLinearMap:
        """Return the map from ``values`` to what ``x[indices] = values`` leaves of them."""
        index = self.winner(taken).reshape(-1)
        shapes = self.out_shape(taken), self.shape
        return Gather(*shapes, index, self.mixed_out(taken), self.axes)

    def keep(self, taken: Shape) -> Tensor:
        """Return which positions ``x[indices] = values`` leaves alone, broadcasting to ``x``."""
        shape = [n if i in self.axes else 1 for i, n in enumerate(self.shape)]
        return (self.winner(taken) < 0).reshape(shape)


def index_map(x: Tensor, indices: Indices) -> AbstractLinearMap:
    """Return the map of ``x[indices]``."""
    return _Indexing(shape_of(x), indices).map()


def _index_put_self(
    x: Tensor, indices: Indices, values: Tensor, accumulate: bool = False, unsafe: bool = False
) -> AbstractLinearMap | None:
    indexing = _Indexing(shape_of(x), indices)
    if accumulate:
        return identity_map(shape_of(x))
    if not indexing.tensors:
        return None
    return masked(x, indexing.keep(shape_of(indexing.place())))


def index_put_values_map(
    x: Tensor, indices: Indices, values: Tensor, accumulate: bool = False, unsafe: bool = False
) -> AbstractLinearMap:
    """Return the map from ``values`` to what a write to ``x[indices]`` leaves of them."""
    indexing = _Indexing(shape_of(x), indices)
    if not indexing.tensors:
        return _spread(values, shape_of(x))
    taken = shape_of(indexing.place())
    written = transpose(indexing.map()) if accumulate else indexing.overwrite(taken)
    return compose(_spread(values, written.in_shape), written)


def _spread(values: Tensor, shape: Shape) -> AbstractLinearMap:
    """Return the broadcast to ``shape``, which may also drop leading axes of size 1."""
    own = shape_of(values)
    short = own[max(len(own) - len(shape), 0) :]
    return compose(Reshape(own, short), Expand(short, shape))


rule(aten.index.Tensor, index_map)
rule(aten._unsafe_index.Tensor, index_map)
rule(aten.index_put, _index_put_self, None, index_put_values_map, like=0)
rule(aten._unsafe_index_put, _index_put_self, None, index_put_values_map, like=0)
rule(aten._index_put_impl, _index_put_self, None, index_put_values_map, like=0)


# One index for all: index_select and its writes


@with_output
def _index_select(x: Tensor, dim: int, index: Tensor, *, out: Tensor) -> AbstractLinearMap:
    shape, axis = vector_axis(x, dim)
    return between(along_axis(shape, axis, index.reshape(-1)), shape_of(x), shape_of(out))


def _index_add_source(
    x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: complex = 1
) -> AbstractLinearMap:
    shape, axis = vector_axis(x, dim)
    added = transpose(along_axis(shape, axis, index.reshape(-1)))
    scaled = compose(Scale(added.in_shape, added.in_shape, alpha), added)
    return between(scaled, shape_of(source), shape_of(x))


def _winner_along(n: int, index: Tensor) -> Tensor:
    """Return which element of ``index`` writes each of ``n`` positions last, -1 if none does."""
    empty = torch.full((n,), -1, device=index.device)
    return torch.index_copy(empty, 0, index.reshape(-1), place_along(index.numel(), index))


def _index_copy_source(x: Tensor, dim: int, index: Tensor, source: Tensor) -> AbstractLinearMap:
    shape, axis = vector_axis(x, dim)
    in_shape = with_size(shape, axis, index.numel())
    written = along_axis(in_shape, axis, _winner_along(shape[axis], index), is_total=False)
    return between(written, shape_of(source), shape_of(x))


def _index_fill_self(x: Tensor, dim: int, index: Tensor, *_: Any) -> AbstractLinearMap:
    shape, axis = vector_axis(x, dim)
    return one_axis_mask(x, axis, _winner_along(shape[axis], index) < 0)


def _index_fill_value(x: Tensor, dim: int, index: Tensor, value: Tensor) -> AbstractLinearMap:
    shape, axis = vector_axis(x, dim)
    filled = one_axis_mask(x, axis, _winner_along(shape[axis], index) >= 0)
    return compose(Expand(shape_of(value), shape_of(x)), filled)


rule(aten.index_select, _index_select)
rule(aten.index_add, unchanged, None, None, _index_add_source, like=0)
rule(aten.index_copy, _index_fill_self, None, None, _index_copy_source, like=0)
rule(aten.index_fill.int_Scalar, _index_fill_self, like=0)
rule(aten.index_fill.int_Tensor, _index_fill_self, None, None, _index_fill_value, like=0)


# An index of its own at every position: gather and scatter


def cropped_map(shape: Shape, wanted: Shape) -> AbstractLinearMap:
    """Return the map that takes the first ``wanted`` positions along each axis."""
    maps = [identity_map(shape)]
    for axis, n in enumerate(wanted):
        if n != maps[-1].out_shape[axis]:
            maps.append(slice_map(maps[-1].out_shape, axis, 0, n))
    return compose(*(maps[1:] or maps))


def _gather(x: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> AbstractLinearMap:
    (shape, axis), index_shape = vector_axis(x, dim), vector_shape(shape_of(index))
    if 0 in index_shape:
        none = flat_gather(shape, index_shape, index.long())
        return between(none, shape_of(x), shape_of(index))
    cropped = cropped_map(shape, with_size(index_shape, axis, shape[axis]))
    taken = TakeAlong(
        cropped.out_shape, index_shape, axis, index.reshape(index_shape), is_total=True
    )
    return between(compose(cropped, taken), shape_of(x), shape_of(index))


def _scatter_self(x: Tensor, dim: int, index: Tensor, *_: Any) -> AbstractLinearMap:
    ones = torch.ones(shape_of(x), dtype=torch.bool, device=index.device)
    return masked(x, torch.scatter(ones, dim, index, False))


def _scatter_src(x: Tensor, dim: int, index: Tensor, src: Tensor) -> AbstractLinearMap:
    return scattered_map(x, dim, index, src, adds=False)


def _scatter_add_src(x: Tensor, dim: int, index: Tensor, src: Tensor) -> AbstractLinearMap:
    return scattered_map(x, dim, index, src, adds=True)


def scattered_map(
    x: Tensor, dim: int, index: Tensor, src: Tensor, *, adds: bool, coef: Tensor | None = None
) -> AbstractLinearMap:
    """Return the map of ``src``: crop to the index, scale, write along the axis, put that into zeros."""
    (shape, axis), index_shape = vector_axis(x, dim), vector_shape(shape_of(index))
    if 0 in index_shape:
        none = torch.full((math.prod(shape),), -1, device=x.device)
        return flat_gather(shape_of(src), shape_of(x), none)
    index = index.reshape(index_shape)
    inner = with_size(index_shape, axis, shape[axis])
    if adds:
        written = transpose(TakeAlong(inner, index_shape, axis, index, is_total=True))
    else:
        empty = torch.full(inner, -1, device=index.device)
        order = place_along(index_shape[axis], index)
        order = order.reshape([-1 if i == axis else 1 for i in range(len(index_shape))])
        winner = torch.scatter(empty, axis, index, order.expand(index_shape))
        written = TakeAlong(index_shape, inner, axis, winner)
    first = cropped_map(vector_shape(shape_of(src)), index_shape)
    if coef is not None:
        first = compose(first, Scale(index_shape, index_shape, coef))
    return between(
        compose(first, written, transpose(cropped_map(shape, inner))), shape_of(src), shape_of(x)
    )


rule(aten.gather, _gather)
rule(aten.scatter.src, _scatter_self, None, None, _scatter_src, like=0)
rule(aten.scatter.value, _scatter_self, like=0)
rule(aten.scatter_add, unchanged, None, None, _scatter_add_src, like=0)


# Flat indices and masks


def _wrapped(index: Tensor, n: int) -> Tensor:
    return torch.where(index < 0, index + n, index)


def _take(x: Tensor, index: Tensor) -> AbstractLinearMap:
    return flat_gather(shape_of(x), shape_of(index), _wrapped(index, x.numel()), is_total=True)


def _put_winner(x: Tensor, index: Tensor) -> Tensor:
    return _winner_along(x.numel(), _wrapped(index, x.numel()))


def _put_self(
    x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False
) -> AbstractLinearMap:
    if accumulate:
        return identity_map(shape_of(x))
    return masked(x, (_put_winner(x, index) < 0).reshape(shape_of(x)))


def _put_source(
    x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False
) -> AbstractLinearMap:
    if accumulate:
        flat = _wrapped(index, x.numel())
        return transpose(flat_gather(shape_of(x), shape_of(source), flat, is_total=True))
    return flat_gather(shape_of(source), shape_of(x), _put_winner(x, index))


def _masked_select(x: Tensor, mask: Tensor) -> AbstractLinearMap:
    shape = broadcast(x.shape, mask.shape)
    index = mask.expand(shape).reshape(-1).nonzero().reshape(-1)
    expand = Expand(shape_of(x), tuple(shape))
    return compose(expand, flat_gather(tuple(shape), shape_of(index), index, is_total=True))


@with_output
def _masked_scatter_self(
    x: Tensor, mask: Tensor, source: Tensor, *, out: Tensor
) -> AbstractLinearMap:
    return Mask(shape_of(x), shape_of(out), ~mask)


@with_output
def _masked_scatter_source(
    x: Tensor, mask: Tensor, source: Tensor, *, out: Tensor
) -> AbstractLinearMap:
    return masked_scatter_map(shape_of(out), mask, source)


def masked_scatter_map(shape: Shape, mask: Tensor, source: Tensor) -> AbstractLinearMap:
    """Return the map from ``source``, whose elements go one by one to where the mask is true."""
    flat = mask.expand(shape).reshape(-1)
    index = torch.where(flat, flat.cumsum(0) - 1, -1)
    return flat_gather(shape_of(source), shape, index)


rule(aten.take, _take)
rule(aten.put, _put_self, None, _put_source, like=0)
rule(aten.masked_select, _masked_select)
rule(aten.masked_scatter, _masked_scatter_self, None, _masked_scatter_source)
