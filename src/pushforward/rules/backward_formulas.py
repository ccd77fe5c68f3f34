"""Backward operators of layers, as formulas: PyTorch does not differentiate most of them a second time.

Saved statistics are arguments that autograd does not follow: they are computed again from the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.rules.formula import rule_by_formula
from pushforward.rules.normalization import standardized, standardized_tangent

aten = torch.ops.aten

NONE, MEAN = 0, 1  # at::Reduction

# Normalizations


def _batch_norm_backward(
    grad_out: Tensor,
    input: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_invstd: Tensor | None,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    axes = tuple(axis for axis in range(input.ndim) if axis != 1)
    column = [1, -1, *[1] * (input.ndim - 2)]
    if train:
        x_hat, rstd = standardized(input, axes, eps)
    else:
        assert running_mean is not None
        assert running_var is not None
        rstd = (running_var + eps).rsqrt().reshape(column)
        x_hat = (input - running_mean.reshape(column)) * rstd
    scaled = grad_out if weight is None else grad_out * weight.reshape(column)
    of_input = standardized_tangent(scaled, x_hat, rstd, axes) if train else scaled * rstd
    return of_input, (grad_out * x_hat).sum(axes), grad_out.sum(axes)


rule_by_formula(
    aten.native_batch_norm_backward.default,
    _batch_norm_backward,
    ("grad_out", "input", "weight"),
    ("save_mean", "save_invstd"),
)

rule_by_formula(
    aten.batch_norm_backward.default,
    lambda grad_out, input, weight, mean, var, save_mean, save_var, update, eps, mask, reserve: (
        _batch_norm_backward(
            grad_out, input, weight, mean, var, save_mean, save_var, update, eps, mask
        )
    ),
    ("grad_out", "input", "weight"),
    ("save_mean", "save_var", "reserve"),
)

# Losses


def _cross_entropy_backward(
    grad_output: Tensor, self: Tensor, target: Tensor, weight: Tensor | None, reduction: int
) -> Tensor:
    slope = (self - target) / (self * (1 - self)).clamp(min=1e-12)
    slope = grad_output * (slope if weight is None else slope * weight)
    return slope / max(slope.numel(), 1) if reduction == MEAN else slope


rule_by_formula(
    aten.binary_cross_entropy_backward.default,
    _cross_entropy_backward,
    ("grad_output", "self", "target"),
)
