"""Expand: broadcasting without arithmetic."""

from __future__ import annotations

import dataclasses

from pushforward.linear.axes import Shape
from pushforward.linear.block import Block
from pushforward.linear.kinds.composed import compose
from pushforward.linear.map import AbstractLinearMap, Pattern, broadcast_pattern


@dataclasses.dataclass(slots=True, repr=False)
class Expand(AbstractLinearMap):
    """Repeat along new axes on the left and along axes of size 1.

    Math: ẏ = broadcast(ẋ), x̄ = Σ_broadcast ȳ. Jacobian: 0/1; the axes that are not repeated stay tied.
    """

    def push(self, block: Block) -> Block:
        """Broadcast."""
        return block.expand(self.out_shape)

    def pull(self, block: Block) -> Block:
        """Sum what was broadcast."""
        return block.sum_to(self.in_shape)

    def pattern(self) -> Pattern:
        """Every output element has one input element."""
        return broadcast_pattern(self.in_shape, self.out_shape)


def broadcast_first(in_shape: Shape, linear_map: AbstractLinearMap) -> AbstractLinearMap:
    """Return the map of what is broadcast from ``in_shape`` before, where that is to be."""
    if in_shape == linear_map.in_shape:
        return linear_map
    return compose(Expand(in_shape, linear_map.in_shape), linear_map)
