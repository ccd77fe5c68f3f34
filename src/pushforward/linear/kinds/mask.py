"""Mask: elementwise choice. where, relu, clamp, maximum without ties."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pushforward.linear.block import Block
from pushforward.linear.map import AbstractLinearMap, Pattern, broadcast_pattern


@dataclasses.dataclass(slots=True, repr=False)
class Mask(AbstractLinearMap):
    """Keep the elements where ``mask`` holds, broadcasting the input; the others become zeros.

    Math: ẏ = [m] ẋ, x̄ = Σ_broadcast [m] ȳ. Jacobian: diagonal, 0/1. Unlike `Scale` by a mask, an
    infinite or undefined tangent that is not chosen leaves no NaN: 0 · ∞ does not arise.
    """

    mask: Tensor  # boolean, broadcasts to out_shape

    def push(self, block: Block) -> Block:
        """Choose, after broadcasting."""
        if self.in_shape != self.out_shape:
            block = block.expand(self.out_shape)
        return self._chosen(block)

    def pull(self, block: Block) -> Block:
        """Choose, then sum what was broadcast."""
        block = self._chosen(block)
        return block if self.in_shape == self.out_shape else block.sum_to(self.in_shape)

    def _chosen(self, block: Block) -> Block:
        return block.with_values(torch.where(self.mask, block.values, 0))

    def pattern(self) -> Pattern:
        """Every output element has one input element."""
        return broadcast_pattern(self.in_shape, self.out_shape)
