"""Sum: reductions that add along axes."""

from __future__ import annotations

import dataclasses

from pushforward.linear.axes import Shape
from pushforward.linear.block import Block
from pushforward.linear.map import AbstractLinearMap, Pattern, positions


@dataclasses.dataclass(slots=True, repr=False)
class Sum(AbstractLinearMap):
    """Add along ``axes``.

    Math: ẏ = Σ_axes ẋ, x̄ = broadcast(ȳ). Jacobian: 0/1; a summed tied axis becomes free without arithmetic.
    """

    axes: tuple[int, ...]
    keepdim: bool = False

    def push(self, block: Block) -> Block:
        """Sum."""
        return block.sum(self.axes, self.keepdim)

    def pull(self, block: Block) -> Block:
        """Broadcast back."""
        return block.reshape(self._kept_shape).expand(self.in_shape)

    @property
    def _kept_shape(self) -> Shape:
        return tuple(1 if i in self.axes else n for i, n in enumerate(self.in_shape))

    def pattern(self) -> Pattern:
        """Every input element has one output element."""
        rows = positions(self.out_shape).reshape(self._kept_shape).expand(self.in_shape)
        return rows.flatten(), positions(self.in_shape).flatten()
