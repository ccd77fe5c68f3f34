"""Index: how the position along one axis of a Jacobian follows from the axes of a term."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.sparse.symbolic import Line, Symbolic


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Index:
    """A sum: an offset, and a step or a table for each axis that the position follows.

    Math: i(t) = offset + Σ_a (step_a · t_a or table_a[t_a]).
    """

    offset: int = 0
    parts: tuple[tuple[int, Line], ...] = ()  # (axis of the term, step or table), by axis

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the term that it follows."""
        return tuple(axis for axis, _ in self.parts)

    @property
    def is_regular(self) -> bool:
        """Whether there are steps only."""
        return all(isinstance(at, int) for _, at in self.parts)

    @property
    def key(self) -> tuple[int, tuple[tuple[int, int, bool], ...]]:
        """What is equal for equal indices; a table is known by its identity."""
        return self.offset, tuple(
            [
                (axis, at, True) if isinstance(at, int) else (axis, id(at), False)
                for axis, at in self.parts
            ]
        )

    def line(self, axis: int) -> Line:
        """Return how it follows ``axis``."""
        return next((at for a, at in self.parts if a == axis), 0)

    def shifted(self, by: int) -> Index:
        """Add a number."""
        return Index(self.offset + by, self.parts) if by else self

    def with_axes(self, place: Callable[[int], int]) -> Index:
        """Name the axes anew."""
        return Index(
            self.offset, tuple(sorted([(place(a), at) for a, at in self.parts], key=_axis))
        )

    def with_part(self, axis: int, offset: int, at: Line) -> Index:
        """Replace how it follows ``axis`` by ``offset`` and ``at``."""
        parts = [part for part in self.parts if part[0] != axis]
        if not isinstance(at, int) or at:
            parts.append((axis, at))
        return Index(self.offset + offset, tuple(sorted(parts, key=_axis)))

    def scaled(self, factor: int, symbolic: Symbolic) -> Index:
        """Multiply by a number."""
        if factor == 1:
            return self
        found = Index(self.offset * factor)
        for axis, at in self.parts:
            if isinstance(at, int):
                found = found.with_part(axis, 0, at * factor)
            else:
                times = functools.partial(torch.mul, at, factor)
                found = found.with_part(axis, *symbolic.line(times))
        return found

    def plus(self, other: Index, symbolic: Symbolic, lengths: Shape) -> Index:
        """Add another index of the same term."""
        found = self.shifted(other.offset)
        for axis, at in other.parts:
            mine = found.line(axis)
            if isinstance(mine, int) and isinstance(at, int):
                found = found.with_part(axis, 0, mine + at)
            else:
                both = functools.partial(_sum, mine, at, lengths[axis])
                offset, line = symbolic.line(both)
                found = found.with_part(axis, offset, line)
        return found

    def extremes(self, lengths: Shape, symbolic: Symbolic) -> tuple[int, int]:
        """Return the least and the greatest position."""
        low = high = self.offset
        for axis, at in self.parts:
            if isinstance(at, int):
                reach = at * (lengths[axis] - 1)
                low, high = low + min(reach, 0), high + max(reach, 0)
            else:
                least, most = symbolic.once(functools.partial(_extremes, at))
                low, high = low + least, high + most
        return low, high

    def evaluated(self, lengths: Shape, device: torch.device) -> Tensor:
        """Return the positions, in an array that broadcasts to ``lengths``."""
        ndim = len(lengths)
        total = torch.full((1,) * ndim, self.offset, device=device)
        for axis, at in self.parts:
            sizes = [1] * ndim
            sizes[axis] = lengths[axis]
            total = total + along(at, lengths[axis], device).reshape(sizes)
        return total


def along(at: Line, length: int, device: torch.device | None = None) -> Tensor:
    """Return the positions that ``at`` gives to 0, ..., length - 1."""
    return torch.arange(length, device=device) * at if isinstance(at, int) else at


def _sum(first: Line, second: Line, length: int) -> Tensor:
    return along(first, length) + along(second, length)


def _extremes(table: Tensor) -> tuple[int, int]:
    return int(table.min()), int(table.max())


def flat(indices: Sequence[Index], shape: Shape, symbolic: Symbolic, lengths: Shape) -> Index:
    """Return the row-major position in ``shape``."""
    total, stride = Index(), 1
    for index, size in zip(reversed(indices), reversed(shape), strict=True):
        total = total.plus(index.scaled(stride, symbolic), symbolic, lengths)
        stride *= size
    return total


def _axis(part: tuple[int, Line]) -> int:
    return part[0]
