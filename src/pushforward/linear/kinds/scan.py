"""Scan: cumulative sums along one axis."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pushforward.linear.axes import Pairs, kept_axes
from pushforward.linear.block import Block
from pushforward.linear.map import AbstractLinearMap, Pattern, positions


@dataclasses.dataclass(slots=True, repr=False)
class Scan(AbstractLinearMap):
    """Running sum along ``axis``.

    Math: ẏ_i = Σ_{j≤i} ẋ_j, x̄_j = Σ_{i≥j} ȳ_i. Jacobian: lower triangular along the axis; the others stay tied.
    """

    axis: int

    def push(self, block: Block) -> Block:
        """Sum from the front."""
        return block.apply(self._forward, self.out_shape, self._kept, uniform=True)

    def pull(self, block: Block) -> Block:
        """Sum from the back."""
        return block.apply(self._backward, self.in_shape, self._kept, uniform=True)

    def _forward(self, tangent: Tensor) -> Tensor:
        return tangent.cumsum(self.axis + 1)

    def _backward(self, cotangent: Tensor) -> Tensor:
        dim = self.axis + 1
        return cotangent.flip(dim).cumsum(dim).flip(dim)

    @property
    def _kept(self) -> Pairs:
        return kept_axes(len(self.in_shape), self.axis)

    def pattern(self) -> Pattern:
        """Return the lower triangle along the axis."""
        place = positions(self.in_shape)
        cols = place.unsqueeze(0).expand(self.in_shape[self.axis], *self.in_shape)
        cols = cols.movedim(0, self.axis + 1)  # repeated: (..., axis, copy, ...)
        rows = cols.transpose(self.axis, self.axis + 1)
        keep = (
            torch.arange(self.in_shape[self.axis])[:, None]
            <= torch.arange(self.in_shape[self.axis])[None, :]
        )
        keep = keep.reshape(keep.shape + (1,) * (len(self.in_shape) - self.axis - 1))
        keep = keep.expand(cols.shape)
        return rows[keep], cols[keep]
