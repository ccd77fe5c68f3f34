"""Transposed: a map read backwards. Scatters are transposed gathers."""

from __future__ import annotations

import dataclasses

from pushforward.linear.block import Block
from pushforward.linear.map import AbstractLinearMap, Pattern


@dataclasses.dataclass(slots=True, repr=False)
class Transposed(AbstractLinearMap):
    """The adjoint of another map: pushes by its pull, pulls by its push.

    Math: ẏ = Mᵀ ẋ, x̄ = M ȳ. Jacobian: the transpose; what is tied in one is tied in the other.
    """

    of: AbstractLinearMap

    def push(self, block: Block) -> Block:
        """Pull through the other."""
        return self.of.pull(block)

    def pull(self, block: Block) -> Block:
        """Push through the other."""
        return self.of.push(block)

    def pattern(self) -> Pattern:
        """Exchange rows and columns."""
        rows, cols = self.of.pattern()
        return cols, rows


def transpose(linear_map: AbstractLinearMap) -> AbstractLinearMap:
    """Return the adjoint; that of an adjoint is the map itself."""
    if isinstance(linear_map, Transposed):
        return linear_map.of
    return Transposed(linear_map.out_shape, linear_map.in_shape, linear_map)
