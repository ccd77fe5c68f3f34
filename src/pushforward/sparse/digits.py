"""Reshapes of terms: positions along several axes in one, and their digits along each."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, reshape_groups
from pushforward.sparse.index import Index, along, flat
from pushforward.sparse.symbolic import Line, Symbolic
from pushforward.sparse.term import Term, changed


def reshaped(term: Term, shape: Shape, symbolic: Symbolic) -> Term:
    """Regroup the near axes, row-major."""
    if shape == term.shape:
        return term
    rows = [Index()] * len(shape)
    for ins, outs in reshape_groups(term.shape, shape):
        if not outs:
            continue
        sizes = tuple([shape[o] for o in outs])
        indices = [term.rows[i] for i in ins]
        merged = flat(indices, tuple([term.shape[i] for i in ins]), symbolic, term.lengths)
        term, found, rows = unravelled(term, merged, sizes, symbolic, rows)
        for o, index in zip(outs, found, strict=True):
            rows[o] = index
    return term.with_rows(rows, shape)


def unravelled(
    term: Term, merged: Index, sizes: Shape, symbolic: Symbolic, others: Sequence[Index]
) -> tuple[Term, list[Index], list[Index]]:
    """Return the indices along axes of ``sizes`` of what is at ``merged`` in all of them together.

    Axes of the term may have to be cut or joined: ``others`` are indices that have to follow.
    """
    while True:
        found = _digits(term, merged, sizes)
        if found is not None:
            return term, found, list(others)
        cut = _cut_for(term, merged, sizes, others)
        if cut is None:
            break
        term, merged, others = cut
    # By tables: of one axis, so that all that it follows becomes one.
    rest = list(others)
    if len(merged.axes) > 1:
        fuse = functools.partial(Term.fused, axes=merged.axes, symbolic=symbolic)
        term, (merged, *rest) = changed(term, [merged, *others], fuse)
        found = _digits(term, merged, sizes)
        if found is not None:
            return term, found, rest
    (inner,) = merged.axes
    offset, at, length = merged.offset, merged.line(inner), term.lengths[inner]
    digits: list[Index] = []
    stride = math.prod(sizes)
    device = term.values.device
    for size in sizes:
        stride //= size
        digit = functools.partial(_digit, at, length, offset, stride, size, device)
        line = symbolic.line(digit)
        digits.append(Index().with_part(inner, *line))
    return term, digits, rest


def _digit(
    at: Line, length: int, offset: int, stride: int, size: int, device: torch.device
) -> Tensor:
    return (along(at, length, device) + offset) // stride % size


def _digits(term: Term, merged: Index, sizes: Shape) -> list[Index] | None:
    """Write a position as digits to the radices ``sizes``, where each axis of the term belongs to one digit."""
    if not merged.is_regular:
        return None
    strides, stride = [], math.prod(sizes)
    for size in sizes:
        stride = stride // size if size else 0
        strides.append(stride)
    offset, digits = merged.offset, []
    parts = {a: at for a, at in merged.parts if isinstance(at, int)}
    for size, stride in zip(sizes, strides, strict=True):
        first, offset = divmod(offset, stride)
        mine = [
            a for a, at in parts.items() if at % stride == 0 and abs(at) // stride < max(size, 1)
        ]
        index, low, high = Index(first), first, first
        for a in mine:
            at = parts.pop(a) // stride
            reach = at * (term.lengths[a] - 1)
            low, high = low + min(reach, 0), high + max(reach, 0)
            index = index.with_part(a, 0, at)
        if low < 0 or high >= size:
            return None
        digits.append(index)
    return None if parts else digits


def _cut_for(
    term: Term, merged: Index, sizes: Shape, others: Sequence[Index]
) -> tuple[Term, Index, list[Index]] | None:
    """Cut an axis of the term that runs through several digits; None where none can be cut."""
    stride = 1
    for size in reversed(sizes[1:]):
        stride *= size
        for axis, at in merged.parts:
            if not isinstance(at, int) or at <= 0 or stride % at:
                continue
            inner, length = stride // at, term.lengths[axis]
            if inner <= 1 or length <= inner or length % inner:
                continue
            if not all(isinstance(i.line(axis), int) for i in (*term.rows, *term.cols, *others)):
                continue
            cut = functools.partial(Term.split, axis=axis, sizes=(length // inner, inner))
            term, (merged, *rest) = changed(term, [merged, *others], cut)
            return term, merged, rest
    return None
