"""Linear algebra: determinants, inverses, solutions, factorizations and functions of matrices.

Formulas after M. Giles, "Collected matrix derivative results for forward and reverse mode
algorithmic differentiation" (2008), unless said otherwise. Batch axes are kept. Aᴴ is the conjugate
transpose; an adjoint is the one of Re tr(Aᴴ B).
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, kept_axes
from pushforward.linear.differentiated import is_differentiated_again
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.contract import Contract
from pushforward.linear.kinds.expand import Expand
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.permute import Permute
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.determinants import cofactors
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten

Function = Callable[[Tensor], Tensor]


def _batch(x: Tensor) -> str:
    return string.ascii_lowercase[11 : 11 + x.ndim - 2]


def batched(x: Tensor, out_shape: Shape, push: Function, pull: Function) -> General:
    """Return a map that acts on each matrix of ``x`` by itself."""
    return General(tuple(x.shape), out_shape, push, pull, kept_axes(x.ndim - 2), takes_shadows=True)


def symmetrized(x: Tensor) -> Tensor:
    """Return the Hermitian part."""
    return (x + x.mH) / 2


def triangle_of(x: Tensor, *, upper: bool) -> Tensor:
    """Return one triangle, with zeros in the other."""
    return x.triu() if upper else x.tril()


# Determinants


def _trace_map(a: Tensor, coef: Tensor) -> Contract:
    """Return Ȧ ↦ Σ_ij coef_ij Ȧ_ij of each matrix."""
    batch = _batch(a)
    shape = tuple(a.shape)
    return Contract(shape, shape[:-2], f"{batch}ij", f"{batch}ij", batch, coef)


def _det(A: Tensor) -> tuple[AbstractLinearMap, None, None]:
    return _trace_map(A, cofactors(A)), None, None


@with_output
def _slogdet(
    A: Tensor,
    *,
    out: tuple[Tensor, ...],
) -> tuple[AbstractLinearMap | None, AbstractLinearMap, None, None]:
    """Math: log|det| moves by Re tr(A⁻¹ Ȧ), the phase by i · phase · Im tr(A⁻¹ Ȧ)."""
    inverse = torch.linalg.inv_ex(A)[0].mT
    log_map = _trace_map(A, inverse)
    if not A.is_complex():
        return None, log_map, None, None
    phase = out[0]
    shape = tuple(A.shape)

    def push(seeds: Tensor) -> Tensor:
        trace = (inverse * seeds).sum((-2, -1))
        moved: Tensor = 1j * phase * trace.imag
        return moved

    def pull(seeds: Tensor) -> Tensor:
        angle = ((1j * phase).conj() * seeds).real
        moved: Tensor = 1j * angle[..., None, None] * inverse.conj()
        return moved

    return batched(A, shape[:-2], push, pull), log_map, None, None


rule(aten._linalg_det.default, _det)
rule(aten._linalg_slogdet.default, _slogdet)

# Inverses


def _inverse_map(a: Tensor, inverse: Tensor) -> AbstractLinearMap:
    """Math: d(A⁻¹) = -A⁻¹ Ȧ A⁻¹."""
    b, shape = _batch(a), tuple(a.shape)
    right = Contract(shape, shape, f"{b}ij", f"{b}jk", f"{b}ik", inverse)
    left = Contract(shape, shape, f"{b}ij", f"{b}hi", f"{b}hj", -inverse)
    return compose(right, left)


rule(
    aten.linalg_inv_ex.default,
    with_output(lambda A, *, check_errors=False, out: (_inverse_map(A, out[0]), None)),
)


@with_output
def _pseudoinverse(self: Tensor, *options: Any, out: Tensor, **named: Any) -> AbstractLinearMap:
    """Golub and Pereyra (1973): Ẋ = -X Ȧ X + X Xᴴ Ȧᴴ (I - A X) + (I - X A) Ȧᴴ Xᴴ X."""
    a, x = self, out
    rows = torch.eye(a.shape[-2], dtype=a.dtype, device=a.device) - a @ x
    cols = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device) - x @ a
    outer, inner = x @ x.mH, x.mH @ x

    def push(seeds: Tensor) -> Tensor:
        return outer @ seeds.mH @ rows + cols @ seeds.mH @ inner - x @ seeds @ x

    def pull(seeds: Tensor) -> Tensor:
        return rows @ seeds.mH @ outer + inner @ seeds.mH @ cols - x.mH @ seeds @ x.mH

    return batched(a, tuple(x.shape), push, pull)


rule(aten.linalg_pinv.atol_rtol_tensor, _pseudoinverse)

# Solutions: A X = B (left) or X A = B


def solution_map(
    shape: Shape, solve: Function, solve_adjoint: Function, *, left: bool
) -> AbstractLinearMap:
    """Return Ḃ ↦ A⁻¹ Ḃ (or Ḃ A⁻¹), the seeds folded into one axis so that A is factored once."""
    ndim = len(shape)
    axis = ndim - 1 if left else ndim - 2  # each column (row) is solved for by itself

    def folded(function: Function) -> Function:
        def apply(seeds: Tensor) -> Tensor:
            moved = seeds.movedim(0, axis)
            size = moved.shape[axis : axis + 2]
            solved: Tensor = function(moved.flatten(axis, axis + 1)).unflatten(axis, size)
            return solved.movedim(axis, 0)

        return apply

    kept = (*kept_axes(ndim - 2), (axis, axis))
    return General(shape, shape, folded(solve), folded(solve_adjoint), kept, takes_shadows=True)


def _system_maps(
    which: int,
    a: Tensor,
    own_rhs: Shape,
    x: Tensor,
    solve: Callable[[Tensor, Tensor], Tensor],
    solve_adjoint: Callable[[Tensor, Tensor], Tensor],
    *,
    left: bool,
    mask: Tensor | None = None,
) -> AbstractLinearMap:
    """Return the map from A (0) or B (1), of shape ``own_rhs``, to the solution X.

    Math: Ẋ = A⁻¹ (Ḃ - Ȧ X), or (Ḃ - X Ȧ) A⁻¹.
    """
    shape = tuple(x.shape)
    matrix = a.expand(*shape[:-2], *a.shape[-2:])
    solution = solution_map(
        shape, lambda r: solve(matrix, r), lambda r: solve_adjoint(matrix.mH, r), left=left
    )
    maps: list[AbstractLinearMap] = []
    if which == 1:
        maps += [Expand(own_rhs, shape)] if own_rhs != shape else []
    else:
        own, full = tuple(a.shape), tuple(matrix.shape)
        maps += [Scale(own, own, mask)] if mask is not None else []
        maps += [Expand(own, full)] if own != full else []
        letters = _batch(matrix)
        ins, consts = ("ij", "jk") if left else ("jk", "ij")
        maps.append(Contract(full, shape, letters + ins, letters + consts, letters + "ik", -x))
    return compose(*maps, solution)


@functools.cache
def keeps_own_factors(device: str) -> bool:
    """Tell whether what solves with A keeps the LU decomposition of A: versions of PyTorch took that of Aᵀ at times."""
    if device == "meta":
        return False
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        a = torch.tensor([[1.0, 2.0], [0.0, 1.0]], device=device)
        layouts = a, a.mT.contiguous().mT
        return all(torch.equal(aten._linalg_solve_ex(each, a)[1], a) for each in layouts)


def _solvers(
    a: Tensor, out: tuple[Tensor, ...], left: bool
) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """Return what solves with A, and with Aᴴ: by the factors that are there, unless somebody differentiates by them."""

    def solve(matrix: Tensor, rhs: Tensor) -> Tensor:
        solution: Tensor = torch.linalg.solve_ex(matrix, rhs, left=left)[0]
        return solution

    if is_differentiated_again() or not keeps_own_factors(a.device.type):
        return solve, solve

    def substitute(matrix: Tensor, rhs: Tensor, *, adjoint: bool) -> Tensor:
        lu, pivots = out[1].expand(matrix.shape), out[2].expand(matrix.shape[:-1])
        solution: Tensor = torch.linalg.lu_solve(lu, pivots, rhs, left=left, adjoint=adjoint)
        return solution

    return functools.partial(substitute, adjoint=False), functools.partial(substitute, adjoint=True)


def _solve(which: int) -> Callable[..., Any]:
    @with_output
    def partial(
        A: Tensor,
        B: Tensor,
        *,
        left: bool = True,
        check_errors: bool = False,
        out: tuple[Tensor, ...],
    ) -> tuple[AbstractLinearMap, None, None, None]:
        solvers = _solvers(A, out, left)
        # A right-hand side that is constant is not saved: the solution has its rank.
        own = tuple(B.shape) if which else tuple(out[0].shape)
        if len(own) == 1 or (len(own) == A.ndim - 1 and own == A.shape[:-1]):
            columns, x = (*own, 1), out[0].unsqueeze(-1)
            inner = _system_maps(which, A, columns, x, *solvers, left=left)
            before = [Reshape(own, columns)] if which else []
            after = Reshape(tuple(x.shape), tuple(out[0].shape))
            return compose(*before, inner, after), None, None, None
        return _system_maps(which, A, own, out[0], *solvers, left=left), None, None, None

    return partial


rule(aten._linalg_solve_ex.default, _solve(0), _solve(1))


def _triangular_maps(
    which: int, a: Tensor, b: Tensor | None, x: Tensor, upper: bool, left: bool, unitriangular: bool
) -> AbstractLinearMap:
    def solve(matrix: Tensor, rhs: Tensor, *, upper: bool) -> Tensor:
        solution: Tensor = torch.linalg.solve_triangular(
            matrix, rhs, upper=upper, left=left, unitriangular=unitriangular
        )
        return solution

    ones = torch.ones(a.shape[-2:], dtype=a.dtype, device=a.device)
    offset = 1 if unitriangular else 0
    mask = ones.triu(offset) if upper else ones.tril(-offset)
    return _system_maps(
        which,
        a,
        () if b is None else tuple(b.shape),
        x,
        lambda matrix, rhs: solve(matrix, rhs, upper=upper),
        lambda matrix, rhs: solve(matrix, rhs, upper=not upper),
        left=left,
        mask=mask,
    )


rule(
    aten.linalg_solve_triangular.default,
    with_output(
        lambda self, B, *, upper, left=True, unitriangular=False, out: _triangular_maps(
            0, self, None, out, upper, left, unitriangular
        )
    ),
    with_output(
        lambda self, B, *, upper, left=True, unitriangular=False, out: _triangular_maps(
            1, self, B, out, upper, left, unitriangular
        )
    ),
)


def _triangular_solve(which: int) -> Callable[..., Any]:
    @with_output
    def partial(
        self: Tensor,
        A: Tensor,
        upper: bool = True,
        transpose: bool = False,
        unitriangular: bool = False,
        *,
        out: tuple[Tensor, Tensor],
    ) -> tuple[AbstractLinearMap, AbstractLinearMap | None]:
        a = A.mT if transpose else A
        is_upper = upper != transpose
        rhs = self if which else None
        solution = _triangular_maps(which, a, rhs, out[0], is_upper, True, unitriangular)
        if which == 1:
            return solution, None
        shape = tuple(A.shape)
        if transpose:
            dims = (*range(A.ndim - 2), A.ndim - 1, A.ndim - 2)
            solution = compose(Permute(shape, tuple(a.shape), dims), solution)
        return solution, Expand(shape, tuple(out[1].shape))

    return partial


rule(aten.triangular_solve.default, _triangular_solve(1), _triangular_solve(0))

# Functions of matrices


def _matrix_exp(self: Tensor) -> AbstractLinearMap:
    """Najfeld and Havel (1995): along E it moves by the upper right of exp([[A, E], [0, A]])."""

    def along(a: Tensor, seeds: Tensor) -> Tensor:
        n = a.shape[-1]
        a = a.expand(seeds.shape)
        rows = [a, seeds], [a.new_zeros(()).expand(seeds.shape), a]
        # Without names: nothing of this is held while the exponential takes its memory.
        exponential: Tensor = torch.linalg.matrix_exp(
            torch.cat([torch.cat(row, -1) for row in rows], -2)
        )
        return exponential[..., :n, n:]

    shape = tuple(self.shape)
    adjoint = self.mH
    return batched(
        self, shape, lambda seeds: along(self, seeds), lambda seeds: along(adjoint, seeds)
    )


rule(aten.linalg_matrix_exp.default, _matrix_exp)

# Eigenvalues of Hermitian matrices


@with_output
def _eigh(
    A: Tensor,
    UPLO: str = "L",
    compute_v: bool = True,
    *,
    out: tuple[Tensor, Tensor],
) -> tuple[AbstractLinearMap, AbstractLinearMap | None]:
    """Math: λ̇ = diag(Vᴴ Ȧ V), V̇ = V (F ⊙ Vᴴ Ȧ V) with F_ij = 1 / (λ_j - λ_i) and 0 on the diagonal.

    The vectors are a function of the Hermitian part of A, as PyTorch has it.
    """
    values, vectors = out if out[1].shape == A.shape else torch.linalg.eigh(A, UPLO)
    shape = tuple(A.shape)

    def push_values(seeds: Tensor) -> Tensor:
        diagonal = ((vectors.mH @ seeds) * vectors.mT).sum(-1)
        return diagonal.real if diagonal.is_complex() else diagonal

    def pull_values(seeds: Tensor) -> Tensor:
        return (vectors * seeds.unsqueeze(-2)) @ vectors.mH

    values_map = batched(A, shape[:-1], push_values, pull_values)
    if out[1].shape != A.shape:
        return values_map, None
    gaps = values.unsqueeze(-2) - values.unsqueeze(-1)
    eye = torch.eye(shape[-1], dtype=values.dtype, device=A.device)
    factors = (1 - eye) / (gaps + eye)

    def push_vectors(seeds: Tensor) -> Tensor:
        return vectors @ (factors * (vectors.mH @ symmetrized(seeds) @ vectors))

    def pull_vectors(seeds: Tensor) -> Tensor:
        return symmetrized(vectors @ (factors * (vectors.mH @ seeds)) @ vectors.mH)

    return values_map, batched(A, shape, push_vectors, pull_vectors)


rule(aten._linalg_eigh.default, _eigh)
