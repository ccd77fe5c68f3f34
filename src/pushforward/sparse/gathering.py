"""How terms are pushed through gathers and scatters, whose index tensors say what goes where."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.sparse.digits import unravelled
from pushforward.sparse.index import Index, along, flat
from pushforward.sparse.moving import sliced
from pushforward.sparse.symbolic import Line, Symbolic
from pushforward.sparse.term import Term, changed


def gathered(
    term: Term,
    index: Tensor,
    mixed_in: tuple[int, ...],
    mixed_out: tuple[int, ...],
    out_shape: Shape,
    symbolic: Symbolic,
) -> Term | None:
    """Copy rows: position i of the flattened ``mixed_out`` axes is position index[i] of the ``mixed_in`` ones."""
    sizes = tuple([term.shape[a] for a in mixed_in])
    if len(mixed_in) > 1 or len(mixed_out) > 1:
        out = tuple([out_shape[a] for a in mixed_out])
        steps = symbolic.once(functools.partial(_slices, index, sizes, out))
        if steps is not None:
            return _strided(term, steps, mixed_in, mixed_out, out_shape, symbolic)
    term, merged = _merged(term, mixed_in, symbolic)
    offset = merged.offset

    def where(found: Tensor) -> tuple[int, Line, int]:
        return (*symbolic.as_line(found), len(found))

    if not merged.parts:
        start, line, count = symbolic.once(lambda: where((index == offset).nonzero().reshape(-1)))
        if not count:
            return None
        inner = len(term.lengths)
        term = term.with_axis(count)
    else:
        ((inner, at),) = merged.parts
        length = term.lengths[inner]

        def joined() -> tuple[tuple[int, Line, int], tuple[int, Line, int]]:
            held, outer = _matches(along(at, length, index.device) + offset, index)
            return where(held), where(outer)

        (first, every, count), (start, line, _) = symbolic.once(joined)
        if not count:
            return None
        term = term.taken(inner, (first, every), count, symbolic)
    # All rows but the mixed ones, in order, with the new ones between them.
    kept = [i for a, i in enumerate(term.rows) if a not in mixed_in]
    place = Index(0).with_part(inner, start, line)
    return _with_digits(term, place, mixed_out, kept, out_shape, symbolic)


def scattered(
    term: Term,
    index: Tensor,
    mixed_in: tuple[int, ...],
    mixed_out: tuple[int, ...],
    out_shape: Shape,
    symbolic: Symbolic,
) -> Term | None:
    """Move rows: position i of the flattened ``mixed_in`` axes goes to position index[i] of the ``mixed_out`` ones."""
    sizes = tuple([term.shape[a] for a in mixed_in])
    if len(mixed_in) > 1:
        progression = symbolic.once(functools.partial(_progression, index, sizes))
        if progression is not None:
            first, steps = progression
            merged = Index(first)
            for axis, step in zip(mixed_in, steps, strict=True):
                part = term.rows[axis].scaled(step, symbolic)
                merged = merged.plus(part, symbolic, term.lengths)
            kept = [i for a, i in enumerate(term.rows) if a not in mixed_in]
            return _with_digits(term, merged, mixed_out, kept, out_shape, symbolic)
    term, merged = _merged(term, mixed_in, symbolic)
    offset = merged.offset
    kept = [i for a, i in enumerate(term.rows) if a not in mixed_in]
    if not merged.parts:
        to = symbolic.once(lambda: int(index[offset]))
        if to < 0:
            return None
        return _with_digits(term, Index(to), mixed_out, kept, out_shape, symbolic)
    ((inner, at),) = merged.parts
    length = term.lengths[inner]

    def moved() -> tuple[Tensor | None, int, tuple[int, Line]]:
        to = index[along(at, length, index.device) + offset]
        present = (to >= 0).nonzero().reshape(-1)
        if len(present) == len(to):
            return None, length, symbolic.as_line(to)
        return present, len(present), symbolic.as_line(to[present])

    present, count, line = symbolic.once(moved)
    if not count:
        return None
    if present is not None:
        pick = functools.partial(Term.picked, axis=inner, places=present, symbolic=symbolic)
        term, kept = changed(term, kept, pick)
    place = Index(0).with_part(inner, *line)
    return _with_digits(term, place, mixed_out, kept, out_shape, symbolic)


def _merged(term: Term, axes: tuple[int, ...], symbolic: Symbolic) -> tuple[Term, Index]:
    """Return the position in several near axes together, which follows at most one axis of the term returned."""
    sizes = tuple([term.shape[a] for a in axes])
    merged = flat([term.rows[a] for a in axes], sizes, symbolic, term.lengths)
    if len(merged.axes) > 1:
        fuse = functools.partial(Term.fused, axes=merged.axes, symbolic=symbolic)
        term, (merged,) = changed(term, [merged], fuse)
    return term, merged


def _with_digits(
    term: Term,
    place: Index,
    mixed: tuple[int, ...],
    kept: Sequence[Index],
    out_shape: Shape,
    symbolic: Symbolic,
) -> Term:
    """Put what is at ``place`` of several axes in one into rows, with the ``kept`` ones around them."""
    sizes = tuple([out_shape[a] for a in mixed])
    others, digits = list(kept), []
    if len(sizes) == 1:
        digits = [place]
    elif sizes:
        term, digits, others = unravelled(term, place, sizes, symbolic, others)
    rest, new = iter(others), iter(digits)
    rows = [next(new) if a in mixed else next(rest) for a in range(len(out_shape))]
    return term.with_rows(rows, out_shape)


def _matches(held: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return all pairs (t, i) with held[t] = wanted[i], by i; negative ones are nowhere."""
    ordered, order = torch.sort(held, stable=True)
    begin = torch.searchsorted(ordered, wanted.contiguous())
    end = torch.searchsorted(ordered, wanted.contiguous(), right=True)
    counts = (end - begin) * (wanted >= 0)
    outer = torch.arange(len(wanted), device=wanted.device).repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    within = torch.arange(len(outer), device=wanted.device) - before[outer]
    return order[begin[outer] + within], outer


