"""Term: part of a sparse Jacobian. Rows and columns follow from positions by steps and tables, an axis at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, with_size
from pushforward.linear.tables import table as as_table
from pushforward.sparse.index import Index
from pushforward.sparse.products import LONG, summed, taken
from pushforward.sparse.symbolic import Line, Symbolic


@dataclasses.dataclass(slots=True)
class Term:
    """Entries of a Jacobian, one for each position t in a box of ``lengths``.

    Math: J = Σ_t values[t] e_{rows(t)} e_{cols(t)}ᵀ. Two positions may name the same entry: they add up.
    """

    values: Tensor  # broadcasts to lengths, with as many axes
    lengths: Shape
    rows: tuple[Index, ...]  # one for each near axis
    cols: tuple[Index, ...]  # one for each axis of the seeds
    shape: Shape  # of the near end
    seed_shape: Shape
    source: int = 0  # the number of the input

    @property
    def structure(self) -> object:
        """Terms with the same structure add by adding their values."""
        rows, cols = [i.key for i in self.rows], [i.key for i in self.cols]
        return self.source, self.lengths, self.shape, tuple(rows), tuple(cols)

    @property
    def size(self) -> int:
        """How many entries it has."""
        return math.prod(self.lengths)

    def with_values(self, values: Tensor) -> Term:
        """Return the same structure with other values."""
        if values is self.values:
            return self
        return dataclasses.replace(self, values=values)

    def with_rows(self, rows: Sequence[Index], shape: Shape) -> Term:
        """Return the same entries in other rows."""
        return dataclasses.replace(self, rows=tuple(rows), shape=shape)

    def with_indices(
        self, change: Callable[[Index], Index], values: Tensor, lengths: Shape
    ) -> Term:
        """Change all indices, and what they follow."""
        rows, cols = tuple(map(change, self.rows)), tuple(map(change, self.cols))
        return dataclasses.replace(self, values=values, lengths=lengths, rows=rows, cols=cols)

    def with_axis(self, length: int) -> Term:
        """Add an axis, the last one, over which the values are constant."""
        values = self.values.unsqueeze(-1)
        return dataclasses.replace(self, values=values, lengths=(*self.lengths, length))

    def narrowed(self, axis: int, start: int, step: int, length: int, symbolic: Symbolic) -> Term:
        """Take the positions start, start + step, ... along ``axis``."""
        if (start, step, length) == (0, 1, self.lengths[axis]):
            return self
        values = self.values
        if values.shape[axis] != 1:
            values = progression(values, axis, start, step, length)

        def change(index: Index) -> Index:
            at = index.line(axis)
            if isinstance(at, int):
                return index.with_part(axis, at * start, at * step)
            taken = start + step * torch.arange(length, device=at.device)
            return index.with_part(axis, *symbolic.line(lambda: at[taken]))

        return self.with_indices(change, values, with_size(self.lengths, axis, length))

    def picked(self, axis: int, places: Tensor, symbolic: Symbolic) -> Term:
        """Take the positions ``places`` along ``axis``."""
        values = self.values
        if values.shape[axis] != 1:
            values = taken(values, axis, as_table(places))

        def change(index: Index) -> Index:
            at = index.line(axis)
            if isinstance(at, int) and at == 0:
                return index
            taken = symbolic.line(lambda: at * places if isinstance(at, int) else at[places])
            return index.with_part(axis, *taken)

        return self.with_indices(change, values, with_size(self.lengths, axis, len(places)))

    def taken(self, axis: int, at: tuple[int, Line], length: int, symbolic: Symbolic) -> Term:
        """Take the positions that a line gives to 0, ..., length - 1."""
        offset, line = at
        if isinstance(line, int):
            return self.narrowed(axis, offset, line, length, symbolic)
        return self.picked(axis, line, symbolic)

    def split(self, axis: int, sizes: Shape) -> Term:
        """Cut an axis, which no index follows by a table, into several, row-major."""
        added = len(sizes) - 1
        values = self.values
        inner = sizes if values.shape[axis] != 1 else (1,) * len(sizes)
        values = values.reshape((*values.shape[:axis], *inner, *values.shape[axis + 1 :]))

        def change(index: Index) -> Index:
            step = index.line(axis)
            assert isinstance(step, int)
            index = index.with_part(axis, 0, 0).with_axes(lambda a: a if a < axis else a + added)
            for place, size in reversed(list(enumerate(sizes))):
                index = index.with_part(axis + place, 0, step)
                step *= size
            return index

        lengths = (*self.lengths[:axis], *sizes, *self.lengths[axis + 1 :])
        return self.with_indices(change, values, lengths)

    def fused(self, axes: Sequence[int], symbolic: Symbolic) -> Term:
        """Make one axis, the last one, of several."""
        ndim, count = len(self.lengths), math.prod(self.lengths[a] for a in axes)
        kept = [a for a in range(ndim) if a not in axes]
        values, sizes = self.values, list(self.values.shape)
        varies = any(sizes[a] != 1 for a in axes)
        if varies:
            for a in axes:
                sizes[a] = self.lengths[a]
            values = values.expand(sizes)
        values = values.permute(*kept, *axes)
        values = values.reshape((*[sizes[a] for a in kept], count if varies else 1))
        place = {a: i for i, a in enumerate(kept)}
        inner = [self.lengths[a] for a in axes]

        def change(index: Index) -> Index:
            mine = Index(0, tuple((axes.index(a), at) for a, at in index.parts if a in axes))
            rest = Index(index.offset, tuple((a, at) for a, at in index.parts if a not in axes))
            rest = rest.with_axes(place.__getitem__)
            if not mine.parts:
                return rest
            device = self.values.device
            offset, at = symbolic.line(
                lambda: mine.evaluated(tuple(inner), device).expand(inner).reshape(-1)
            )
            return rest.with_part(len(kept), offset, at)

        lengths = (*[self.lengths[a] for a in kept], count)
        return self.with_indices(change, values, lengths)

    def tidy(self) -> Term:
        """Add up along axes that no index follows, drop those of length 1, and order the others.

        They come as they are met, but short ones before long ones.
        """
        order: list[int] = []
        for index in (*self.rows, *self.cols):
            met = [a for a, _ in index.parts if a not in order and self.lengths[a] != 1]
            steps = dict(index.parts)
            order += sorted(met, key=lambda a: -at if isinstance(at := steps[a], int) else 0)
        ndim = len(self.lengths)
        if any(self.lengths[a] >= LONG for a in order):
            order.sort(key=lambda a: self.lengths[a] >= LONG)
        if order == list(range(ndim)):
            return self
        values = self.values
        gone = [a for a in range(ndim) if a not in order]
        axes = [a for a in gone if values.shape[a] != 1]
        values = summed(values, axes)
        repeats = math.prod(self.lengths[a] for a in gone if a not in axes)
        if repeats != 1:
            values = values * repeats
        values = values.permute(*order, *gone).reshape([values.shape[a] for a in order])
        place = {a: i for i, a in enumerate(order)}

        def change(index: Index) -> Index:
            parts = tuple((a, at) for a, at in index.parts if a in place)
            return Index(index.offset, parts).with_axes(place.__getitem__)

        return self.with_indices(change, values, tuple([self.lengths[a] for a in order]))


def changed(
    term: Term, indices: Sequence[Index], change: Callable[[Term], Term]
) -> tuple[Term, list[Index]]:
    """Change a term, and further ``indices`` that follow its axes with it."""
    count = len(term.cols)
    whole = change(dataclasses.replace(term, cols=(*term.cols, *indices)))
    return dataclasses.replace(whole, cols=whole.cols[:count]), list(whole.cols[count:])


def identity(shape: Shape, like: Tensor, source: int) -> Term:
    """Return the Jacobian of a tensor of ``shape`` by itself.

    A complex one has two columns for each element: the real and the imaginary direction.
    """
    lengths = tuple([n for n in shape if n != 1])
    places = iter(range(len(lengths)))
    indices = tuple([Index() if n == 1 else Index(0, ((next(places), 1),)) for n in shape])
    if not like.is_complex():
        values = torch.ones((1,) * len(lengths), dtype=like.dtype, device=like.device)
        return Term(values, lengths, indices, indices, shape, shape, source)
    values = torch.tensor([1, 1j], dtype=like.dtype, device=like.device)
    values = values.reshape((1,) * len(lengths) + (2,))
    cols = (*indices, Index(0, ((len(lengths), 1),)))
    return Term(values, (*lengths, 2), indices, cols, shape, (*shape, 2), source)


def progression(tensor: Tensor, axis: int, start: int, step: int, length: int) -> Tensor:
    """Return the elements start, start + step, ... along ``axis``; one where the step is 0."""
    size = tensor.shape[axis]
    if step == 0:
        return tensor.narrow(axis, start, 1)
    if step < 0:
        last = start + step * (length - 1)
        return progression(tensor, axis, last, -step, length).flip(axis)
    if step == 1:
        return tensor if length == size else tensor.narrow(axis, start, length)
    return tensor[(slice(None),) * axis + (slice(start, start + step * (length - 1) + 1, step),)]
