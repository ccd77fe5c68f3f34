"""Scale: elementwise operators and broadcasting."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pushforward.linear.block import Block
from pushforward.linear.map import AbstractLinearMap, Pattern, broadcast_pattern


@dataclasses.dataclass(slots=True, repr=False)
class Scale(AbstractLinearMap):
    """Multiply by a coefficient, element by element, broadcasting the input.

    Math: ẏ = c ⊙ ẋ (or c ⊙ conj ẋ), x̄ = Σ_broadcast conj(c) ⊙ ȳ (or c ⊙ conj ȳ). Where the output is real and
    the input complex, ẏ is the real part. Jacobian: diagonal, tied along every axis that is not broadcast.
    """

    coef: Tensor | complex  # a number, or broadcasts to out_shape
    conjugate: bool = False

    @property
    def adjoint_coef(self) -> Tensor | complex:
        """What the adjoint multiplies by; both conjugate what comes in, or neither."""
        if self.conjugate:
            return self.coef
        if isinstance(self.coef, Tensor):
            return torch.conj_physical(self.coef) if self.coef.is_complex() else self.coef
        return self.coef.conjugate()

    def push(self, block: Block) -> Block:
        """Scale, after broadcasting."""
        if self.in_shape != self.out_shape:
            block = block.expand(self.out_shape)
        if self.conjugate:
            block = block.with_values(block.values.conj().resolve_conj())
        return _scaled(block, self.coef)

    def pull(self, block: Block) -> Block:
        """Scale by the conjugate, then sum what was broadcast."""
        if self.conjugate:
            block = block.with_values(block.values.conj().resolve_conj())
        block = _scaled(block, self.adjoint_coef)
        return block if self.in_shape == self.out_shape else block.sum_to(self.in_shape)

    def pattern(self) -> Pattern:
        """Every output element has one input element."""
        return broadcast_pattern(self.in_shape, self.out_shape)


def number(item: object) -> float | None:
    """Return the real number by which a map multiplies everything; None if it does anything else."""
    if not isinstance(item, Scale) or isinstance(item.coef, (Tensor, complex)):
        return None
    return None if item.conjugate or item.in_shape != item.out_shape else float(item.coef)


def _scaled(block: Block, coef: Tensor | complex) -> Block:
    if isinstance(coef, Tensor):
        return Block(block.values * coef, block.shape, block.seed_shape, block.tied, block.source)
    if coef == 1:
        return block
    if coef == -1:
        return block.with_values(-block.values)  # a third of the time of a product with a number
    return block.scale(coef)
