"""How terms are pushed through maps that move rows along axes: broadcasts, sums, slices and their transposes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from pushforward.linear.axes import Shape, repeated_axes, with_size
from pushforward.sparse.index import Index
from pushforward.sparse.symbolic import Symbolic
from pushforward.sparse.term import Term


def permuted(term: Term, dims: Sequence[int]) -> Term:
    """Reorder the near axes."""
    return term.with_rows([term.rows[d] for d in dims], tuple([term.shape[d] for d in dims]))


def expanded(term: Term, shape: Shape) -> Term:
    """Broadcast the near axes to ``shape``, aligned on the right."""
    added = len(shape) - len(term.shape)
    rows: list[Index] = []
    for axis, size in enumerate(shape):
        is_new = axis < added
        if is_new or (term.shape[axis - added] == 1 and size != 1):
            rows.append(Index(0, ((len(term.lengths), 1),)))
            term = term.with_axis(size)
        else:
            rows.append(term.rows[axis - added])
    return term.with_rows(rows, shape)


def summed(term: Term, axes: Sequence[int], keepdim: bool) -> Term:
    """Add up along near axes: their positions do not matter any more."""
    rows = [
        Index() if a in axes else i for a, i in enumerate(term.rows) if keepdim or a not in axes
    ]
    sizes = [1 if a in axes else n for a, n in enumerate(term.shape) if keepdim or a not in axes]
    return term.with_rows(rows, tuple(sizes))


def summed_to(term: Term, shape: Shape) -> Term:
    """Undo a broadcast from ``shape``."""
    added = len(term.shape) - len(shape)
    term = summed(term, repeated_axes(shape, term.shape), keepdim=True)
    return term.with_rows(term.rows[added:], shape)


def sliced(
    term: Term, axis: int, start: int, step: int, length: int, symbolic: Symbolic
) -> Term | None:
    """Keep the rows start, start + step, ... along ``axis``, which may reach beyond it, and number them anew."""
    index = term.rows[axis]
    low, high = index.extremes(term.lengths, symbolic)
    last = start + step * (length - 1)
    if high < start or low > last or length == 0:
        return None
    if start <= low and high <= last and step == 1:
        return _with_row(term, axis, index.shifted(-start), length)
    if not index.parts:
        place, rest = divmod(index.offset - start, step)
        return None if rest else _with_row(term, axis, Index(place), length)
    if len(index.parts) > 1:
        narrowed = _sliced_inside(term, axis, start, last, symbolic) if step == 1 else None
        if narrowed is not None:
            return _with_row(narrowed, axis, narrowed.rows[axis].shifted(-start), length)
        term = term.fused(index.axes, symbolic)
        index = term.rows[axis]
        if not index.parts:
            return sliced(term, axis, start, step, length, symbolic)
    ((inner, at),) = index.parts
    if isinstance(at, int):
        kept = _in_common(index.offset, at, term.lengths[inner], start, step, length)
        if kept is None:
            return None
        first, every, count = kept
        term = term.narrowed(inner, first, every, count, symbolic)
        index = term.rows[axis]
        numbers = Index((index.offset - start) // step).with_part(inner, 0, at * every // step)
        return _with_row(term, axis, numbers, length)
    offset = index.offset

    def places() -> tuple[Tensor, int]:
        found = at + (offset - start)
        inside = (found >= 0) & (found <= last - start) & (found % step == 0)
        kept = inside.nonzero().reshape(-1)
        return kept, len(kept)

    kept_table, count = symbolic.once(places)
    if not count:
        return None
    term = term.picked(inner, kept_table, symbolic)
    line = symbolic.line(lambda: (at[kept_table] + (offset - start)) // step)
    return _with_row(term, axis, Index(0).with_part(inner, *line), length)


def _with_row(term: Term, axis: int, index: Index, size: int) -> Term:
    rows = (*term.rows[:axis], index, *term.rows[axis + 1 :])
    return term.with_rows(rows, with_size(term.shape, axis, size))


def _in_common(
    offset: int, at: int, count: int, start: int, step: int, length: int
) -> tuple[int, int, int] | None:
    """Return (first, every, count) of the t for which offset + at · t is one of start, start + step, ...."""
    every = step // math.gcd(at, step)
    first = next((t for t in range(every) if (offset + at * t - start) % step == 0), None)
    if first is None:
        return None
    low, high = (start - offset, start + step * (length - 1) - offset)
    least, most = (-(-low // at), high // at) if at > 0 else (-(-high // at), low // at)
    least, most = max(least, 0), min(most, count - 1)
    first += every * max(-(-(least - first) // every), 0)
    return (first, every, (most - first) // every + 1) if first <= most else None


def _sliced_inside(term: Term, axis: int, start: int, last: int, symbolic: Symbolic) -> Term | None:
    """Keep rows between two ends, where that is done by narrowing one of several axes; else None."""
    index = term.rows[axis]
    if not index.is_regular:
        return None
    parts = sorted([(at, a) for a, at in index.parts if isinstance(at, int)], reverse=True)
    (step, outer), others = parts[0], parts[1:]
    if others[-1][0] <= 0:
        return None
    reach = sum(at * (term.lengths[a] - 1) for at, a in others)
    if reach >= step:
        return None
    # Whole rounds of the outermost axis: those that begin in time and end in time.
    first = -(-(start - index.offset) // step)
    final = (last - index.offset - reach) // step
    low, high = max(first, 0), min(final, term.lengths[outer] - 1)
    for t in (low - 1, high + 1):  # rounds that are cut
        inside = 0 <= t < term.lengths[outer]
        begin = index.offset + step * t
        if inside and begin + reach >= start and begin <= last:
            return None
    if low > high:
        return None
    return term.narrowed(outer, low, 1, high - low + 1, symbolic)


def placed(term: Term, axis: int, start: int, step: int, size: int, symbolic: Symbolic) -> Term:
    """Write rows into zeros of ``size`` along ``axis``, at start, start + step, ...."""
    index = term.rows[axis].scaled(step, symbolic).shifted(start)
    return _with_row(term, axis, index, size)


def selected(term: Term, axis: int, place: int, symbolic: Symbolic) -> Term | None:
    """Keep one row along ``axis``, and drop the axis."""
    found = sliced(term, axis, place, 1, 1, symbolic)
    return None if found is None else without_axis(found, axis)


def without_axis(term: Term, axis: int) -> Term:
    """Drop a near axis of size 1."""
    shape = term.shape[:axis] + term.shape[axis + 1 :]
    return term.with_rows(term.rows[:axis] + term.rows[axis + 1 :], shape)


def with_axis(term: Term, axis: int, place: int, size: int) -> Term:
    """Write everything at one position of a new near axis."""
    rows = (*term.rows[:axis], Index(place), *term.rows[axis:])
    return term.with_rows(rows, (*term.shape[:axis], size, *term.shape[axis:]))
