"""Window: the elements of a tensor that belong to the entries of a term, taken by slices as far as possible."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.tables import table as as_table
from pushforward.sparse.index import Index
from pushforward.sparse.products import taken
from pushforward.sparse.symbolic import Symbolic
from pushforward.sparse.term import progression


def window(tensor: Tensor, indices: Sequence[Index], lengths: Shape, symbolic: Symbolic) -> Tensor:
    """Return the elements of ``tensor`` at ``indices``, one for each of its axes; broadcasts to ``lengths``.

    Axes of size 1 stand for any position.
    """
    pairs = [(a, i) for a, i in enumerate(indices) if tensor.shape[a] != 1]
    used = [axis for _, index in pairs for axis in index.axes]
    if len(set(used)) != len(used):
        return _looked_up(tensor, indices, lengths, symbolic)
    labels: list[int] = []  # axis of the term for each axis of the result
    for a in reversed(range(len(indices))):
        index, place = indices[a], a
        if tensor.shape[a] == 1:
            tensor = tensor.squeeze(place)
        elif not index.parts:
            tensor = tensor.select(place, index.offset)
        elif len(index.parts) == 1:
            ((axis, at),) = index.parts
            if isinstance(at, int):
                tensor = progression(tensor, place, index.offset, at, lengths[axis])
            else:
                where = symbolic.once(functools.partial(torch.add, at, index.offset))
                tensor = taken(tensor, place, as_table(where))
            labels.insert(0, axis)
        else:
            found = _unmerged(tensor, place, index, lengths)
            if found is None:
                return _looked_up(tensor, indices[: a + 1], lengths, symbolic, labels)
            tensor, axes = found
            labels[:0] = axes
    return _labelled(tensor, labels, len(lengths))


def _labelled(tensor: Tensor, labels: Sequence[int], ndim: int) -> Tensor:
    """Bring axes that belong to ``labels`` of a term into place."""
    order = sorted(range(len(labels)), key=labels.__getitem__)
    if order != list(range(len(labels))):
        tensor = tensor.permute(order)
    if len(labels) == ndim:
        return tensor
    sizes = [1] * ndim
    for i, place in enumerate(order):
        sizes[labels[place]] = tensor.shape[i]
    return tensor.reshape(sizes)


def _unmerged(
    tensor: Tensor, place: int, index: Index, lengths: Shape
) -> tuple[Tensor, list[int]] | None:
    """Take elements along an axis that is several axes of a term in one: by cutting it up into these."""
    if not index.is_regular:
        return None
    parts = sorted([(at, axis) for axis, at in index.parts if isinstance(at, int)], reverse=True)
    offset, axes, rest = index.offset, [], tensor
    for number, (step, axis) in enumerate(parts):
        size = rest.shape[place + number]
        if number == len(parts) - 1:
            inside = offset >= 0 and 0 <= offset + step * (lengths[axis] - 1) < size
            if step <= 0 or not inside:
                return None
            rest = progression(rest, place + number, offset, step, lengths[axis])
        else:
            start, offset = divmod(offset, step) if step > 0 else (0, -1)
            if offset < 0 or size % step or start + lengths[axis] > size // step:
                return None
            rest = rest.unflatten(place + number, (size // step, step))
            rest = rest.narrow(place + number, start, lengths[axis])
        axes.append(axis)
    return rest, axes


def _looked_up(
    tensor: Tensor,
    indices: Sequence[Index],
    lengths: Shape,
    symbolic: Symbolic,
    labels: Sequence[int] = (),
) -> Tensor:
    """Take elements one by one; axes of ``tensor`` behind ``indices`` have ``labels`` already."""
    pairs = [(a, i) for a, i in enumerate(indices) if tensor.shape[a] != 1]
    sizes = [tensor.shape[a] for a, _ in pairs]
    count = len(indices)
    behind = tuple(tensor.shape[count:])
    used = sorted({axis for _, index in pairs for axis in index.axes})
    inner = tuple([lengths[a] for a in used])
    here = {a: i for i, a in enumerate(used)}
    device = tensor.device

    def places() -> Tensor:
        total = torch.zeros((1,) * len(used), dtype=torch.int64, device=device)
        for size, (_, index) in zip(sizes, pairs, strict=True):
            total = total * size + index.with_axes(here.__getitem__).evaluated(inner, device)
        return total.expand(inner).reshape(-1)

    taken = tensor.reshape((math.prod(sizes), *behind))
    taken = taken.index_select(0, as_table(symbolic.once(places)))
    return _labelled(taken.reshape(inner + behind), [*used, *labels], len(lengths))
