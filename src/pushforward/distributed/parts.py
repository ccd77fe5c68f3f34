"""Parts of tensors: what one process has of rows or columns, how it is taken out, and how it is put back."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from pushforward.distributed.meshes import Range, range_of


@dataclasses.dataclass(frozen=True, slots=True)
class Along:
    """A range of positions along one axis; of a tensor without axes all of it."""

    axis: int | None
    range: Range

    def of(self, whole: Tensor) -> Tensor:
        """Return the part."""
        begin, end = self.range
        return whole if self.axis is None else whole.narrow(self.axis, begin, end - begin)

    def put(self, part: Tensor, whole: Tensor) -> Tensor:
        """Return ``whole`` with another part."""
        return part if self.axis is None else _joined(part, whole, self.axis, self.range)


@dataclasses.dataclass(frozen=True, slots=True)
class Flat:
    """A range of all numbers of a tensor, counted row by row."""

    range: Range

    @property
    def positions(self) -> Tensor:
        """Which numbers."""
        return torch.arange(*self.range)

    def of(self, whole: Tensor) -> Tensor:
        """Return the part."""
        begin, end = self.range
        return whole.reshape(-1).narrow(0, begin, end - begin)

    def put(self, part: Tensor, whole: Tensor) -> Tensor:
        """Return ``whole`` with another part."""
        return _joined(part, whole.reshape(-1), 0, self.range).reshape(whole.shape)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Some of the numbers of a tensor, counted row by row."""

    positions: Tensor

    def of(self, whole: Tensor) -> Tensor:
        """Return the part."""
        return whole.reshape(-1).index_select(0, self.positions.to(whole.device))

    def put(self, part: Tensor, whole: Tensor) -> Tensor:
        """Return ``whole`` with another part."""
        flat = whole.reshape(-1).index_copy(0, self.positions.to(whole.device), part)
        return flat.reshape(whole.shape)


Part = Along | Flat | Chosen


def along_best_axis(whole: Tensor, mesh: DeviceMesh) -> Along:
    """Return this process's share along the axis that gives the largest share least.

    The last of such axes: batches come first, and the structure that they bring is lost along an axis that is cut.
    """
    if not whole.dim():
        return Along(None, (0, 1))
    sizes = whole.shape

    def largest(axis: int) -> int:
        step = sizes[axis]
        for each in range(mesh.ndim):
            step = -(-step // mesh.size(each))
        return step * math.prod(n for i, n in enumerate(sizes) if i != axis)

    axis = min(reversed(range(len(sizes))), key=largest)
    return Along(axis, range_of(sizes[axis], mesh))


def flat_part(whole: Tensor, mesh: DeviceMesh) -> Flat:
    """Return this process's share of all numbers."""
    return Flat(range_of(whole.numel(), mesh))


def _joined(part: Tensor, whole: Tensor, axis: int, at: Range) -> Tensor:
    begin, end = at
    size = whole.shape[axis]
    if end - begin == size:
        return part
    before, after = whole.narrow(axis, 0, begin), whole.narrow(axis, end, size - end)
    return torch.cat([piece for piece in (before, part, after) if piece.shape[axis]], axis)