def _progression(index: Tensor, sizes: Shape) -> tuple[int, tuple[int, ...]] | None:
    """Return (first, steps) of an index that is first + Σ step · t over axes of ``sizes``; None if it is not so."""
    if not index.numel() or bool((index < 0).any()):
        return None
    box = index.reshape(sizes)
    first, steps = int(index[0]), []
    expected = torch.full((1,) * len(sizes), first, device=index.device)
    for axis, size in enumerate(sizes):
        beside = tuple(int(a == axis) for a in range(len(sizes)))
        steps.append(int(box[beside]) - first if size > 1 else 0)
        shape = [1] * len(sizes)
        shape[axis] = size
        expected = expected + (torch.arange(size, device=index.device) * steps[-1]).reshape(shape)
    return (first, tuple(steps)) if bool((box == expected).all()) else None


_Steps = list[tuple[int, int, int | None]]


def _slices(index: Tensor, sizes: Shape, out: Shape) -> _Steps | None:
    """Return an index that is a slice of each axis of ``sizes``: (start, step, axis of ``out`` or None) for each.

    None if it is not so.
    """
    line = _progression(index, out)
    if line is None:
        return None
    rest, steps = line
    found: _Steps = []
    taken: set[int] = set()
    stride = math.prod(sizes)
    for size in sizes:
        stride //= size
        start, rest = divmod(rest, stride)
        mine = [
            k for k, step in enumerate(steps)
            if k not in taken and step > 0 and step % stride == 0 and step // stride < size
        ]  # fmt: skip
        if len(mine) > 1:
            return None
        if not mine:
            found.append((start, 1, None))
            continue
        (k,) = mine
        step = steps[k] // stride
        if start + step * (out[k] - 1) >= size:
            return None
        taken.add(k)
        found.append((start, step, k))
    return found if all(k in taken or n == 1 for k, n in enumerate(out)) else None


def _strided(
    term: Term,
    steps: _Steps,
    mixed_in: tuple[int, ...],
    mixed_out: tuple[int, ...],
    out_shape: Shape,
    symbolic: Symbolic,
) -> Term | None:
    """Take a slice of each of the axes ``mixed_in``."""
    for axis, (start, step, k) in zip(mixed_in, steps, strict=True):
        length = 1 if k is None else out_shape[mixed_out[k]]
        kept_rows = sliced(term, axis, start, step, length, symbolic)
        if kept_rows is None:
            return None
        term = kept_rows
    rows = {
        mixed_out[k]: term.rows[axis]
        for axis, (_, _, k) in zip(mixed_in, steps, strict=True)
        if k is not None
    }
    kept = iter([i for a, i in enumerate(term.rows) if a not in mixed_in])
    return term.with_rows(
        [rows.get(a, Index()) if a in mixed_out else next(kept) for a in range(len(out_shape))],
        out_shape,
    )
