"""Products of Householder reflectors, and the QR decomposition stored as reflectors.

References:
    Schreiber and Van Loan, "A storage-efficient WY representation for products of Householder transformations"
    (1989): H₁ ⋯ H_k = I - V T Vᴴ.
    Ballard, Demmel, Grigori, Jacquelin, Nguyen and Solomonik, "Reconstructing Householder vectors from tall-skinny
    QR" (2014): Q - I = V (-T V₁ᴴ) is an LU decomposition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pushforward.linear.axes import kept_axes
from pushforward.linear.kinds.general import General
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.factorizations import (
    Factor,
    Maps,
    diagonal,
    eye_like,
    inverse_triangle,
    padded,
    qr_factors,
)
from pushforward.rules.linalg import solution_map
from pushforward.rules.lu import lu_factors, packed
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten


class _Reflectors(NamedTuple):
    """H₁ ⋯ H_k = I - V T Vᴴ with T = (I + D S)⁻¹ D, D = diag τ, S = triu₁(Vᴴ V)."""

    v: Tensor  # (*batch, m, k), unit lower trapezoidal
    t: Tensor  # (*batch, k, k), upper triangular
    before: Tensor  # (I + D S)⁻¹
    after: Tensor  # (I + S D)⁻¹


def _reflectors(a: Tensor, tau: Tensor) -> _Reflectors:
    m, k = a.shape[-2], tau.shape[-1]
    v = a[..., :k].tril(-1) + eye_like(a, m, k)
    s, eye = (v.mH @ v).triu(1), eye_like(a, k)
    before = inverse_triangle(eye + tau.unsqueeze(-1) * s, upper=True, unitriangular=True)
    t = before * tau.unsqueeze(-2)
    return _Reflectors(v, t, before, eye - s @ t)


def _product_map(
    which: int, a: Tensor, tau: Tensor, c: Tensor, *, adjoint: bool, left: bool
) -> AbstractLinearMap:
    """Return the map from the vectors (0) or τ (1) to Q C, Qᴴ C, C Q or C Qᴴ.

    Math: Ṫ = (I + D S)⁻¹ Ḋ (I + S D)⁻¹ - T Ṡ T, Q̇ = -(V̇ T Vᴴ + V Ṫ Vᴴ + V T V̇ᴴ); C Q is (Qᴴ Cᴴ)ᴴ.
    """
    v, t, before, after = _reflectors(a, tau)
    k, cols = tau.shape[-1], a.shape[-1]
    c = c if left else c.mH
    adjoint = adjoint == left
    y = v.mH @ c
    middle = t.mH if adjoint else t

    def product(t_dot: Tensor) -> Tensor:
        return v @ ((t_dot.mH if adjoint else t_dot) @ y)

    def push_vectors(seeds: Tensor) -> Tensor:
        v_dot = seeds[..., :k].tril(-1)
        inner = v.mH @ v_dot
        t_dot = -(t @ (inner + inner.mH).triu(1) @ t)
        result = -(v_dot @ (middle @ y) + product(t_dot) + v @ (middle @ (v_dot.mH @ c)))
        return result if left else result.mH

    def push_tau(seeds: Tensor) -> Tensor:
        result = -product((before * seeds.unsqueeze(-2)) @ after)
        return result if left else result.mH

    def pull_middle(seeds: Tensor) -> Tensor:
        t_bar = (v.mH @ seeds) @ y.mH
        return t_bar.mH if adjoint else t_bar

    def pull_vectors(seeds: Tensor) -> Tensor:
        seeds = -(seeds if left else seeds.mH)
        s_bar = -(t.mH @ pull_middle(seeds) @ t.mH).triu(1)
        v_bar = seeds @ (middle @ y).mH + c @ (middle.mH @ (v.mH @ seeds)).mH
        v_bar = v_bar + v @ (s_bar + s_bar.mH)
        return padded(v_bar.tril(-1), v.shape[-2], cols)

    def pull_tau(seeds: Tensor) -> Tensor:
        seeds = -(seeds if left else seeds.mH)
        t_bar = before.mH @ pull_middle(seeds) @ after.mH
        return diagonal(t_bar)

    out_shape = tuple((c if left else c.mH).shape)
    kept = kept_axes(a.ndim - 2)
    if which == 0:
        move = push_vectors, pull_vectors
        return General(tuple(a.shape), out_shape, *move, kept, takes_shadows=True)
    return General(tuple(tau.shape), out_shape, push_tau, pull_tau, kept, takes_shadows=True)


def _householder_product(which: int) -> Callable[..., Any]:
    def partial(input: Tensor, tau: Tensor) -> AbstractLinearMap:
        """The first n columns of H₁ ⋯ H_k: see `_product_map`."""
        eye = eye_like(input, *input.shape[-2:]).expand(input.shape)
        return _product_map(which, input, tau, eye, adjoint=False, left=True)

    return partial


rule(aten.linalg_householder_product.default, _householder_product(0), _householder_product(1))


def _ormqr(which: int) -> Callable[..., Any]:
    def partial(
        self: Tensor, input2: Tensor, input3: Tensor, left: bool = True, transpose: bool = False
    ) -> AbstractLinearMap:
        """See `_product_map`; with ``transpose`` it is Qᴴ."""
        return _product_map(which, self, input2, input3, adjoint=transpose, left=left)

    return partial


def _ormqr_other(
    self: Tensor, input2: Tensor, input3: Tensor, left: bool = True, transpose: bool = False
) -> AbstractLinearMap:
    """Math: linear in C."""
    v, t, _, _ = _reflectors(self, input2)

    def apply(x: Tensor, *, transpose: bool) -> Tensor:
        middle = t.mH if transpose else t
        return x - v @ (middle @ (v.mH @ x)) if left else x - ((x @ v) @ middle) @ v.mH

    return solution_map(
        tuple(input3.shape),
        lambda x: apply(x, transpose=transpose),
        lambda x: apply(x, transpose=not transpose),
        left=left,
    )


rule(aten.ormqr.default, _ormqr(0), _ormqr(1), _ormqr_other)


@with_output
def _geqrf(self: Tensor, *, out: tuple[Tensor, Tensor]) -> Maps:
    """Q and R move as in `qr_factors`; V and -T V₁ᴴ as the LU factors of Q - I, and τ is the diagonal of T.

    PyTorch has no derivative of this operator. Where a reflector is the identity (a column that is zero below the
    diagonal, but for the last of a square or wide matrix) it jumps: inf or nan.
    """
    a, tau = out
    m, n = a.shape[-2:]
    k = tau.shape[-1]
    v, t, _, _ = _reflectors(a, tau)
    q = eye_like(a, m, k) - v @ (t @ v[..., :k, :].mH)
    q_moves, r_moves, _ = qr_factors(q, a[..., :k, :].triu())
    v_moves, w_moves = lu_factors(v, -(t @ v[..., :k, :].mH))
    stored = packed(
        Factor(
            lambda seeds: v_moves.push(q_moves.push(seeds)),
            lambda seeds: q_moves.pull(v_moves.pull(seeds)),
        ),
        r_moves,
        m,
        n,
    )

    def push_tau(seeds: Tensor) -> Tensor:
        return -diagonal(w_moves.push(q_moves.push(seeds)))

    def pull_tau(seeds: Tensor) -> Tensor:
        return q_moves.pull(w_moves.pull(torch.diag_embed(-seeds)))

    return stored.map(self, a), Factor(push_tau, pull_tau).map(self, tau)


rule(aten.geqrf.default, _geqrf)
