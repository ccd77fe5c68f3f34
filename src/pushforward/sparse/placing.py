"""Placing: writing the values of terms into the values of a sparse matrix, by strides as far as possible."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.tape.tables import table

MIN_STRIDED = 2**15  # entries of a matrix, below which one gather is faster than writes by strides
MIN_BOX = 2**12  # entries of a term


@dataclasses.dataclass(slots=True)
class Box:
    """A box of a term whose entries are written by strides."""

    starts: tuple[int, ...]
    lengths: Shape
    strides: tuple[int, ...]
    offset: int


@dataclasses.dataclass(slots=True)
class Piece:
    """Where the entries of one term go: a box by strides, and the rest one by one."""

    lengths: Shape
    box: Box | None
    rest: Tensor | None  # flat positions in the term; None for all


@dataclasses.dataclass(slots=True)
class Placement:
    """Where the entries of all terms go."""

    count: int
    pieces: list[Piece]
    rest_places: Tensor  # of what is written one by one, in the order of the pieces
    places: Tensor | None  # of all entries: only where some are added up
    order: Tensor | None  # the entry that stands at each place: only where there are few

    def written(self, values: Sequence[Tensor], like: Tensor) -> Tensor:
        """Return the values of the matrix, from those of the terms."""
        if self.places is not None or self.order is not None:
            flat = _joined(
                [_flat(v, p.lengths) for v, p in zip(values, self.pieces, strict=True)], like
            )
            if self.order is not None:
                return flat.index_select(0, table(self.order))
            assert self.places is not None
            zeros = torch.zeros(self.count, dtype=flat.dtype, device=flat.device)
            return zeros.index_add(0, table(self.places), flat)
        return self._by_strides(values, like)

    def _by_strides(self, values: Sequence[Tensor], like: Tensor) -> Tensor:
        dtype = values[0].dtype if values else like.dtype
        out = torch.empty(self.count, dtype=dtype, device=like.device)
        rest = []
        for value, piece in zip(values, self.pieces, strict=True):
            box = piece.box
            if box is not None:
                inner = value
                for axis, (start, length) in enumerate(zip(box.starts, box.lengths, strict=True)):
                    if inner.shape[axis] != 1:
                        inner = inner.narrow(axis, start, length)
                out.as_strided(box.lengths, box.strides, box.offset).copy_(inner)
            if piece.rest is None:
                rest.append(_flat(value, piece.lengths))
            elif len(piece.rest):
                rest.append(_some(value, piece.lengths, piece.rest))
        if rest:
            out.index_copy_(0, table(self.rest_places), torch.cat(rest))
        return out


def _joined(values: Sequence[Tensor], like: Tensor) -> Tensor:
    if not values:
        return torch.zeros(0, dtype=like.dtype, device=like.device)
    return values[0] if len(values) == 1 else torch.cat(list(values))


def _flat(value: Tensor, lengths: Shape) -> Tensor:
    return value.expand(lengths).reshape(-1)


def _some(value: Tensor, lengths: Shape, places: Tensor) -> Tensor:
    if value.numel() == 1:
        return value.reshape(1).expand(len(places))
    return _flat(value, lengths).index_select(0, table(places))


def placements(places: Sequence[Tensor], count: int) -> Placement:
    """Return how to write terms whose entries have ``places`` in an array of ``count`` values."""
    total = sum(p.numel() for p in places)
    shapes = [tuple(p.shape) for p in places]
    none = torch.empty(0, dtype=torch.int64)
    if total != count:  # some entries come twice
        together = torch.cat([p.reshape(-1) for p in places])
        return Placement(count, [Piece(s, None, None) for s in shapes], none, together, None)
    if count < MIN_STRIDED:
        order = torch.empty(count, dtype=torch.int64)
        if places:
            together = torch.cat([p.reshape(-1) for p in places])
            order = torch.empty_like(together)
            order[together] = torch.arange(count, device=together.device)
        return Placement(count, [Piece(s, None, None) for s in shapes], none, None, order)
    pieces, rest_places = [], []
    for place in places:
        box = _box(place) if place.numel() >= MIN_BOX else None
        if box is None:
            pieces.append(Piece(tuple(place.shape), None, None))
            rest_places.append(place.reshape(-1))
            continue
        outside = torch.ones(place.shape, dtype=torch.bool, device=place.device)
        outside[tuple(slice(s, s + n) for s, n in zip(box.starts, box.lengths, strict=True))] = (
            False
        )
        rest = outside.reshape(-1).nonzero().reshape(-1)
        pieces.append(Piece(tuple(place.shape), box, rest))
        rest_places.append(place.reshape(-1)[rest])
    return Placement(count, pieces, torch.cat(rest_places), None, None)


def _box(places: Tensor) -> Box | None:
    """Return the largest box found in which places are a progression along each axis; None if that is small."""
    lengths = tuple(places.shape)
    middle = tuple(n // 2 for n in lengths)
    centre = int(places[middle])
    strides = []
    for axis, length in enumerate(lengths):
        beside = list(middle)
        beside[axis] += 1 if middle[axis] + 1 < length else -1
        step = int(places[tuple(beside)]) - centre if length > 1 else 0
        strides.append(step if beside[axis] > middle[axis] else -step)
    if any(s <= 0 for s, n in zip(strides, lengths, strict=True) if n > 1):
        return None
    first = centre - sum(s * m for s, m in zip(strides, middle, strict=True))
    expected = torch.full((1,) * len(lengths), first, device=places.device)
    for axis, (step, length) in enumerate(zip(strides, lengths, strict=True)):
        sizes = [1] * len(lengths)
        sizes[axis] = length
        expected = expected + (torch.arange(length, device=places.device) * step).reshape(sizes)
    wrong = places != expected
    low, high = [0] * len(lengths), list(lengths)
    for _ in range(8 * len(lengths)):
        inner = wrong[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        if not bool(inner.any()):
            break
        faces = []
        for axis in range(len(lengths)):
            for end in (0, -1):
                face = inner.select(axis, end)
                faces.append((float(face.sum()) / max(face.numel(), 1), axis, end))
        share, axis, end = max(faces)
        if share < 0.1:
            return None
        if end == 0:
            low[axis] += 1
        else:
            high[axis] -= 1
        if low[axis] >= high[axis]:
            return None
    else:
        return None
    box = tuple(b - a for a, b in zip(low, high, strict=True))
    if 2 * torch.Size(box).numel() < places.numel():
        return None
    offset = first + sum(s * a for s, a in zip(strides, low, strict=True))
    return Box(tuple(low), box, tuple(strides), offset)
