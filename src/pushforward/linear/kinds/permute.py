"""Permute: transposes and other reorderings of axes."""

from __future__ import annotations

import dataclasses

from pushforward.linear.block import Block
from pushforward.linear.map import AbstractLinearMap, Pattern, positions


@dataclasses.dataclass(slots=True, repr=False)
class Permute(AbstractLinearMap):
    """Reorder the axes.

    Math: ẏ = permute(ẋ, dims), x̄ = permute(ȳ, dims⁻¹). Jacobian: a permutation; all axes stay tied.
    """

    dims: tuple[int, ...]

    def push(self, block: Block) -> Block:
        """Relabel the axes."""
        return block.permute(self.dims)

    def pull(self, block: Block) -> Block:
        """Relabel them back."""
        inverse = sorted(range(len(self.dims)), key=self.dims.__getitem__)
        return block.permute(inverse)

    def pattern(self) -> Pattern:
        """Run on positions."""
        cols = positions(self.in_shape).permute(self.dims).flatten()
        return positions(self.out_shape).flatten(), cols
