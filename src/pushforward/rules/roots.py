"""Square roots of Hermitian matrices, and polar decompositions, which are made of them: both since PyTorch 2.14."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.factorizations import Factor, column, row
from pushforward.rules.linalg import batched, symmetrized
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten


def _sylvester(values: Tensor, vectors: Tensor, seeds: Tensor) -> Tensor:
    """Return the solution of S X + X S = seeds, by the eigenvalues and eigenvectors of the Hermitian S."""
    inner = vectors.mH @ seeds @ vectors
    return vectors @ (inner / (column(values) + row(values))) @ vectors.mH


def _matrix_sqrth(self: Tensor) -> AbstractLinearMap:
    """Seen as a function of the Hermitian part of A, as PyTorch does.

    Where eigenvalues are repeated, second derivatives are inf or nan, as PyTorch's.

    Math: S = A^½, S Ṡ + Ṡ S = Ȧ, which is its own adjoint.
    """
    values, vectors = torch.linalg.eigh(self)
    roots = values.sqrt()

    def push(seeds: Tensor) -> Tensor:
        return _sylvester(roots, vectors, symmetrized(seeds))

    return batched(self, tuple(self.shape), push, push)


@with_output
def _polar(A: Tensor, *, out: tuple[Tensor, Tensor]) -> tuple[AbstractLinearMap, ...]:
    """Return how U, with orthonormal columns, and the Hermitian H move with A = U H.

    Where A has not full rank, inf or nan; where singular values are repeated, second derivatives are, as PyTorch's.

    Math: C = Uᴴ Ȧ, Ω the solution of H Ω + Ω H = C - Cᴴ, U̇ = U Ω + (Ȧ - U C) H⁻¹, Ḣ = C - Ω H.
    """
    u, h = out
    values, vectors = torch.linalg.eigh(h)

    def solved(seeds: Tensor) -> Tensor:
        return _sylvester(values, vectors, seeds - seeds.mH)

    def quotient(seeds: Tensor) -> Tensor:
        divided: Tensor = ((seeds @ vectors) / row(values)) @ vectors.mH
        return divided

    def outside(seeds: Tensor) -> Tensor:
        return seeds - u @ (u.mH @ seeds)

    is_square = u.shape[-2] == u.shape[-1]

    def move_u(seeds: Tensor) -> Tensor:  # its own adjoint
        turned: Tensor = u @ solved(u.mH @ seeds)
        return turned if is_square else turned + quotient(outside(seeds))

    def push_h(seeds: Tensor) -> Tensor:
        inner = u.mH @ seeds
        return inner - solved(inner) @ h

    def pull_h(seeds: Tensor) -> Tensor:
        return u @ (seeds - solved(seeds @ h))

    return Factor(move_u, move_u).map(A, u), Factor(push_h, pull_h).map(A, h)


if hasattr(aten, "linalg_polar"):
    rule(aten.linalg_matrix_sqrth.default, _matrix_sqrth)
    rule(aten.linalg_polar.default, _polar)
