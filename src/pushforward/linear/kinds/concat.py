"""Concat: one piece of a concatenation or of a stack, and how the pieces are joined at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.block import Block
from pushforward.linear.kinds.gather import Select, Slice
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
        """Take the piece out."""
        kept = tuple((j, i) for i, j in self._kept)
        return block.apply(self._take, self.in_shape, kept, uniform=True)

    @property
    def _kept(self) -> tuple[tuple[int, int], ...]:
        if self.new_axis:
            return tuple((i, i if i < self.axis else i + 1) for i in range(len(self.in_shape)))
        return tuple((i, i) for i in range(len(self.in_shape)) if i != self.axis)

    def _put(self, tangent: Tensor) -> Tensor:
        dim, size = self.axis + 1, self.out_shape[self.axis]
        piece = tangent.unsqueeze(dim) if self.new_axis else tangent
        behind = size - self.start - piece.shape[dim]
        pieces = [piece]
        if self.start:
            pieces.insert(0, _zeros(piece, dim, self.start))
        if behind:
            pieces.append(_zeros(piece, dim, behind))
        return torch.cat(pieces, dim)

    def _take(self, cotangent: Tensor) -> Tensor:
        if self.new_axis:
            return cotangent.select(self.axis + 1, self.start)
        return cotangent.narrow(self.axis + 1, self.start, self.in_shape[self.axis])

    def pattern(self) -> Pattern:
        """Run on positions."""
        rows = self._take(positions(self.out_shape).unsqueeze(0)).flatten()
        return rows, positions(self.in_shape).flatten()


Part = tuple[AbstractLinearMap, Block]  # a map and the block that it is to push


@dataclasses.dataclass(slots=True)
class _Piece:
    """Values as they will stand in the joined block, but for their length along the joined axis."""

    values: Tensor
    start: int
    length: int
    tied: tuple[int | None, ...]


def joinable(linear_map: AbstractLinearMap) -> bool:
    """Tell whether the map writes a piece along one axis into zeros, so that `join` may take it."""
    return _as_concat(linear_map) is not None


def join(parts: Sequence[Part]) -> Block | None:
    """Return the sum of what the maps push, by one concatenation; None where blocks do not fit.

    The maps are `Concat`s, or transposed `Slice`s (of step 1) or `Select`s, along the same axis of
    the same output. Pieces must not overlap; positions that no piece covers are zero.
    """
    concats = [_as_concat(linear_map) for linear_map, _ in parts]
    first = concats[0]
    if first is None:
        return None
    pieces = []
    for concat, (_, block) in zip(concats, parts, strict=True):
        if concat is None or (concat.axis, concat.out_shape) != (first.axis, first.out_shape):
            return None
        pieces.append(_piece(concat, block))
    head = parts[0][1]
    ends = {(block.source, block.seed_shape) for _, block in parts}
    if len(ends) != 1 or any(piece.tied != pieces[0].tied for piece in pieces):
        return None
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


def join_groups(parts: Sequence[Part]) -> list[Block]:
    """Return what all the maps push, joined where the blocks fit, one by one where they do not."""
    groups: list[tuple[object, list[Part]]] = []  # few; sizes that are traced have no hash
    result: list[Block] = []
    for linear_map, block in parts:
        concat = _as_concat(linear_map)
        if concat is None:
            result.append(linear_map.push(block))
            continue
        untied = block if concat.new_axis else block.untie((concat.axis,))
        shifted = _shifted(concat, untied)
        key = (concat.axis, concat.out_shape, block.source, block.seed_shape, shifted)
        group = next((group for known, group in groups if known == key), None)
        if group is None:
            group = []
            groups.append((key, group))
        group.append((linear_map, untied))
    for _, group in groups:
        joined = join(group) if len(group) > 1 else None
        if joined is not None:
            result.append(joined)
        else:
            result.extend(linear_map.push(block) for linear_map, block in group)
    return result


def _as_concat(linear_map: AbstractLinearMap) -> Concat | None:
    if isinstance(linear_map, Concat):
        return linear_map
    if isinstance(linear_map, Transposed):
        of, shapes = linear_map.of, (linear_map.in_shape, linear_map.out_shape)
        if isinstance(of, Slice) and of.step == 1:
            return Concat(*shapes, of.axis, of.start)
        if isinstance(of, Select):
            return Concat(*shapes, of.axis, of.index, new_axis=True)
    return None


def _piece(concat: Concat, block: Block) -> _Piece:
    axis = concat.axis
    if concat.new_axis:
        values = block.values.unsqueeze(block.num_free + axis)
        return _Piece(values, concat.start, 1, _shifted(concat, block))
    block = block.untie((axis,))
    values, dim, length = block.values, block.num_free + axis, concat.in_shape[axis]
    if values.shape[dim] != length:
        values = values.expand(*values.shape[:dim], length, *values.shape[dim + 1 :])
    return _Piece(values, concat.start, length, block.tied)


def _shifted(concat: Concat, block: Block) -> tuple[int | None, ...]:
    if not concat.new_axis:
        return block.tied
    return tuple(t if t is None or t < concat.axis else t + 1 for t in block.tied)


def _concatenated(concat: Concat, head: Block, pieces: list[_Piece]) -> Block | None:
    tied = pieces[0].tied
    dim = tied.count(None) + concat.axis
    shape = _common_shape([piece.values.shape for piece in pieces], dim)
    values, end = [], 0
    like = pieces[0].values.expand(_at(shape, dim, pieces[0].length))
    for piece in pieces:
        if piece.start < end:
            return None
        if piece.start > end:
            values.append(_zeros(like, dim, piece.start - end))
        values.append(piece.values.expand(_at(shape, dim, piece.length)))
        end = piece.start + piece.length
    behind = concat.out_shape[concat.axis] - end
    if behind:
        values.append(_zeros(like, dim, behind))
    return Block(torch.cat(values, dim), concat.out_shape, head.seed_shape, tied, head.source)


def _common_shape(shapes: Sequence[Shape], dim: int) -> Shape:
    """Return the shape to which all expand (but along ``dim``): 1 where all are constant."""
    sizes = zip(*shapes, strict=True)
    return tuple(
        1 if i == dim else next((n for n in near if n != 1), 1) for i, near in enumerate(sizes)
    )


def _at(shape: Shape, dim: int, size: int) -> Shape:
    return (*shape[:dim], size, *shape[dim + 1 :])


def _zeros(like: Tensor, dim: int, size: int) -> Tensor:
    """Return zeros of the shape of ``like``, but for ``size`` along ``dim``."""
    return torch.zeros(_at(tuple(like.shape), dim, size), dtype=like.dtype, device=like.device)
