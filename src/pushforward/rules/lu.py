"""The LU decomposition of square, wide and tall matrices, and solutions by it. Aᴴ is the conjugate transpose."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.linear.kinds.expand import broadcast_first
from pushforward.linear.kinds.gather import Gather
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.factorizations import Factor, Maps, inverse_triangle, padded
from pushforward.rules.linalg import solution_map
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten


def lu_factors(lower: Tensor, upper: Tensor) -> tuple[Factor, Factor]:
    """Return how the factors of B = L U move with B, ``(*batch, m, n)``; k is the smaller of m and n.

    Math: with Y = L₁⁻¹ Ḃ (first k rows) and F = Y U₁⁻¹ (first k columns), L̇ = L₁ tril₋₁(F) if m ≤ n, else
    Ḃ U₁⁻¹ - L triu(F), and U̇ = Y - tril₋₁(F) U. Where a pivot but the last of m ≤ n is 0, inf or nan.

    References:
        de Hoog, Anderssen and Lukas, "Differentiation of matrix functionals using triangular factorization",
        Math. Comp. 80 (2011).
    """
    m, k, n = lower.shape[-2], upper.shape[-2], upper.shape[-1]
    square, lower1 = upper[..., :k], lower[..., :k, :]
    if m <= n:  # the last pivot of a square matrix may be 0: nothing below it is divided by it
        last = torch.diag(torch.arange(k, device=upper.device) == k - 1).to(upper.dtype)
        square = square * (1 - last) + last
    right = inverse_triangle(square, upper=True)
    left = inverse_triangle(lower1, upper=False, unitriangular=True)

    def push_lower(seeds: Tensor) -> Tensor:
        cols = seeds[..., :k] @ right
        inner = left @ cols[..., :k, :]
        if m <= n:
            return lower @ inner.tril(-1)
        return (cols - lower @ inner.triu()).tril(-1)

    def pull_lower(seeds: Tensor) -> Tensor:
        if m <= n:
            cols = left.mH @ (lower.mH @ seeds).tril(-1)
        else:
            seeds = seeds.tril(-1)
            cols = seeds - padded(left.mH @ (lower.mH @ seeds).triu(), m, k)
        return padded(cols @ right.mH, m, n)

    def push_upper(seeds: Tensor) -> Tensor:
        rows = left @ seeds[..., :k, :]
        return (rows - (rows[..., :k] @ right).tril(-1) @ upper).triu()

    def pull_upper(seeds: Tensor) -> Tensor:
        seeds = seeds.triu()
        inner = (seeds @ upper.mH).tril(-1) @ right.mH
        return padded(left.mH @ (seeds - padded(inner, k, n)), m, n)

    return Factor(push_lower, pull_lower), Factor(push_upper, pull_upper)


def packed(lower: Factor, upper: Factor, m: int, n: int) -> Factor:
    """Return how L below the diagonal and U on and above it move, stored as one matrix ``(*batch, m, n)``."""
    k = min(m, n)
    return Factor(
        lambda seeds: padded(lower.push(seeds), m, n) + padded(upper.push(seeds), m, n),
        lambda seeds: lower.pull(seeds[..., :k].tril(-1)) + upper.pull(seeds[..., :k, :].triu()),
    )


def _after_permutation(factor: Factor, permutation: Tensor | None) -> Factor:
    """Return how a factor of Pᵀ A moves with A."""
    if permutation is None:
        return factor
    return Factor(
        lambda seeds: factor.push(permutation.mT @ seeds),
        lambda seeds: permutation @ factor.pull(seeds),
    )


@with_output
def _lu(A: Tensor, *, pivot: bool = True, out: tuple[Tensor, Tensor, Tensor]) -> Maps:
    """A = P L U: see `lu_factors`, with B = Pᵀ A. The permutation is constant."""
    permutation, lower, upper = out
    factors = lu_factors(lower, upper)
    maps = [_after_permutation(f, permutation if pivot else None) for f in factors]
    return None, maps[0].map(A, lower), maps[1].map(A, upper)


@with_output
def _lu_factor(
    A: Tensor, *, pivot: bool = True, check_errors: bool = False, out: tuple[Tensor, Tensor, Tensor]
) -> Maps:
    """The same, L and U stored in one matrix."""
    lu, pivots, _ = out
    permutation, lower, upper = torch.lu_unpack(lu, pivots)
    factor = packed(*lu_factors(lower, upper), *A.shape[-2:])
    return _after_permutation(factor, permutation if pivot else None).map(A, lu), None, None


@with_output
def _lu_unpack(
    LU_data: Tensor,
    LU_pivots: Tensor,
    unpack_data: bool = True,
    unpack_pivots: bool = True,
    *,
    out: tuple[Tensor, Tensor, Tensor],
) -> Maps:
    """L and U are copies of the two triangles, with zeros and ones elsewhere."""
    if out[1].ndim != LU_data.ndim:  # not asked for
        return None, None, None
    shape, axes = tuple(LU_data.shape), (LU_data.ndim - 2, LU_data.ndim - 1)
    m, n = shape[-2:]
    k = min(m, n)
    places = torch.arange(m * n, device=LU_data.device).reshape(m, n) + 1  # 0: not taken
    lower = places[:, :k].tril(-1).flatten() - 1
    upper = places[:k].triu().flatten() - 1
    return (
        None,
        Gather(shape, tuple(out[1].shape), lower, axes, axes),
        Gather(shape, tuple(out[2].shape), upper, axes, axes),
    )


rule(aten.linalg_lu.default, _lu)
rule(aten.linalg_lu_factor_ex.default, _lu_factor)
rule(aten.lu_unpack.default, _lu_unpack)


@with_output
def _lu_solve_rhs(
    LU: Tensor, pivots: Tensor, B: Tensor, *, left: bool = True, adjoint: bool = False, out: Tensor
) -> AbstractLinearMap:
    """Math: X = A⁻¹ B is linear in B; likewise A⁻ᴴ B, B A⁻¹ and B A⁻ᴴ."""

    def solve(rhs: Tensor, *, adjoint: bool) -> Tensor:
        solution: Tensor = torch.linalg.lu_solve(LU, pivots, rhs, left=left, adjoint=adjoint)
        return solution

    solution = solution_map(
        tuple(out.shape),
        lambda rhs: solve(rhs, adjoint=adjoint),
        lambda rhs: solve(rhs, adjoint=not adjoint),
        left=left,
    )
    return broadcast_first(tuple(B.shape), solution)


@with_output
def _lu_solve_factors(
    LU: Tensor, pivots: Tensor, B: Tensor, *, left: bool = True, adjoint: bool = False, out: Tensor
) -> AbstractLinearMap:
    """Math: A = P L U, so Ẋ = -A⁻¹ P (L̇ U + L U̇) X; for Aᴴ likewise, and X A = B is Aᴴ Xᴴ = Bᴴ."""
    shape, own = tuple(out.shape), tuple(LU.shape)
    full = (*shape[:-2], *own[-2:])
    x = out if left else out.mH
    is_adjoint = adjoint == left  # of the system with the unknown on the right of its matrix
    permutation, lower, upper = torch.lu_unpack(LU, pivots)
    left_inverse = inverse_triangle(lower, upper=False, unitriangular=True)
    right_inverse = inverse_triangle(upper, upper=True)
    moved = permutation.mT @ x if is_adjoint else upper @ x

    def push(seeds: Tensor) -> Tensor:
        strict, other = seeds.tril(-1), seeds.triu()
        if is_adjoint:
            inner = strict.mH @ moved + right_inverse.mH @ (other.mH @ (lower.mH @ moved))
            result = -(permutation @ (left_inverse.mH @ inner))
        else:
            result = -(right_inverse @ (left_inverse @ (strict @ moved) + other @ x))
        return result if left else result.mH

    def pull(seeds: Tensor) -> Tensor:
        seeds = seeds if left else seeds.mH
        if is_adjoint:
            inner = -(left_inverse @ (permutation.mT @ seeds))
            strict = moved @ inner.mH
            other = (lower.mH @ moved) @ (right_inverse @ inner).mH
        else:
            inner = -(right_inverse.mH @ seeds)
            strict = (left_inverse.mH @ inner) @ moved.mH
            other = inner @ x.mH
        return strict.tril(-1) + other.triu()

    after = Factor(push, pull).between(full, shape, len(shape) - 2)
    return broadcast_first(own, after)


rule(aten.linalg_lu_solve.default, _lu_solve_factors, None, _lu_solve_rhs)
