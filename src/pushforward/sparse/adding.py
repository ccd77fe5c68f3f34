"""Sums of terms: as few as can be had without storing an entry more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.tables import table
from pushforward.sparse.index import Index, flat
from pushforward.sparse.symbolic import Line, Symbolic
from pushforward.sparse.term import Term

Terms = list[Term]

MIN_JOINED = 2**8  # entries, below which finding those that come twice is not worth while
MAX_LEFT = 0.7  # the share of entries that may be left over when such are joined


def added(terms: Terms) -> Terms:
    """Return the sum of ``terms``: those of the same structure become one, and those within the window of another."""
    if len(terms) < 2:
        return terms
    found: dict[object, Term] = {}
    for term in terms:
        key = term.structure
        other = found.get(key)
        found[key] = term if other is None else term.with_values(other.values + term.values)
    return _by_windows(list(found.values())) if len(found) > 1 else list(found.values())


def _by_windows(terms: Terms) -> Terms:
    """Join terms that are the same stencil on windows of rows, one of which contains the other."""
    lines: dict[object, Terms] = {}
    alone: Terms = []
    for term in terms:
        line = _line(term)
        if line is None:
            alone.append(term)
        else:
            lines.setdefault(line, []).append(term)
    for group in lines.values():
        kept: Terms = []
        for term in sorted(group, key=lambda t: -t.size):
            place, window = next(
                ((i, w) for i, other in enumerate(kept) if (w := _joint(other, term)) is not None),
                (None, []),
            )
            if place is None:
                kept.append(term)
            else:
                kept[place] = _both(kept[place], term, window)
        alone += kept
    return alone


def _line(term: Term) -> object:
    """Return what terms have in common that are the same stencil on windows of rows; None for others."""
    starts: dict[int, int] = {}
    rows: list[object] = []
    for index in term.rows:
        if not index.parts:
            rows.append(index.offset)
            continue
        ((axis, at), *more) = index.parts
        if more or axis in starts or not isinstance(at, int) or at != 1:
            return None
        starts[axis] = index.offset
        rows.append((axis,))
    cols: list[object] = []
    for index in term.cols:
        if not index.is_regular:
            return None
        before = sum(at * starts.get(axis, 0) for axis, at in index.parts if isinstance(at, int))
        cols.append((index.offset - before, index.key[1]))
    free = tuple([n for a, n in enumerate(term.lengths) if a not in starts])
    return term.source, term.shape, tuple(rows), tuple(cols), free


_Window = list[tuple[int, int, int]]


def _window(term: Term) -> _Window:
    """Return (axis, first row, row behind the last) for each near axis that is followed."""
    found = [(i.parts[0][0], i.offset) for i in term.rows if i.parts]
    return [(axis, start, start + term.lengths[axis]) for axis, start in found]


def _joint(first: Term, second: Term) -> _Window | None:
    """Return the rows of both together, where these are a window: they differ along one axis, or one is inside."""
    pairs = list(zip(_window(first), _window(second), strict=True))
    joint = [(axis, min(a, c), max(b, d)) for (axis, a, b), (_, c, d) in pairs]
    differing = [(a, b, c, d) for (_, a, b), (_, c, d) in pairs if (a, b) != (c, d)]
    if all(a <= c and d <= b for a, b, c, d in differing):
        return joint
    if len(differing) == 1 and all(max(a, c) <= min(b, d) for a, b, c, d in differing):
        return joint
    return None


def _both(first: Term, second: Term, joint: _Window) -> Term:
    """Add two terms on a window that contains those of both."""
    values = _on(first, joint) + _on(second, joint)
    starts = {axis: start for axis, start, _ in joint}
    moved = {axis: starts[axis] - start for axis, start, _ in _window(first)}
    lengths = list(first.lengths)
    for axis, start, end in joint:
        lengths[axis] = end - start

    def change(index: Index) -> Index:
        return index.shifted(
            sum(at * moved.get(axis, 0) for axis, at in index.parts if isinstance(at, int))
        )

    return first.with_indices(change, values, tuple(lengths))


def _on(term: Term, joint: _Window) -> Tensor:
    """Return the values on a larger window, zero where the term has none."""
    count, values = len(term.lengths), term.values
    pad, sizes = [0] * (2 * count), list(values.shape)
    for (axis, a, b), (_, start, end) in zip(_window(term), joint, strict=True):
        if (a, b) != (start, end):
            sizes[axis] = b - a
            place = 2 * (count - 1 - axis)
            pad[place : place + 2] = [a - start, end - b]
    return F.pad(values.expand(sizes), pad) if any(pad) else values


def joined(terms: Terms, symbolic: Symbolic) -> Terms:
    """Return the sum of ``terms`` with entries that come many times joined, where tables made these."""
    regular = [t for t in terms if _is_regular(t)]
    result = regular
    for source in sorted({t.source for t in terms}):
        mine = [t for t in terms if t.source == source and not _is_regular(t)]
        if sum(t.size for t in mine) >= MIN_JOINED:
            mine = _joined(mine, symbolic)
        result = result + mine
    return result


def condensed(terms: Terms, symbolic: Symbolic) -> Terms:
    """Return the sum of ``terms``, joined where there are more of them than a dense matrix has entries."""
    result: Terms = []
    for source in sorted({t.source for t in terms}):
        mine = [t for t in terms if t.source == source]
        dense = torch.Size(mine[0].shape).numel() * torch.Size(mine[0].seed_shape).numel()
        is_repeated = sum(t.size for t in mine) > max(dense, MIN_JOINED)
        result += _joined(mine, symbolic) if is_repeated else mine
    return result


def _is_regular(term: Term) -> bool:
    return all(index.is_regular for index in term.rows)


def _joined(terms: Terms, symbolic: Symbolic) -> Terms:
    first = terms[0]
    pairs = [
        (
            flat(t.rows, t.shape, symbolic, t.lengths),
            flat(t.cols, t.seed_shape, symbolic, t.lengths),
        )
        for t in terms
    ]
    lengths = [t.lengths for t in terms]
    found = symbolic.once(
        lambda: _entries(
            pairs, lengths, first.shape, first.seed_shape, first.values.device, symbolic
        )
    )
    if found is None:
        return terms
    count, number, rows, cols = found
    flats = [t.values.expand(t.lengths).reshape(-1) for t in terms]
    whole = flats[0] if len(flats) == 1 else torch.cat(flats)
    zeros = torch.zeros(count, dtype=whole.dtype, device=whole.device)
    values = zeros.index_add(0, table(number), whole)
    near = tuple([Index().with_part(0, *line) for line in rows])
    far = tuple([Index().with_part(0, *line) for line in cols])
    return [Term(values, (count,), near, far, first.shape, first.seed_shape, first.source).tidy()]


_Lines = list[tuple[int, Line]]


def _entries(
    pairs: Sequence[tuple[Index, Index]],
    lengths: Sequence[Shape],
    shape: Shape,
    seed_shape: Shape,
    device: torch.device,
    symbolic: Symbolic,
) -> tuple[int, Tensor, _Lines, _Lines] | None:
    """Return how many entries there are, the number of each value's entry, and rows and columns of the entries."""
    width = max(torch.Size(seed_shape).numel(), 1)
    keys = [
        (r.evaluated(box, device) * width + c.evaluated(box, device)).expand(box).reshape(-1)
        for (r, c), box in zip(pairs, lengths, strict=True)
    ]
    present, number = torch.unique(torch.cat(keys), return_inverse=True)
    if len(present) > MAX_LEFT * len(number):
        return None
    rows = _digits(present // width, shape, symbolic)
    cols = _digits(present % width, seed_shape, symbolic)
    return len(present), number, rows, cols


def _digits(places: Tensor, shape: Shape, symbolic: Symbolic) -> _Lines:
    found: _Lines = []
    for size in reversed(shape):
        found.insert(0, symbolic.as_line(places % max(size, 1)))
        places = places // max(size, 1)
    return found
