"""Pointwise: multiply element by element by a coefficient that is never written down."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from pushforward.linear.block import Block
from pushforward.linear.map import AbstractLinearMap, Pattern, positions


@dataclasses.dataclass(slots=True, repr=False)
class Pointwise(AbstractLinearMap):
    """Apply a kernel that multiplies by a real coefficient: one call where `Scale` takes two or three.

    Math: ẏ = c ⊙ ẋ, x̄ = c ⊙ ȳ. Jacobian: diagonal, tied along every axis.
    """

    product: Callable[[Tensor], Tensor]  # broadcasts its argument to (..., *shape)

    def push(self, block: Block) -> Block:
        """Apply the kernel."""
        return block.with_values(self.product(block.values))

    def pull(self, block: Block) -> Block:
        """Apply the kernel: it is its own transpose."""
        return block.with_values(self.product(block.values))

    def pattern(self) -> Pattern:
        """Every output element has one input element."""
        place = positions(self.out_shape).flatten()
        return place, place
