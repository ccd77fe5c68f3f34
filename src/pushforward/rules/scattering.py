"""Writes that reduce: several values meet in one cell, as a sum, mean, product or extremum.

Everywhere a cell is a position of the output along one axis, and ``index`` says for every value into
which cell it goes. The Jacobian is that of the sum, each value with its slope.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, broadcast, normalize_axis, with_size
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.mask import Mask
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.take_along import TakeAlong
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.indexing import (
    Indices,
    index_map,
    index_put_values_map,
    scattered_map,
    vector_axis,
    vector_shape,
)
from pushforward.rules.registry import rule, with_output
from pushforward.rules.views import flat_gather, identity_map, shape_of, unchanged

aten = torch.ops.aten

# Slopes of the values in their cells


def _slopes(
    reduce: str, values: Tensor, index: Tensor, axis: int, cells: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the slope of the reduction in every value, and in every cell's ``start``.

    Args:
        reduce: sum, mean, prod, amin or amax.
        values: What is written.
        index: The cell of every value, like ``values``.
        axis: The axis along which cells are counted.
        cells: The result, a tensor of cells.
        start: What was in the cells and counts too; None where it does not.
    """
    if reduce == "prod":
        return _product_slopes(values, index, axis, start)
    ones = torch.ones_like(values)
    if reduce == "sum":
        return ones, None if start is None else torch.ones_like(start)
    zeros = cells.new_zeros(cells.shape)
    if reduce == "mean":
        first = zeros if start is None else zeros + 1
        share = 1 / first.scatter_add(axis, index, ones).clamp(min=1)
        return share.gather(axis, index), None if start is None else share
    # Of equal extrema each has an equal share, as in PyTorch.
    hits = _same(values, cells.gather(axis, index))
    first = zeros if start is None else _same(start, cells)
    share = 1 / first.scatter_add(axis, index, hits).clamp(min=1)
    return hits * share.gather(axis, index), None if start is None else first * share


def _same(x: Tensor, y: Tensor) -> Tensor:
    return ((x == y) | (x.isnan() & y.isnan())).to(x.dtype)


