"""Cholesky factors, and solutions by them. Seen as a function of the Hermitian part of A, as PyTorch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.kinds.expand import broadcast_first
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.linalg import batched, solution_map, symmetrized, triangle_of
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten


def _cholesky_map(a: Tensor, factor: Tensor, *, upper: bool) -> AbstractLinearMap:
    """Math: L̇ = L Φ(L⁻¹ Ȧ L⁻ᴴ), where Φ takes the lower triangle and half the diagonal."""
    lower = factor.mH if upper else factor
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    inverse = torch.linalg.solve_triangular(lower, eye.expand(a.shape), upper=False)
    half = (torch.ones_like(eye) - eye / 2).tril()

    def push(seeds: Tensor) -> Tensor:
        result: Tensor = lower @ (half * (inverse @ symmetrized(seeds) @ inverse.mH))
        return result.mH if upper else result

    def pull(seeds: Tensor) -> Tensor:
        seeds = seeds.mH if upper else seeds
        return symmetrized(inverse.mH @ (half * (lower.mH @ seeds)) @ inverse)

    return batched(a, tuple(factor.shape), push, pull)


rule(
    aten.linalg_cholesky_ex.default,
    with_output(
        lambda self, *, upper=False, check_errors=False, out: (
            _cholesky_map(self, out[0], upper=upper),
            None,
        )
    ),
)
if hasattr(aten, "cholesky"):  # until PyTorch 2.13
    rule(
        aten.cholesky.default,
        with_output(lambda self, upper=False, *, out: _cholesky_map(self, out, upper=upper)),
    )


@with_output
def _cholesky_inverse(self: Tensor, upper: bool = False, *, out: Tensor) -> AbstractLinearMap:
    """Math: X = (L Lᴴ)⁻¹ moves by -X (L̇ Lᴴ + L L̇ᴴ) X."""
    factor = triangle_of(self, upper=upper)
    lower = factor.mH if upper else factor
    x = out

    def push(seeds: Tensor) -> Tensor:
        seeds = seeds.triu().mH if upper else seeds.tril()
        product = x @ seeds @ lower.mH @ x
        return -(product + product.mH)

    def pull(seeds: Tensor) -> Tensor:
        result = -(x @ (seeds + seeds.mH) @ x @ lower)
        return result.mH.triu() if upper else result.tril()

    return batched(self, tuple(out.shape), push, pull)


rule(aten.cholesky_inverse.default, _cholesky_inverse)


def _cholesky_solve(which: int) -> Callable[..., Any]:
    @with_output
    def partial(
        self: Tensor, input2: Tensor, upper: bool = False, *, out: Tensor
    ) -> AbstractLinearMap:
        """Math: X = A⁻¹ B with A = L Lᴴ; Ẋ = A⁻¹ (Ḃ - (L̇ Lᴴ + L L̇ᴴ) X)."""
        x, shape = out, tuple(out.shape)
        factor = input2.expand(*shape[:-2], *input2.shape[-2:])
        triangle = triangle_of(factor, upper=upper)
        lower = triangle.mH if upper else triangle

        def solve(rhs: Tensor) -> Tensor:
            # Not cholesky_solve, whose forward derivative PyTorch (2.13) has wrong under vmap.
            half = torch.linalg.solve_triangular(lower, rhs, upper=False)
            result: Tensor = torch.linalg.solve_triangular(lower.mH, half, upper=True)
            return result

        if which == 0:
            return broadcast_first(tuple(self.shape), solution_map(shape, solve, solve, left=True))
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        # Not cholesky_inverse: LAPACK's takes the diagonal to be real.
        inverse = solve(eye.expand(factor.shape))

        def push(seeds: Tensor) -> Tensor:
            seeds = seeds.triu().mH if upper else seeds.tril()
            product = seeds @ lower.mH
            return -(inverse @ ((product + product.mH) @ x))

        def pull(seeds: Tensor) -> Tensor:
            product = -(inverse @ seeds @ x.mH)
            result = (product + product.mH) @ lower
            return result.mH.triu() if upper else result.tril()

        return broadcast_first(tuple(input2.shape), batched(factor, shape, push, pull))

    return partial


rule(aten.cholesky_solve.default, _cholesky_solve(0), _cholesky_solve(1))
