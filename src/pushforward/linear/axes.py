"""Index arithmetic on shapes: which axes of two shapes correspond."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

Shape = tuple[int, ...]


class Part(NamedTuple):
    """A part of a near axis, as samples are of an axis of all their tokens.

    Math: position ``p`` belongs to seed ``p div within mod size``, with the size of the seed axis.
    """

    axis: int
    within: int

    def __str__(self) -> str:
        """Show both."""
        return f"{self.axis}/{self.within}"


Tie = int | Part
# For each seed axis of a block the near axis, or the part of one, that it is tied to, None where it is free
Tied = tuple[Tie | None, ...]
Pairs = tuple[tuple[int, int], ...]  # (input axis, output axis)
Group = tuple[tuple[int, ...], tuple[int, ...]]


def axis_of(tie: Tie) -> int:
    """Return the near axis of a tie."""
    return tie if isinstance(tie, int) else tie.axis


def moved(tied: Tied, place: Callable[[int], int]) -> Tied:
    """Return the same ties where each near axis has another place."""
    return tuple(
        [
            t if t is None else place(t) if isinstance(t, int) else Part(place(t.axis), t.within)
            for t in tied
        ]
    )


def normalize_axis(axis: int, ndim: int) -> int:
    """Return ``axis`` counted from the front; a 0-d tensor is taken to have one axis, as PyTorch does."""
    return axis % max(ndim, 1)


def normalize_axes(axes: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Return the sorted distinct ``axes``; none or an empty list means all."""
    if axes is None or (not isinstance(axes, int) and len(axes) == 0):
        return tuple(range(ndim))
    if isinstance(axes, int):
        axes = (axes,)
    return tuple(sorted({normalize_axis(axis, ndim) for axis in axes})) if ndim else ()


def with_size(shape: Sequence[int], axis: int, size: int) -> Shape:
    """Return the shape with ``size`` along one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def kept_axes(ndim: int, *mixed: int) -> Pairs:
    """Return the pairs of axes that a map keeps, each in its place, where it mixes ``mixed``."""
    return tuple((i, i) for i in range(ndim) if i not in mixed)


def shape_text(shape: Shape) -> str:
    """Return a shape as it is printed."""
    return "×".join(map(str, shape)) or "()"


def broadcast(first: Sequence[int], second: Sequence[int]) -> Shape:
    """Return the shape to which two shapes broadcast; ``torch.broadcast_shapes`` imports SymPy, which takes .3 s.

    Example:
        >>> broadcast((3, 1), (2, 1, 4))
        (2, 3, 4)
    """
    short, long = sorted((first, second), key=len)
    padded = (1,) * (len(long) - len(short)) + tuple(short)
    return tuple(n if m == 1 else m for m, n in zip(padded, long, strict=True))


def repeated_axes(shape: Shape, broadcast: Shape) -> list[int]:
    """Return the axes of ``broadcast`` along which ``shape`` is repeated to it."""
    added = len(broadcast) - len(shape)
    return [i for i, n in enumerate(broadcast) if i < added or (shape[i - added] == 1 and n != 1)]


def reshape_groups(source: Shape, target: Shape) -> list[Group]:
    """Split a reshape into the smallest groups of axes with equal products.

    Math: row-major order is kept within a group and between groups, so that a group is a reshape of its own.

    Example:
        >>> reshape_groups((2, 3, 4), (6, 2, 2))
        [((0, 1), (0,)), ((2,), (1, 2))]
    """
    if 0 in source:
        return _empty_groups(source, target)
    groups: list[Group] = []
    i = j = 0
    while i < len(source) or j < len(target):
        start_i, start_j = i, j
        left = right = 1
        if i < len(source):
            left, i = source[i], i + 1
        if j < len(target):
            right, j = target[j], j + 1
        while left != right:
            if left < right:
                left, i = left * source[i], i + 1
            else:
                right, j = right * target[j], j + 1
        groups.append((tuple(range(start_i, i)), tuple(range(start_j, j))))
    return groups


def _empty_groups(source: Shape, target: Shape) -> list[Group]:
    assert math.prod(target) == 0
    return [(tuple(range(len(source))), tuple(range(len(target))))]
