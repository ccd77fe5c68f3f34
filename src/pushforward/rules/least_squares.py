"""Least squares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pushforward.linear.kinds.expand import broadcast_first
from pushforward.rules.factorizations import Factor, Maps, eye_like, row, singular_values
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten


def _lstsq(which: int) -> Callable[..., Maps]:
    @with_output
    def partial(
        self: Tensor,
        b: Tensor,
        rcond: float | None = None,
        *,
        driver: str | None = None,
        out: tuple[Tensor, ...],
    ) -> Maps:
        """X = A⁺ B, see `_pseudoinverse` of rules/linalg.py; the rank is taken to be constant.

        Math: R = B - A X, Ẋ = A⁺ (Ḃ - Ȧ X) + A⁺ A⁺ᴴ Ȧᴴ R + (I - A⁺ A) Ȧᴴ A⁺ᴴ X. The residuals
        ρ_j = Σ_i |R_ij|² move by 2 Re Σ_i conj(R_ij) (Ḃ - Ȧ X)_ij, because Aᴴ R = 0.

        References:
            Golub and Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares problems whose
            variables separate", SIAM J. Numer. Anal. 10 (1973).
        """
        is_vector = b.ndim == 1 or (b.ndim == self.ndim - 1 and b.shape == self.shape[:-1])
        rhs, x = (b.unsqueeze(-1), out[0].unsqueeze(-1)) if is_vector else (b, out[0])
        batch = tuple(x.shape[:-2])
        a = self.expand(*batch, *self.shape[-2:])
        rhs = rhs.expand(*batch, *rhs.shape[-2:])
        # Of a node nothing is known of it, nor are singular values followed.
        rtol = rcond if isinstance(rcond, float) else None
        inverse = torch.linalg.pinv(a, rtol=rtol)
        rest = rhs - a @ x
        solution = _lstsq_matrix(a, x, inverse, rest) if which == 0 else _lstsq_rhs(inverse)
        residual = _lstsq_residuals(x if which == 0 else None, rest)
        if is_vector:
            solution = _of_vectors(solution, which == 1)
            residual = _of_vectors(residual, which == 1)
        own = tuple((self if which == 0 else b).shape)
        full = tuple((a if which == 0 else rhs.squeeze(-1) if is_vector else rhs).shape)
        first, second = (
            broadcast_first(own, factor.between(full, tuple(moved.shape), len(batch)))
            for factor, moved in ((solution, out[0]), (residual, out[1]))
        )
        values = None
        if which == 0 and out[3] is not None and out[3].numel():  # of the drivers gelsd and gelss
            u, _, vh = torch.linalg.svd(self, full_matrices=False)
            values = singular_values(self, u, vh)
        return first, second if out[1].numel() else None, None, values

    return partial


def _lstsq_matrix(a: Tensor, x: Tensor, inverse: Tensor, rest: Tensor) -> Factor:
    outside = eye_like(a, a.shape[-1]) - inverse @ a
    outer, inner = inverse @ inverse.mH, inverse.mH @ x

    def push(seeds: Tensor) -> Tensor:
        adjoint = seeds.mH
        return outer @ (adjoint @ rest) + outside @ (adjoint @ inner) - inverse @ (seeds @ x)

    def pull(seeds: Tensor) -> Tensor:
        first = rest @ (outer @ seeds).mH + inner @ (outside @ seeds).mH
        return first - (inverse.mH @ seeds) @ x.mH

    return Factor(push, pull)


def _lstsq_rhs(inverse: Tensor) -> Factor:
    return Factor(lambda seeds: inverse @ seeds, lambda seeds: inverse.mH @ seeds)


def _lstsq_residuals(x: Tensor | None, rest: Tensor) -> Factor:
    """Along B, or along A (with ``x`` given)."""

    def push(seeds: Tensor) -> Tensor:
        seeds = seeds if x is None else -(seeds @ x)
        moved = 2 * (rest.conj() * seeds).sum(-2)
        return moved.real if moved.is_complex() else moved

    def pull(seeds: Tensor) -> Tensor:
        pulled = 2 * rest * row(seeds)
        return pulled if x is None else -(pulled @ x.mH)

    return Factor(push, pull)


def _of_vectors(factor: Factor, both: bool) -> Factor:
    """Return the factor for one right-hand side, without its column axis; ``both`` ends lack it."""

    def push(seeds: Tensor) -> Tensor:
        return factor.push(seeds.unsqueeze(-1) if both else seeds).squeeze(-1)

    def pull(seeds: Tensor) -> Tensor:
        pulled = factor.pull(seeds.unsqueeze(-1))
        return pulled.squeeze(-1) if both else pulled

    return Factor(push, pull)


rule(aten.linalg_lstsq.default, _lstsq(0), _lstsq(1))
