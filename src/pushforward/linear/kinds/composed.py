"""Composed: one map after another, for operators that are two steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pushforward.linear.block import Block
from pushforward.linear.map import AbstractLinearMap, Pattern


@dataclasses.dataclass(slots=True, repr=False)
class Composed(AbstractLinearMap):
    """Apply ``first``, then ``second``.

    Math: ẏ = B A ẋ, x̄ = Aᵀ Bᵀ ȳ. Jacobian: the product; an axis stays tied where both keep it.
    """

    first: AbstractLinearMap
    second: AbstractLinearMap
    # Pulls the cotangent of an output that is one number through both, where there is an operator for that.
    pull_number: Callable[[Tensor], Tensor] | None = None

    def push(self, block: Block) -> Block:
        """Push through both."""
        return self.second.push(self.first.push(block))

    def pull(self, block: Block) -> Block:
        """Pull through both."""
        if self.pull_number is not None and block.values.numel() == 1:
            values = self.pull_number(block.values.reshape(self.out_shape))
            values = values.reshape((1,) * block.num_free + self.in_shape)
            return Block(values, self.in_shape, block.seed_shape, block.tied, block.source)
        return self.first.pull(self.second.pull(block))

    def pattern(self) -> Pattern:
        """Return the product of the patterns."""
        rows, outer = self.second.pattern()
        inner, cols = self.first.pattern()
        inner, order = torch.sort(inner)
        outer, cols = outer.contiguous(), cols[order]
        starts = torch.searchsorted(inner, outer)
        counts = torch.searchsorted(inner, outer, right=True) - starts
        before = counts.cumsum(0) - counts
        within = torch.arange(int(counts.sum())) - before.repeat_interleave(counts)
        rows = rows.repeat_interleave(counts)
        cols = cols[starts.repeat_interleave(counts) + within]
        size = max(math.prod(self.in_shape), 1)
        entries = torch.unique(rows * size + cols)
        return entries // size, entries % size


def compose(*maps: AbstractLinearMap) -> AbstractLinearMap:
    """Return the map that applies ``maps`` from left to right."""
    result = maps[0]
    for following in maps[1:]:
        result = Composed(result.in_shape, following.out_shape, result, following)
    return result
