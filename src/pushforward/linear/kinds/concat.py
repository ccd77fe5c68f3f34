"""Concat: one piece of a concatenation or of a stack, and how the pieces are joined at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import (
    Pairs,
    Part,
    Shape,
    Tied,
    kept_axes,
    moved,
    with_size,
)
from pushforward.linear.block import Block
from pushforward.linear.kinds.gather import Select, Slice, into_zeros
from pushforward.linear.kinds.transposed import Transposed
from pushforward.linear.map import AbstractLinearMap, Pattern, positions


@dataclasses.dataclass(slots=True, repr=False)
class Concat(AbstractLinearMap):
    """Write into zeros from ``start`` along ``axis``; with ``new_axis`` the input lacks that axis.

    Math: ẏ[..., start:start+n, ...] = ẋ, zero elsewhere; x̄ = ȳ[..., start:start+n, ...].
    Jacobian: 0/1; the other axes stay tied.
    """

    axis: int  # of the output
    start: int
    new_axis: bool = False

    def push(self, block: Block) -> Block:
        """Write into zeros."""
        return block.apply(self._put, self.out_shape, self._kept, uniform=True)

    def pull(self, block: Block) -> Block:
        """Take the piece out; seeds that are tied to a part of the axis stay so in whole periods."""
        period = 0 if self.new_axis else _period(block, self.axis)
        if period and not (self.start % period or self.in_shape[self.axis] % period):
            small, large = (self._in_periods(s, period) for s in (self.in_shape, self.out_shape))
            inner = Concat(small, large, self.axis, self.start // period)
            return inner.pull(block.reshape(large)).reshape(self.in_shape)
        kept = tuple((j, i) for i, j in self._kept)
        return block.apply(self._take, self.in_shape, kept, uniform=True)

    def _in_periods(self, shape: Shape, period: int) -> Shape:
        return (*shape[: self.axis], shape[self.axis] // period, period, *shape[self.axis + 1 :])

    @property
    def _kept(self) -> Pairs:
        if self.new_axis:
            return tuple((i, i if i < self.axis else i + 1) for i in range(len(self.in_shape)))
        return kept_axes(len(self.in_shape), self.axis)

    def _put(self, tangent: Tensor) -> Tensor:
        dim, size = self.axis + 1, self.out_shape[self.axis]
        piece = tangent.unsqueeze(dim) if self.new_axis else tangent
        return into_zeros(piece, dim, size, self.start, self.start + piece.shape[dim])

    def _take(self, cotangent: Tensor) -> Tensor:
        if self.new_axis:
            return cotangent.select(self.axis + 1, self.start)
        return cotangent.narrow(self.axis + 1, self.start, self.in_shape[self.axis])

    def pattern(self) -> Pattern:
        """Run on positions."""
        rows = self._take(positions(self.out_shape).unsqueeze(0)).flatten()
        return rows, positions(self.in_shape).flatten()


def _period(block: Block, axis: int) -> int:
    """Return after how many positions along an axis the one seed axis that is tied to a part begins anew; or 0."""
    holders = block.holders(axis)
    tie = block.tied[holders[0]] if len(holders) == 1 else None
    period = block.seed_shape[holders[0]] * tie.within if isinstance(tie, Part) else 0
    return period if period < block.shape[axis] else 0


Pushed = tuple[AbstractLinearMap, Block]  # a map and the block that it is to push
Written = tuple[Concat, Block]


@dataclasses.dataclass(slots=True)
class _Piece:
    """Values as they will stand in the joined block, but for their length along the joined axis."""

    values: Tensor
    start: int
    length: int
    tied: Tied


def join(parts: Sequence[Written]) -> Block | None:
    """Return the sum of what the maps push, by one concatenation; None where pieces overlap.

    They are pieces along one axis of one output, with the same ties there. Positions that no piece covers are zero.
    """
    first, head = parts[0]
    pieces = [_piece(concat, block) for concat, block in parts]
    pieces.sort(key=lambda piece: (piece.start, piece.length))
    return _concatenated(first, head, _merged(pieces))


def _merged(pieces: list[_Piece]) -> list[_Piece]:
    """Add up pieces that stand at the same place."""
    result: list[_Piece] = []
    for piece in pieces:
        last = result[-1] if result else None
        if last is not None and (last.start, last.length) == (piece.start, piece.length):
            result[-1] = dataclasses.replace(last, values=last.values + piece.values)
        else:
            result.append(piece)
    return result


def join_groups(parts: Sequence[Pushed]) -> list[Block]:
    """Return what all the maps push, joined where the blocks fit, one by one where they do not."""
    groups: list[tuple[object, list[Written]]] = []  # few; sizes that are traced have no hash
    result: list[Block] = []
    for linear_map, block in parts:
        concat = _as_concat(linear_map)
        if concat is None:
            result.append(linear_map.push(block))
            continue
        untied = block if concat.new_axis else block.untie((concat.axis,))
        shifted = _shifted(concat, untied)
        key = (concat.axis, concat.out_shape, block.source, block.seed_shape, shifted)
        for known, group in groups:
            if known == key:
                group.append((concat, untied))
                break
        else:
            groups.append((key, [(concat, untied)]))
    for _, group in groups:
        joined = join(group) if len(group) > 1 else None
        if joined is not None:
            result.append(joined)
        else:
            result.extend(concat.push(block) for concat, block in group)
    return result


def _as_concat(linear_map: AbstractLinearMap) -> Concat | None:
    if isinstance(linear_map, Concat):
        return linear_map
    return adjoint_concat(linear_map.of) if isinstance(linear_map, Transposed) else None


def adjoint_concat(linear_map: AbstractLinearMap) -> Concat | None:
    """Return the adjoint of a map that takes one piece along an axis; None of any other map."""
    if isinstance(linear_map, Slice) and linear_map.step == 1:
        return Concat(linear_map.out_shape, linear_map.in_shape, linear_map.axis, linear_map.start)
    if isinstance(linear_map, Select):
        shapes = linear_map.out_shape, linear_map.in_shape
        return Concat(*shapes, linear_map.axis, linear_map.index, new_axis=True)
    return None


def _piece(concat: Concat, block: Block) -> _Piece:
    axis = concat.axis
    if concat.new_axis:
        values = block.values.unsqueeze(block.num_free + axis)
        return _Piece(values, concat.start, 1, _shifted(concat, block))
    block = block.untie((axis,))
    values, dim, length = block.values, block.num_free + axis, concat.in_shape[axis]
    if values.shape[dim] != length:
        values = values.expand(with_size(values.shape, dim, length))
    return _Piece(values, concat.start, length, block.tied)


def _shifted(concat: Concat, block: Block) -> Tied:
    if not concat.new_axis:
        return block.tied
    return moved(block.tied, lambda axis: axis + (axis >= concat.axis))


def _concatenated(concat: Concat, head: Block, pieces: list[_Piece]) -> Block | None:
    tied = pieces[0].tied
    dim = tied.count(None) + concat.axis
    shape = _common_shape([piece.values.shape for piece in pieces], dim)
    values, end = [], 0
    for piece in pieces:
        if piece.start < end:
            return None
        if piece.start > end:
            values.append(_zeros(piece.values, with_size(shape, dim, piece.start - end)))
        sizes = with_size(shape, dim, piece.length)
        values.append(piece.values if piece.values.shape == sizes else piece.values.expand(sizes))
        end = piece.start + piece.length
    behind = concat.out_shape[concat.axis] - end
    if behind:
        values.append(_zeros(values[0], with_size(shape, dim, behind)))
    return Block(torch.cat(values, dim), concat.out_shape, head.seed_shape, tied, head.source)


def _common_shape(shapes: Sequence[Shape], dim: int) -> Shape:
    """Return the shape to which all expand (but along ``dim``): 1 where all are constant."""
    if shapes.count(shapes[0]) == len(shapes):  # nearly always
        return with_size(shapes[0], dim, 1)
    sizes = zip(*shapes, strict=True)
    return tuple(
        1 if i == dim else next((n for n in near if n != 1), 1) for i, near in enumerate(sizes)
    )


def _zeros(like: Tensor, shape: Shape) -> Tensor:
    return torch.zeros(shape, dtype=like.dtype, device=like.device)
