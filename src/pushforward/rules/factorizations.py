"""Factorizations of general matrices: QR, singular values, eigenvalues.

Wide and tall, real and complex, batch axes kept. Aᴴ is the conjugate transpose; an adjoint is the one of
Re tr(Aᴴ B). Vectors that are fixed only up to a phase move in the gauge that PyTorch's forward formulas
choose: what does not depend on the phases has the right derivatives, of any order.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, kept_axes
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.contract import Contract
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.sum import Sum
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten

Function = Callable[[Tensor], Tensor]
Maps = tuple[AbstractLinearMap | None, ...]


class Factor(NamedTuple):
    """How one factor of a matrix moves with it: tangent of the matrix to that of the factor, and the adjoint."""

    push: Function
    pull: Function

    def map(self, a: Tensor, factor: Tensor) -> AbstractLinearMap:
        """Return the map, matrix by matrix."""
        return self.between(tuple(a.shape), tuple(factor.shape), a.ndim - 2)

    def between(self, in_shape: Shape, out_shape: Shape, num_batch: int) -> AbstractLinearMap:
        """Return the map that keeps the first ``num_batch`` axes."""
        return General(
            in_shape, out_shape, self.push, self.pull, kept_axes(num_batch), takes_shadows=True
        )


def eye_like(x: Tensor, rows: int, cols: int | None = None) -> Tensor:
    """Return ones on the diagonal, with the dtype and device of ``x``."""
    return torch.eye(rows, rows if cols is None else cols, dtype=x.dtype, device=x.device)


def padded(x: Tensor, rows: int, cols: int) -> Tensor:
    """Append zero rows and columns to the matrices ``x``."""
    return torch.nn.functional.pad(x, (0, cols - x.shape[-1], 0, rows - x.shape[-2]))


def inverse_triangle(a: Tensor, *, upper: bool, unitriangular: bool = False) -> Tensor:
    """Return the inverse of triangular matrices."""
    eye = eye_like(a, a.shape[-1]).expand(a.shape)
    inverse: Tensor = torch.linalg.solve_triangular(
        a, eye, upper=upper, unitriangular=unitriangular
    )
    return inverse


def column(x: Tensor) -> Tensor:
    """Turn a scale of the rows into something that multiplies a matrix."""
    return x.unsqueeze(-1)


def row(x: Tensor) -> Tensor:
    """Turn a scale of the columns into something that multiplies a matrix."""
    return x.unsqueeze(-2)


def diagonal(x: Tensor) -> Tensor:
    """Return the diagonals of matrices."""
    return x.diagonal(dim1=-2, dim2=-1)


def _bilinear(a: Tensor, left: Tensor, right: Tensor) -> AbstractLinearMap:
    """Return Ȧ ↦ diag(L Ȧ Rᵀ), that is Σ_ij L_ki Ȧ_ij R_kj for each k."""
    shape, batch = tuple(a.shape), string.ascii_lowercase[11 : 11 + a.ndim - 2]
    moved = (*shape[:-2], left.shape[-2], shape[-1])
    return compose(
        Contract(shape, moved, f"{batch}ij", f"{batch}ki", f"{batch}kj", left),
        Scale(moved, moved, right),
        Sum(moved, moved[:-1], (len(moved) - 1,)),
    )


# QR


def _half_triangle(x: Tensor) -> Tensor:
    """Take the upper triangle and half the diagonal."""
    return x.triu() * (1 - eye_like(x, x.shape[-2], x.shape[-1]) / 2)


def qr_factors(q: Tensor, r: Tensor, extra: Tensor | None = None) -> tuple[Factor, Factor, Factor]:
    """Return how Q, ``(*batch, m, k)``, R, ``(*batch, k, n)``, and a basis beside Q move with A = Q R.

    The diagonal of R stays real, as in LAPACK. The ``extra`` columns that complete Q to a unitary matrix move in the
    gauge in which they do not turn among each other.

    Math: Y = Ȧ R₁⁻¹ (first k columns), X = Qᴴ Y, Ψ = Φ(X + Xᴴ) with Φ the upper triangle and half the diagonal;
    Q̇ = Y - Q Ψ, Ṙ = Qᴴ Ȧ - (X - Ψ) R, Q̇₂ = -Q Yᴴ Q₂. Where R₁ is singular, inf or nan.

    References:
        Walter and Lehmann, "Algorithmic differentiation of linear algebra functions with application in optimum
        experimental design" (2010); for wide matrices Roberts and Roberts, "QR and LQ decomposition matrix
        backpropagation algorithms for square, wide, and deep matrices" (2020).
    """
    m, k, n = q.shape[-2], q.shape[-1], r.shape[-1]
    inverse = inverse_triangle(r[..., :k], upper=True)
    qh = q.mH

    def turned(x: Tensor) -> Tensor:
        return _half_triangle(x + x.mH)

    def turned_adjoint(x: Tensor) -> Tensor:
        half = _half_triangle(x)
        return half + half.mH

    def push_q(seeds: Tensor) -> Tensor:
        y = seeds[..., :k] @ inverse
        return y - q @ turned(qh @ y)

    def pull_q(seeds: Tensor) -> Tensor:
        y = seeds - q @ turned_adjoint(qh @ seeds)
        return padded(y @ inverse.mH, m, n)

    def push_r(seeds: Tensor) -> Tensor:
        x = qh @ seeds
        inner = x[..., :k] @ inverse
        return (x - (inner - turned(inner)) @ r).triu()

    def pull_r(seeds: Tensor) -> Tensor:
        seeds = seeds.triu()
        inner = seeds @ r.mH
        inner = (inner - turned_adjoint(inner)) @ inverse.mH
        return q @ (seeds - padded(inner, k, n))

    def push_extra(seeds: Tensor) -> Tensor:
        assert extra is not None
        return -(q @ ((seeds[..., :k] @ inverse).mH @ extra))

    def pull_extra(seeds: Tensor) -> Tensor:
        assert extra is not None
        return padded(-(extra @ (seeds.mH @ q)) @ inverse.mH, m, n)

    return Factor(push_q, pull_q), Factor(push_r, pull_r), Factor(push_extra, pull_extra)


def _beside(first: Factor, second: Factor, size: int, dim: int) -> Factor:
    """Return how two factors in one tensor move, the first of ``size`` along ``dim``."""

    def pull(seeds: Tensor) -> Tensor:
        rest = seeds.narrow(dim, size, seeds.shape[dim] - size)
        return first.pull(seeds.narrow(dim, 0, size)) + second.pull(rest)

    return Factor(lambda seeds: torch.cat([first.push(seeds), second.push(seeds)], dim), pull)


@with_output
def _qr(A: Tensor, mode: str = "reduced", *, out: tuple[Tensor, Tensor]) -> Maps:
    """See `qr_factors`. Unlike PyTorch also for tall matrices with ``mode='complete'``.

    The columns that ``mode='complete'`` adds to a tall matrix's Q are an arbitrary basis: only functions that do not
    depend on the choice, such as the projector onto their span, have a derivative.
    """
    m, n = A.shape[-2:]
    k = min(m, n)
    q, r = out
    is_complete = q.shape[-1] > k
    extra = q[..., k:] if is_complete else None
    q_moves, r_moves, extra_moves = qr_factors(q[..., :k], r[..., :k, :], extra)
    if is_complete:
        q_moves = _beside(q_moves, extra_moves, k, -1)
        small = r_moves
        r_moves = Factor(
            lambda seeds: padded(small.push(seeds), m, n),
            lambda seeds: small.pull(seeds[..., :k, :]),
        )
    return q_moves.map(A, q), r_moves.map(A, r)


rule(aten.linalg_qr.default, _qr)


# Singular values


def singular_values(a: Tensor, u: Tensor, vh: Tensor) -> AbstractLinearMap:
    """Return how they move: ṡ = Re diag(Uᴴ Ȧ V), the real part taken by the engine."""
    return _bilinear(a, u.mH, vh.conj())


def _singular_vectors(
    u: Tensor, s: Tensor, v: Tensor, *, rows: int, extra: Tensor | None
) -> Factor:
    """Return how U, ``(*batch, rows, k)``, moves with A = U diag(s) Vᴴ, and the ``extra`` columns beside it.

    Math: P = Uᴴ Ȧ V, Ω_ij = (P_ij s_j + s_i conj P_ji) / (s_j² - s_i²), Ω_ii = i Im P_ii / 2 s_i,
    U̇ = U Ω + (Ȧ V - U P) / s, U̇₂ = -U s⁻¹ Vᴴ Ȧᴴ U₂.
    """
    k = s.shape[-1]
    eye = eye_like(s, k)
    gaps = (row(s) - column(s)) * (row(s) + column(s))
    factors = (1 - eye) / (gaps + eye)
    inverse = 1 / s if rows > k or u.is_complex() else s

    def push(seeds: Tensor) -> Tensor:
        moved = seeds @ v
        p = u.mH @ moved
        scaled = p * row(s)
        turned = (scaled + scaled.mH) * factors
        if u.is_complex():
            turned = turned + torch.diag_embed(0.5j * diagonal(p).imag * inverse)
        result = u @ turned
        if rows > k:
            result = result + (moved - u @ p) * row(inverse)
        return result

    def pull(seeds: Tensor) -> Tensor:
        inner = u.mH @ seeds
        turned = inner * factors
        p = (turned + turned.mH) * row(s)
        if u.is_complex():
            p = p + torch.diag_embed(0.5j * diagonal(inner).imag * inverse)
        result = u @ p
        if rows > k:
            outside = seeds * row(inverse)
            result = result + outside - u @ (u.mH @ outside)
        return result @ v.mH

    vectors = Factor(push, pull)
    if extra is None:
        return vectors

    def push_extra(seeds: Tensor) -> Tensor:
        return -(u @ (column(inverse) * (v.mH @ (seeds.mH @ extra))))

    def pull_extra(seeds: Tensor) -> Tensor:
        return -(extra @ ((seeds.mH @ u) * row(inverse))) @ v.mH

    return _beside(vectors, Factor(push_extra, pull_extra), k, -1)


@with_output
def _svd(
    A: Tensor,
    full_matrices: bool = False,
    compute_uv: bool = True,
    *,
    driver: str | None = None,
    out: tuple[Tensor, Tensor, Tensor],
) -> Maps:
    """Math: ṡ = Re diag(Uᴴ Ȧ V); the vectors as in `_singular_vectors`, V as those of Aᴴ.

    With repeated singular values the vectors (and second derivatives of the values) are inf or nan, with zero
    ones those of a complex or not square matrix too. The vectors that ``full_matrices`` adds are an arbitrary basis:
    only functions that do not depend on the choice have a derivative.

    References:
        Townsend, "Differentiating the singular value decomposition" (2016); for complex matrices Wan and Zhang,
        "Automatic differentiation for complex valued SVD" (2019).
    """
    m, n = A.shape[-2:]
    k = min(m, n)
    u, s, vh = out
    has_vectors = u.shape[-2:-1] == A.shape[-2:-1]
    if not has_vectors:
        u, _, vh = torch.linalg.svd(A, full_matrices=False)
    u1, vh1 = u[..., :k], vh[..., :k, :]

    values = singular_values(A, u1, vh1)
    if not has_vectors:
        return None, values, None
    beside_u = u[..., k:] if u.shape[-1] > k else None
    beside_v = vh[..., k:, :].mH if vh.shape[-2] > k else None
    left = _singular_vectors(u1, s, vh1.mH, rows=m, extra=beside_u)
    right = _singular_vectors(vh1.mH, s, u1, rows=n, extra=beside_v)
    right_adjoint = Factor(
        lambda seeds: right.push(seeds.mH).mH, lambda seeds: right.pull(seeds.mH).mH
    )
    return left.map(A, u), values, right_adjoint.map(A, vh)


rule(aten._linalg_svd.default, _svd)


# Eigenvalues


@with_output
def _eig(self: Tensor, *, out: tuple[Tensor, Tensor]) -> Maps:
    """Math: P = V⁻¹ Ȧ V, λ̇ = diag P, X_ij = P_ij / (λ_j - λ_i) and 0 on the diagonal, V̇ = V (X - Re diag(Vᴴ V X)).

    The columns of V keep their length. A matrix that is not diagonalizable gives inf or nan, and so do the vectors
    (and second derivatives of the values) at repeated eigenvalues. Loss functions that depend on the phases of the
    vectors, which PyTorch's backward formula refuses, are not noticed.

    References:
        Boeddeker, Hanebrink, Drude, Heymann and Haeb-Umbach, "On the computation of complex-valued gradients with
        application to statistically optimum beamforming" (2017), section 4.2; Giles (2008), section 3.1.
    """
    values, vectors = out
    inverse = torch.linalg.inv_ex(vectors)[0]
    eye = eye_like(values, values.shape[-1])
    factors = (1 - eye) / (row(values) - column(values) + eye)
    gram = vectors.mH @ vectors

    def push(seeds: Tensor) -> Tensor:
        x = (inverse @ seeds.to(vectors.dtype) @ vectors) * factors
        lengths = (gram.mT * x).sum(-2).real
        moved: Tensor = vectors @ x - vectors * row(lengths)
        return moved

    def pull(seeds: Tensor) -> Tensor:
        lengths = -(vectors.conj() * seeds).sum(-2).real
        x = vectors.mH @ seeds + gram * row(lengths)
        moved: Tensor = inverse.mH @ (x * factors.conj()) @ vectors.mH
        return moved

    return _bilinear(self, inverse, vectors.mT), Factor(push, pull).map(self, vectors)


rule(aten.linalg_eig.default, _eig)
