"""Reshape: view, flatten, unsqueeze, squeeze."""

from __future__ import annotations

import dataclasses

from pushforward.linear.block import Block
from pushforward.linear.map import AbstractLinearMap, Pattern, positions


@dataclasses.dataclass(slots=True, repr=False)
class Reshape(AbstractLinearMap):
    """Regroup the axes in row-major order.

    Math: ẏ = reshape(ẋ), x̄ = reshape(ȳ). Jacobian: the identity; ties stay wherever groups of axes correspond.
    """

    def push(self, block: Block) -> Block:
        """Reshape."""
        return block.reshape(self.out_shape)

    def pull(self, block: Block) -> Block:
        """Reshape back."""
        return block.reshape(self.in_shape)

    def pattern(self) -> Pattern:
        """Return the identity's."""
        flat = positions(self.in_shape).flatten()
        return flat, flat