def _product_slopes(
    values: Tensor, index: Tensor, axis: int, start: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    if start is None:
        return _product_of_others(values, index, axis), None
    size = start.shape[axis]
    shape = [-1 if i == axis else 1 for i in range(start.ndim)]
    own = torch.arange(size, device=index.device).reshape(shape).expand(start.shape)
    slopes = _product_of_others(
        torch.cat([start, values], axis), torch.cat([own, index], axis), axis
    )
    return slopes.narrow(axis, size, values.shape[axis]), slopes.narrow(axis, 0, size)


def _product_of_others(values: Tensor, index: Tensor, axis: int) -> Tensor:
    """Return for every value the product of the others in its cell, without a division.

    Products of what stands before and behind, in the order of the cells: right with any number of zeros, and so
    are its derivatives.
    """
    order = index.argsort(dim=axis, stable=True)
    cell = index.gather(axis, order)
    ordered = values.gather(axis, order)
    before = _product_before(ordered, cell, axis)
    behind = _product_before(ordered.flip(axis), cell.flip(axis), axis).flip(axis)
    return (before * behind).gather(axis, order.argsort(dim=axis))


def _product_before(values: Tensor, cell: Tensor, axis: int) -> Tensor:
    """Return the product of the earlier values of the same cell, by doubling."""
    size = values.shape[axis]
    product = _shifted(values, cell, axis, 1)
    step = 1
    while step < size:
        product = product * _shifted(product, cell, axis, step)
        step *= 2
    return product


def _shifted(values: Tensor, cell: Tensor, axis: int, step: int) -> Tensor:
    """Return what stands ``step`` places before, 1 where that is in another cell."""
    size = values.shape[axis]
    ones = torch.ones_like(values.narrow(axis, 0, min(step, size)))
    if step >= size:
        return ones
    same = cell.narrow(axis, step, size - step) == cell.narrow(axis, 0, size - step)
    earlier = values.narrow(axis, 0, size - step)
    return torch.cat([ones, torch.where(same, earlier, torch.ones_like(earlier))], axis)


# scatter_reduce and index_reduce

_SAME_NAMES = {"add": "sum", "multiply": "prod"}  # of torch.scatter


class _Written:
    """The cells that a scatter reaches, cropped to its index along the other axes, and their slopes."""

    def __init__(
        self, x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, keeps: bool, out: Tensor
    ) -> None:
        self.shape, self.index_shape = vector_shape(shape_of(x)), vector_shape(shape_of(index))
        self.axis = normalize_axis(dim, len(self.shape))
        self.index = index.reshape(self.index_shape)
        self.inner = with_size(self.index_shape, self.axis, self.shape[self.axis])
        self.keeps = keeps
        self.reduce = _SAME_NAMES.get(reduce, reduce)
        self.values = self._crop(src.reshape(vector_shape(shape_of(src))), self.index_shape)
        self.start = self._crop(x.reshape(self.shape), self.inner) if keeps else None
        self.cells = self._crop(out.reshape(self.shape), self.inner)

    def _crop(self, x: Tensor, shape: Shape) -> Tensor:
        for axis, n in enumerate(shape):
            x = x.narrow(axis, 0, n)
        return x

    def slopes(self) -> tuple[Tensor, Tensor | None]:
        return _slopes(self.reduce, self.values, self.index, self.axis, self.cells, self.start)

    def self_map(self, x: Tensor) -> AbstractLinearMap:
        if 0 in self.index_shape or (self.reduce == "sum" and self.keeps):
            return identity_map(shape_of(x))
        if not self.keeps:
            ones = torch.ones(self.shape, dtype=torch.bool, device=self.index.device)
            kept = torch.scatter(ones, self.axis, self.index, False)
            return Mask(shape_of(x), shape_of(x), kept.reshape(shape_of(x)))
        slope = self.slopes()[1]
        assert slope is not None
        pad = [
            m
            for n, inner in zip(reversed(self.shape), reversed(self.inner), strict=True)
            for m in (0, n - inner)
        ]
        whole = torch.nn.functional.pad(slope, pad, value=1.0)
        return Scale(shape_of(x), shape_of(x), whole.reshape(shape_of(x)))


@with_output
def _scatter_reduce_self(
    x: Tensor,
    dim: int,
    index: Tensor,
    src: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
    out: Tensor,
) -> AbstractLinearMap:
    return _Written(x, dim, index, src, reduce, include_self, out).self_map(x)


@with_output
def _scatter_reduce_src(
    x: Tensor,
    dim: int,
    index: Tensor,
    src: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
    out: Tensor,
) -> AbstractLinearMap:
    coef = None
    if index.numel() and _SAME_NAMES.get(reduce, reduce) != "sum":
        coef = _Written(x, dim, index, src, reduce, include_self, out).slopes()[0]
    return scattered_map(x, dim, index, src, adds=True, coef=coef)


def _along(x: Tensor, dim: int, index: Tensor, source: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return axis, index and source of the scatter that ``index_reduce`` amounts to."""
    shape, axis = vector_axis(x, dim)
    spread = source.reshape(with_size(shape, axis, index.numel()))
    column = index.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return axis, column.long().expand(spread.shape), spread


@with_output
def _index_reduce_self(
    x: Tensor,
    dim: int,
    index: Tensor,
    source: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
    out: Tensor,
) -> AbstractLinearMap:
    cells = _along(x, dim, index, source)
    return _scatter_reduce_self(x, *cells, reduce, include_self=include_self, out=out)


@with_output
def _index_reduce_source(
    x: Tensor,
    dim: int,
    index: Tensor,
    source: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
    out: Tensor,
) -> AbstractLinearMap:
    cells = _along(x, dim, index, source)
    written = _scatter_reduce_src(x, *cells, reduce, include_self=include_self, out=out)
    if shape_of(source) == written.in_shape:
        return written
    return compose(Reshape(shape_of(source), written.in_shape), written)


rule(aten.scatter_reduce.two, _scatter_reduce_self, None, None, _scatter_reduce_src)
rule(aten.index_reduce, _index_reduce_self, None, None, _index_reduce_source)

# Segments: runs along an axis

_EXTREMA = {"max": "amax", "min": "amin"}


def _segments(
    data: Tensor, lengths: Tensor | None, offsets: Tensor | None, axis: int
) -> tuple[Tensor, int]:
    """Return the segment of every place, (*lead, n), and how many there are; -1 outside of all."""
    if offsets is None:
        assert lengths is not None
        offsets = torch.nn.functional.pad(lengths.cumsum(-1), [1, 0])
    lead, n = shape_of(data)[:axis], data.shape[axis]
    place = torch.arange(n, device=data.device).to(offsets.dtype).expand(*lead, n)
    number = torch.searchsorted(offsets.contiguous(), place.contiguous(), right=True) - 1
    count = offsets.shape[-1] - 1
    return torch.where(number < count, number, -1), count


@with_output
def _segment_reduce(
    data: Tensor,
    reduce: str,
    *,
    lengths: Tensor | None = None,
    indices: Tensor | None = None,
    offsets: Tensor | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: complex | None = None,
    out: Tensor,
) -> AbstractLinearMap:
    axis = normalize_axis(axis, data.ndim)
    number, count = _segments(data, lengths, offsets, axis)
    in_shape, out_shape = shape_of(data), shape_of(out)
    number = number.reshape(number.shape + (1,) * (data.ndim - axis - 1)).expand(in_shape)
    written = transpose(TakeAlong(out_shape, in_shape, axis, number))
    if reduce == "sum" or not data.numel() or not out.numel():
        return written
    # One cell more takes what belongs to no segment.
    index = torch.where(number < 0, count, number)
    extra = [0, 0] * (data.ndim - axis - 1) + [0, 1]
    padded = torch.nn.functional.pad(out, extra)
    slope, _ = _slopes(_EXTREMA.get(reduce, reduce), data, index, axis, padded, None)
    if reduce == "prod" and initial is not None:
        slope = slope * initial
    return compose(Scale(in_shape, in_shape, slope), written)


rule(aten.segment_reduce, _segment_reduce)

# Indices with a mask: where it is false they may lie outside, and are not used


def _clamped(x: Tensor, indices: Indices) -> list[Tensor | None]:
    return [
        None if index is None else index.clamp(-n, n - 1)
        for index, n in zip(indices, x.shape, strict=False)
    ]


@with_output
def _masked_index(
    x: Tensor, mask: Tensor, indices: Sequence[Tensor | None], fill: complex, *, out: Tensor
) -> AbstractLinearMap:
    if not x.numel():
        none = torch.full((math.prod(out.shape),), -1, device=x.device)
        return flat_gather(shape_of(x), shape_of(out), none)
    taken = index_map(x, _clamped(x, indices))
    return compose(taken, Mask(taken.out_shape, shape_of(out), mask))


def _masked_put_values(
    x: Tensor, mask: Tensor, indices: Sequence[Tensor | None], values: Tensor
) -> AbstractLinearMap:
    if not x.numel():
        none = torch.full((0,), -1, device=x.device)
        return flat_gather(shape_of(values), shape_of(x), none)
    shape = broadcast(values.shape, mask.shape)
    masked = Mask(shape_of(values), tuple(shape), mask)
    put = index_put_values_map(
        x, _clamped(x, indices), values.new_empty(()).expand(shape), accumulate=True
    )
    return compose(masked, put)


rule(aten._unsafe_masked_index, _masked_index)
rule(aten._unsafe_masked_index_put_accumulate, unchanged, None, None, _masked_put_values, like=0)
