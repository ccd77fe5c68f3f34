"""Operators whose derivative is zero wherever it exists, or whose output has none."""

from __future__ import annotations

import torch

from pushforward.rules.registry import nondifferentiable

aten = torch.ops.aten

# Comparisons and logic
nondifferentiable(
    *(aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge),
    *(aten.logical_and, aten.logical_or, aten.logical_xor, aten.logical_not),
    *(aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor, aten.bitwise_not),
    *(aten.bitwise_left_shift, aten.bitwise_right_shift),
    *(aten.__and__, aten.__or__, aten.__xor__, aten.__lshift__, aten.__rshift__),
    *(aten.isnan, aten.isinf, aten.isfinite, aten.isposinf, aten.isneginf, aten.isreal),
    *(aten.isclose, aten.allclose, aten.equal, aten.isin, aten.is_nonzero, aten.is_same_size),
    *(aten.any, aten.all, aten.signbit, aten.nonzero, aten.nonzero_static, aten.argwhere),
    *(aten.nonzero_numpy, aten.count_nonzero, aten.is_floating_point, aten.is_complex),
)

# Steps
nondifferentiable(
    *(aten.sign, aten.floor, aten.ceil, aten.round, aten.trunc, aten.fix),
    *(aten.floor_divide, aten.gcd, aten.lcm),
)

# Positions and counts
nondifferentiable(
    *(aten.argmax, aten.argmin, aten.argsort, aten.bucketize, aten.searchsorted),
    *(aten.histc, aten.histogram, aten.bincount, aten.one_hot),
    *(aten._histogramdd_bin_edges, aten._histogramdd_from_bin_cts),
    *(aten._histogramdd_from_bin_tensors, aten.tril_indices, aten.triu_indices),
    *(aten.linalg_matrix_rank, aten._linalg_check_errors),
)

# New tensors
nondifferentiable(
    *(aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like),
    *(aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty_strided),
    *(aten.empty, aten.empty_strided, aten.zeros, aten.ones, aten.full, aten.eye, aten.zero),
    *(aten.arange, aten.scalar_tensor, aten.randperm),
    *(aten.rand, aten.randn, aten.randint),
    *(aten.rand_like, aten.randn_like, aten.randint_like),
)

# Random draws: their parameters have no pathwise derivative here
nondifferentiable(
    *(aten.bernoulli, aten.multinomial, aten.poisson, aten.binomial),
    *(aten.normal, aten.normal_, aten.normal_functional, aten.uniform, aten.random),
    *(aten.cauchy, aten.exponential, aten.geometric, aten.log_normal),
)
