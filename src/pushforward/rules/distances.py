"""Distances between the rows of matrices."""

from __future__ import annotations

import math
import string

import torch
from torch import Tensor

from pushforward.linear.kinds.contract import Contract
from pushforward.linear.kinds.expand import broadcast_first
from pushforward.linear.kinds.general import General
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten


def _distance_slopes(x1: Tensor, x2: Tensor, p: float) -> Tensor:
    """Return ∂d(x1_i, x2_j)/∂x1_im of the p-norm distance, ``(*batch, i, j, m)``, 0 at distance 0.

    Ties of the largest difference at p = ∞ each count in full, as PyTorch has it.
    """
    difference = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    if p == 1:
        return difference.sgn()
    size = difference.abs()
    if math.isinf(p):
        return difference.sgn() * (size == size.amax(-1, keepdim=True))
    zero = size == 0
    # Keeps ∞ out of what is differentiated again
    size = torch.where(zero, torch.ones_like(size), size)
    total = torch.where(zero, torch.zeros_like(size), size**p).sum(-1, keepdim=True)
    nowhere = total == 0
    total = torch.where(nowhere, torch.ones_like(total), total)
    if p == 2:
        return difference * torch.where(nowhere, torch.zeros_like(total), total.rsqrt())
    slopes = difference.sgn() * size ** (p - 1) * total ** (1 / p - 1)
    return torch.where(zero, torch.zeros_like(slopes), slopes)


def _cdist(
    which: int, x1: Tensor, x2: Tensor, p: float = 2, *, out: Tensor
) -> AbstractLinearMap | None:
    if p == 0:  # a count
        return None
    batch = tuple(out.shape[:-2])
    letters = string.ascii_lowercase[13 : 13 + len(batch)]  # apart from i, j and m
    own = (x1, x2)[which]
    full = batch + tuple(own.shape[-2:])
    slopes = _distance_slopes(x1, x2, p)
    const = -slopes if which else slopes
    const = const.expand(tuple(out.shape) + tuple(own.shape[-1:]))
    near = letters + "ij"[which] + "m"
    contract = Contract(full, tuple(out.shape), near, letters + "ijm", letters + "ij", const)
    return broadcast_first(tuple(own.shape), contract)


rule(
    aten._cdist_forward,
    with_output(lambda x1, x2, p, compute_mode, *, out: _cdist(0, x1, x2, p, out=out)),
    with_output(lambda x1, x2, p, compute_mode, *, out: _cdist(1, x1, x2, p, out=out)),
)
rule(
    aten._euclidean_dist,
    with_output(lambda x1, x2, *, out: _cdist(0, x1, x2, out=out)),
    with_output(lambda x1, x2, *, out: _cdist(1, x1, x2, out=out)),
)


def _pdist(self: Tensor, p: float = 2) -> AbstractLinearMap | None:
    """Take the rows above the diagonal of all distances: ḋ_ij = s_ij · (ẋ_i - ẋ_j)."""
    if p == 0:
        return None
    i, j = torch.triu_indices(self.shape[0], self.shape[0], 1, device=self.device)
    slopes = _distance_slopes(self, self, p)[i, j]
    shape = tuple(self.shape)

    def push(seeds: Tensor) -> Tensor:
        return ((seeds[:, i] - seeds[:, j]) * slopes).sum(-1)

    def pull(seeds: Tensor) -> Tensor:
        terms = seeds.unsqueeze(-1) * slopes
        zeros = terms.new_zeros((terms.shape[0], *shape))
        return zeros.index_add(1, i, terms).index_add(1, j, -terms)

    return General(shape, (i.shape[0],), push, pull)


rule(aten._pdist_forward, _pdist)
