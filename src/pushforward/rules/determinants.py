"""Cofactors: the derivative of a determinant, to any order and also where the matrix is singular."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.linear.differentiated import has_duals

NUM_SMALL = 3  # the smallest singular values, which are never divided by


def cofactors(a: Tensor) -> Tensor:
    """Return det(A) A⁻ᵀ, ``(*batch, n, n)``, also where A is singular.

    Where it is differentiated further it is a polynomial in what may vanish; else the LU factors give it.
    """
    if not (has_duals() or (torch.is_grad_enabled() and a.requires_grad)):
        return _from_factors(a)
    return _small(a)[1] if a.shape[-1] <= NUM_SMALL else _split(a)


def _from_factors(a: Tensor) -> Tensor:
    """Replace zero pivots by the square of the machine epsilon: det(A) and A⁻¹ then err by inverse factors."""
    n = a.shape[-1]
    lu, pivots, _ = torch.linalg.lu_factor_ex(a)
    diagonal = lu.diagonal(dim1=-2, dim2=-1)
    tiny = torch.finfo(a.dtype).eps ** 2
    shift = torch.where(diagonal == 0, torch.full_like(diagonal, tiny), torch.zeros_like(diagonal))
    lu = lu + torch.diag_embed(shift)
    swaps = (pivots != torch.arange(1, n + 1, device=a.device)).sum(-1) % 2
    determinant = (diagonal + shift).prod(-1) * (1 - 2 * swaps)
    eye = torch.eye(n, dtype=a.dtype, device=a.device).expand(a.shape)
    inverse = torch.linalg.lu_solve(lu, pivots, eye)
    found: Tensor = determinant[..., None, None] * inverse.mT
    return found


def _split(a: Tensor) -> Tensor:
    """Divide by the large singular values only.

    Math: with constant unitary U, V of A = U Σ Vᴴ, Uᴴ A V = [[B, C], [D, E]] has B regular, and its determinant is
    det(B) det(S), S = E − D B⁻¹ C. The gradient of that is written out, with cofactors of the small S.
    """
    with torch.no_grad():
        u, sizes, vh = torch.linalg.svd(a.detach())
        phase = torch.linalg.det(u) * torch.linalg.det(vh)
        n = a.shape[-1] - NUM_SMALL
        # Where more than three vanish, what is divided by them is a product with others that vanish.
        shift = torch.diag_embed((sizes[..., :n] == 0) * torch.finfo(a.dtype).eps).to(a.dtype)
    inner = u.mH @ a @ vh.mH
    b, c, d, e = inner[..., :n, :n], inner[..., :n, n:], inner[..., n:, :n], inner[..., n:, n:]
    b = b + shift
    inverse = torch.linalg.inv(b)
    right, left = inverse @ c, d @ inverse
    large = torch.linalg.det(b)[..., None, None]
    small, of_small = _small(e - d @ right)
    by_e = large * of_small
    by_b = large * small[..., None, None] * inverse.mT + left.mT @ by_e @ right.mT
    upper = torch.cat([by_b, -left.mT @ by_e], -1)
    lower = torch.cat([-by_e @ right.mT, by_e], -1)
    whole = torch.cat([upper, lower], -2)
    found: Tensor = phase[..., None, None] * (u.conj() @ whole @ vh.conj())
    return found


def _small(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return determinant and cofactors of matrices of at most three rows, as polynomials."""
    n = a.shape[-1]
    if n <= 1:
        ones = torch.ones_like(a)
        return (a[..., 0, 0] if n else a.new_ones(a.shape[:-2])), ones
    if n == 2:
        (p, q), (r, s) = ([a[..., i, j] for j in range(2)] for i in range(2))
        found = torch.stack([torch.stack([s, -r], -1), torch.stack([-q, p], -1)], -2)
        return p * s - q * r, found
    x, y, z = a.unbind(-2)
    found = torch.stack([_cross(y, z), _cross(z, x), _cross(x, y)], -2)
    return (x * found[..., 0, :]).sum(-1), found


def _cross(x: Tensor, y: Tensor) -> Tensor:
    """Return x × y."""
    return x.roll(-1, -1) * y.roll(-2, -1) - x.roll(-2, -1) * y.roll(-1, -1)
