"""TakeAlong: gather along one axis with an index of its own at every position of the others."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pushforward.linear.axes import Pairs, kept_axes
from pushforward.linear.block import Block
from pushforward.linear.map import AbstractLinearMap, Pattern, positions


@dataclasses.dataclass(slots=True, repr=False)
class TakeAlong(AbstractLinearMap):
    """Copy, along ``axis``, the positions that ``index`` names; the other axes agree.

    Math: ẏ[a, i, b] = ẋ[a, index[a, i, b], b], x̄[a, j, b] = Σ_{i: index[a, i, b] = j} ȳ[a, i, b].
    Jacobian: 0/1; the other axes stay tied.
    """

    axis: int
    index: Tensor  # (*out_shape), -1 gives 0
    is_total: bool = False  # whether the index is known to have no -1

    def push(self, block: Block) -> Block:
        """Gather."""
        return block.apply(self._take, self.out_shape, self._kept)

    def pull(self, block: Block) -> Block:
        """Add up at the positions taken."""
        return block.apply(self._put, self.in_shape, self._kept)

    @property
    def _kept(self) -> Pairs:
        return kept_axes(len(self.in_shape), self.axis)

    def _take(self, tangent: Tensor) -> Tensor:
        index = self.index.expand(tangent.shape[:1] + self.out_shape)
        if tangent.shape[self.axis + 1] == 0:
            return torch.zeros(index.shape, dtype=tangent.dtype, device=tangent.device)
        if self.is_total:
            return tangent.gather(self.axis + 1, index)
        # From a zero behind the end: derivatives of this see that it comes from nowhere.
        axis, shape = self.axis + 1, list(tangent.shape)
        index = torch.where(index < 0, shape[axis], index)
        shape[axis] = 1
        zero = torch.zeros(shape, dtype=tangent.dtype, device=tangent.device)
        return torch.cat((tangent, zero), axis).gather(axis, index)

    def _put(self, cotangent: Tensor) -> Tensor:
        index = self.index.expand(cotangent.shape)
        axis, shape = self.axis + 1, [*cotangent.shape[:1], *self.in_shape]
        size = shape[axis]
        if not self.is_total:  # what comes from nowhere goes behind the end
            index = torch.where(index < 0, size, index)
            shape[axis] += 1
        zeros = torch.zeros(shape, dtype=cotangent.dtype, device=cotangent.device)
        if shape[axis] == 0:
            return zeros
        return torch.scatter_add(zeros, axis, index, cotangent).narrow(axis, 0, size)

    def pattern(self) -> Pattern:
        """Run on positions."""
        here = dataclasses.replace(self, index=self.index.cpu())
        cols = here._take(positions(self.in_shape).unsqueeze(0) + 1).flatten() - 1
        rows = positions(self.out_shape).flatten()
        return rows[cols >= 0], cols[cols >= 0]
