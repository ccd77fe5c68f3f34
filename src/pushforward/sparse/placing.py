"""Placing: writing the values of terms into the values of a sparse matrix, by strides as far as possible."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.tables import table
from pushforward.tape.private_torch import bare

MIN_STRIDED = 2**15  # entries of a matrix, below which one gather is faster than writes by strides
MIN_BOX = 2**12  # entries of a term
MIN_COMMON = 0.9  # of the entries of boxes that are cut to what they have in common

_Span = list[tuple[int, int]]


@dataclasses.dataclass(slots=True)
class Box:
    """A box of a term whose entries are written by strides."""

    starts: tuple[int, ...]
    lengths: Shape
    strides: tuple[int, ...]
    offset: int

    @property
    def inside(self) -> tuple[slice, ...]:
        """Its places in the term."""
        return tuple(slice(s, s + n) for s, n in zip(self.starts, self.lengths, strict=True))


@dataclasses.dataclass(slots=True)
class Piece:
    """Where the entries of one term go: a box by strides, and the rest one by one."""

    lengths: Shape
    box: Box | None
    rest: Tensor | None  # flat positions in the term; None for all
    is_added: bool = False  # whether some of the entries come before

    @property
    def num_rest(self) -> int:
        """How many entries are written one by one."""
        return math.prod(self.lengths) if self.rest is None else len(self.rest)


@dataclasses.dataclass(slots=True)
class Placement:
    """Where the entries of all terms go."""

    count: int
    pieces: list[Piece]
    # Places of what is copied, and of what is added, one by one, in the order of the pieces
    rests: tuple[Tensor, Tensor]
    places: Tensor | None = None  # of all entries: where they are few
    # The entry that stands at each place: where they are few, and none comes twice
    order: Tensor | None = None
    every: Tensor | None = None  # like places, once asked for

    def written(self, values: Sequence[Tensor], like: Tensor) -> Tensor:
        """Return the values of the matrix, from those of the terms."""
        if self.order is None and self.places is None and not _is_recorded(values):
            return self._by_strides(values, like)
        flat = _joined(
            [_flat(v, p.lengths) for v, p in zip(values, self.pieces, strict=True)], like
        )
        if self.order is not None:
            return flat.index_select(0, table(self.order))
        places = self.places if self.places is not None else self._all_places()
        zeros = torch.zeros(self.count, dtype=flat.dtype, device=flat.device)
        return zeros.index_add(0, table(places), flat)

    def _by_strides(self, values: Sequence[Tensor], like: Tensor) -> Tensor:
        dtype = values[0].dtype if values else like.dtype
        make = torch.zeros if any(p.is_added for p in self.pieces) else torch.empty
        out = make(self.count, dtype=dtype, device=like.device)
        for is_added, places in enumerate(self.rests):
            rest = []
            for value, piece in zip(values, self.pieces, strict=True):
                if piece.is_added != bool(is_added):
                    continue
                if piece.box is not None:
                    inner, box = value, piece.box
                    for axis, (start, n) in enumerate(zip(box.starts, box.lengths, strict=True)):
                        if inner.shape[axis] != 1:
                            inner = inner.narrow(axis, start, n)
                    target = out.as_strided(box.lengths, box.strides, box.offset)
                    target.add_(inner) if is_added else target.copy_(inner)
                if piece.rest is None:
                    rest.append(_flat(value, piece.lengths))
                elif len(piece.rest):
                    rest.append(_some(value, piece.lengths, piece.rest))
            if rest:
                write = out.index_add_ if is_added else out.index_copy_
                write(0, table(places), _joined(rest, like))
        return out

    def _all_places(self) -> Tensor:
        """Return the place of every entry."""
        if self.every is None:
            with bare():
                self.every = self._listed()
        return self.every

    def _listed(self) -> Tensor:
        rests = [places.split([p.num_rest for p in self.pieces if p.is_added == bool(i)])
                 for i, places in enumerate(self.rests)]  # fmt: skip
        following = [iter(r) for r in rests]
        found = []
        for piece in self.pieces:
            rest = next(following[piece.is_added])
            whole = torch.empty(piece.lengths, dtype=torch.int64, device=rest.device)
            if piece.rest is None:
                found.append(rest)
                continue
            if piece.box is not None:
                box = piece.box
                whole[box.inside] = _progressions(box.offset, box.strides, box.lengths, rest.device)
            flat = whole.reshape(-1)
            flat[piece.rest] = rest
            found.append(flat)
        return torch.cat(found)


def _is_recorded(values: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(v.requires_grad for v in values)


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
    shapes = [tuple(p.shape) for p in places]
    none = torch.empty(0, dtype=torch.int64)
    if count < MIN_STRIDED or not places:
        pieces = [Piece(shape, None, None) for shape in shapes]
        together = torch.cat([p.reshape(-1) for p in places]) if places else none
        if len(together) != count:  # some entries come twice
            return Placement(count, pieces, (none, none), places=together)
        order = torch.empty_like(together)
        order[together] = torch.arange(count, device=together.device)
        return Placement(count, pieces, (none, none), order=order)
    pieces, rests = [], ([none.to(places[0].device)], [none.to(places[0].device)])
    repeated = _repeated(places, count)
    boxes = _aligned([_box(p) if p.numel() >= MIN_BOX else None for p in places])
    for place, box, is_added in zip(places, boxes, repeated, strict=True):
        rest = None
        if box is not None:
            outside = torch.ones(place.shape, dtype=torch.bool, device=place.device)
            outside[box.inside] = False
            rest = outside.reshape(-1).nonzero().reshape(-1)
        pieces.append(Piece(tuple(place.shape), box, rest, is_added))
        rests[is_added].append(place.reshape(-1) if rest is None else place.reshape(-1)[rest])
    copied, summed = (torch.cat(r) for r in rests)
    return Placement(count, pieces, (copied, summed))


def _repeated(places: Sequence[Tensor], count: int) -> list[bool]:
    """Tell of each term whether some of its places come twice, in it or before."""
    if sum(p.numel() for p in places) == count:
        return [False] * len(places)
    seen = torch.zeros(count, dtype=torch.bool, device=places[0].device)
    found, num_seen = [], 0
    for place in places:
        seen[place.reshape(-1)] = True
        num_before, num_seen = num_seen, int(torch.count_nonzero(seen))
        found.append(num_seen - num_before != place.numel())
    return found


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
    wrong = places != _progressions(first, strides, lengths, places.device)
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
    if 2 * torch.Size(box).numel() < places.numel() or meets_itself(strides, box):
        return None
    offset = first + sum(s * a for s, a in zip(strides, low, strict=True))
    return Box(tuple(low), box, tuple(strides), offset)


def _aligned(boxes: Sequence[Box | None]) -> list[Box | None]:
    """Cut boxes that interleave to what they have in common, if that is nearly all of each.

    They are the entries of a row, say, each of which leaves other borders out. A compiled program writes them together.
    """
    found = list(boxes)
    groups: list[tuple[_Span, tuple[int, ...], list[int]]] = []
    for number, box in enumerate(boxes):
        if box is None:
            continue
        span = _span(box)
        for place, (other, strides, members) in enumerate(groups):
            common = _common(span, other)
            if common is not None and strides == box.strides:
                groups[place] = (common, strides, [*members, number])
                break
        else:
            groups.append((span, box.strides, [number]))
    for span, _, members in groups:
        for number in members:
            if (box := boxes[number]) is not None:
                found[number] = _cut(box, span)
    return found


def _span(box: Box) -> _Span:
    """Return where a box begins and ends, in steps along each axis."""
    begins, left = [0] * len(box.strides), box.offset
    for axis in sorted(range(len(begins)), key=lambda a: -box.strides[a]):
        if box.strides[axis]:
            begins[axis], left = divmod(left, box.strides[axis])
    return [(b, b + n) for b, n in zip(begins, box.lengths, strict=True)]


def _common(span: _Span, other: _Span) -> _Span | None:
    if len(span) != len(other):
        return None
    found = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(span, other, strict=True)]
    size = math.prod(max(b - a, 0) for a, b in found)
    largest = max(math.prod(b - a for a, b in s) for s in (span, other))
    return found if size >= MIN_COMMON * largest else None


def _cut(box: Box, span: _Span) -> Box:
    shifts = [a - b for (a, _), (b, _) in zip(span, _span(box), strict=True)]
    return Box(
        tuple(start + shift for start, shift in zip(box.starts, shifts, strict=True)),
        tuple(b - a for a, b in span),
        box.strides,
        box.offset + sum(s * shift for s, shift in zip(box.strides, shifts, strict=True)),
    )


def meets_itself(strides: Sequence[int], lengths: Shape) -> bool:
    """Tell whether positions in a box might have the same place."""
    reach = 0
    for step, length in sorted((s, n) for s, n in zip(strides, lengths, strict=True) if n > 1):
        if step <= reach:
            return True
        reach += step * (length - 1)
    return False


def _progressions(
    first: int, strides: Sequence[int], lengths: Shape, device: torch.device
) -> Tensor:
    """Return first + Σ stride · t for all t in a box."""
    total = torch.full((1,) * len(lengths), first, device=device)
    for axis, (step, length) in enumerate(zip(strides, lengths, strict=True)):
        sizes = [1] * len(lengths)
        sizes[axis] = length
        total = total + (torch.arange(length, device=device) * step).reshape(sizes)
    return total
