"""General: a pair of functions and the axes along which they act position by position."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from pushforward.linear.axes import Pairs
from pushforward.linear.block import Block
from pushforward.linear.map import AbstractLinearMap, Pattern, dense_pattern


@dataclasses.dataclass(slots=True)
class Resampling:
    """A map along one axis: each output is a sum of a few inputs, with weights that no value has a part in.

    Math: ẏ_i = Σ_k weight[k, i] ẋ[index[k, i]]; an index of -1 gives 0.
    """

    axis: int
    index: Tensor  # (terms, out)
    weight: Tensor  # likewise


@dataclasses.dataclass(slots=True, repr=False)
class General(AbstractLinearMap):
    """Any linear map, given by what it does to tangents and cotangents, seeds first.

    Math: ẏ[s] = push_seeds(ẋ)[s], x̄[s] = pull_seeds(ȳ)[s]. Jacobian: dense but for the kept
    axes, which stay tied.
    """

    push_seeds: Callable[[Tensor], Tensor]  # (seeds, *in_shape) -> (seeds, *out_shape)
    pull_seeds: Callable[[Tensor], Tensor]  # (seeds, *out_shape) -> (seeds, *in_shape)
    kept: Pairs = ()  # not mixed
    # Does the same at every position of the kept axes, and takes size 1 for any size there.
    uniform: bool = False
    # What parts of the first output axis, so many of equal length, add each: (seeds, *out_shape) to (seeds, parts,
    # *in_shape). For a seed axis that is tied to that one, where the map mixes it.
    pull_parts: Callable[[Tensor, int], Tensor] | None = None
    # The same map as a product of one along each axis that it mixes, for who wants its entries one by one.
    factors: Callable[[], list[Resampling]] | None = None
    # Nothing but operators whose shapes no value decides, so that tensors without numbers tell what memory it takes.
    takes_shadows: bool = False

    def push(self, block: Block) -> Block:
        """Apply the forward function to all seeds at once."""
        return block.apply(self.push_seeds, self.out_shape, self.kept, self.uniform)

    def pull(self, block: Block) -> Block:
        """Apply the backward function to all seeds at once."""
        kept = tuple((j, i) for i, j in self.kept)
        if self.pull_parts is not None and (parts := block.parts(0)) is not None:
            return block.apply_to_parts(self.pull_parts, 0, parts, self.in_shape, kept)
        return block.apply(self.pull_seeds, self.in_shape, kept, self.uniform)

    def pattern(self) -> Pattern:
        """Dense within the mixed axes."""
        return dense_pattern(self.in_shape, self.out_shape, self.kept)
