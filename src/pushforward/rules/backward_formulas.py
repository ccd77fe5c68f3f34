"""Backward operators of layers, as formulas: PyTorch does not differentiate most of them a second time.

Saved results (means, distances, logarithms of sums) are arguments like others: their own derivatives come
with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.rules.formula import rule_by_formula
from pushforward.rules.indexing import uses_of
from pushforward.rules.pooling import BAG_MAX, bag_factors, bags_of

aten = torch.ops.aten

NONE, MEAN = 0, 1  # at::Reduction

# Normalizations


def _normalized_cotangent(
    cotangent: Tensor, x_hat: Tensor, rstd: Tensor, axes: list[int]
) -> Tensor:
    """Math: rstd (ȳ - mean ȳ - x̂ mean(ȳ x̂))."""
    mean = cotangent.mean(axes, keepdim=True)
    product = (cotangent * x_hat).mean(axes, keepdim=True)
    result: Tensor = rstd * (cotangent - mean - x_hat * product)
    return result


def _layer_norm_backward(
    grad_out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    first = input.ndim - len(normalized_shape)
    x_hat = (input - mean) * rstd
    scaled = grad_out if weight is None else grad_out * weight
    of_input = _normalized_cotangent(scaled, x_hat, rstd, list(range(first, input.ndim)))
    shape = list(input.shape[first:])
    return of_input, (grad_out * x_hat).sum_to_size(shape), grad_out.sum_to_size(shape)


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
    axes = [axis for axis in range(input.ndim) if axis != 1]
    column = [1, -1, *[1] * (input.ndim - 2)]
    if train:
        assert save_mean is not None
        assert save_invstd is not None
        mean, rstd = save_mean, save_invstd
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, rstd = running_mean, (running_var + eps).rsqrt()
    rstd = rstd.reshape(column)
    x_hat = (input - mean.reshape(column)) * rstd
    scaled = grad_out if weight is None else grad_out * weight.reshape(column)
    of_input = _normalized_cotangent(scaled, x_hat, rstd, axes) if train else scaled * rstd
    return of_input, (grad_out * x_hat).sum(axes), grad_out.sum(axes)


rule_by_formula(
    aten.native_layer_norm_backward.default,
    _layer_norm_backward,
    ("grad_out", "input", "mean", "rstd", "weight", "bias"),
)
rule_by_formula(
    aten.native_batch_norm_backward.default,
    _batch_norm_backward,
    ("grad_out", "input", "weight", "running_mean", "running_var", "save_mean", "save_invstd"),
)

# Distances


def _distance_slope(difference: Tensor, distance: Tensor, p: float) -> Tensor:
    """Return ∂ ‖d‖_p / ∂ d, 0 where the distance is."""
    if p == 0:
        return torch.zeros_like(difference)
    if p == 1:
        return difference.sgn()
    if p == float("inf"):
        return difference.sgn() * (difference.abs() == distance)
    is_zero = (distance == 0) | (difference == 0)
    one = torch.ones_like(difference)
    length = torch.where(is_zero, one, distance)
    size = torch.where(is_zero, one, difference.abs())
    return torch.where(is_zero, 0 * one, difference.sgn() * (size / length) ** (p - 1))


def _cdist_backward(grad: Tensor, x1: Tensor, x2: Tensor, p: float, cdist: Tensor) -> Tensor:
    difference = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    slope = _distance_slope(difference, cdist.unsqueeze(-1).expand(difference.shape), p)
    result = (grad.unsqueeze(-1) * slope).sum(-2)
    return result if result.numel() else torch.zeros_like(x1)  # which has no batch, maybe


def _pdist_backward(grad: Tensor, self: Tensor, p: float, pdist: Tensor) -> Tensor:
    i, j = torch.triu_indices(self.shape[0], self.shape[0], 1, device=self.device)
    difference = self[i] - self[j]
    slope = _distance_slope(difference, pdist.unsqueeze(-1).expand(difference.shape), p)
    terms = grad.unsqueeze(-1) * slope
    return torch.zeros_like(self).index_add(0, i, terms).index_add(0, j, -terms)


rule_by_formula(aten._cdist_backward.default, _cdist_backward, ("grad", "x1", "x2", "cdist"))
rule_by_formula(aten._pdist_backward.default, _pdist_backward, ("grad", "self", "pdist"))

# Losses


def _cross_entropy_backward(
    grad_output: Tensor, self: Tensor, target: Tensor, weight: Tensor | None, reduction: int
) -> Tensor:
    slope = (self - target) / (self * (1 - self)).clamp(min=1e-12)
    slope = grad_output * (slope if weight is None else slope * weight)
    return slope / max(slope.numel(), 1) if reduction == MEAN else slope


def _nll_backward(
    grad_output: Tensor,
    self: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
) -> Tensor:
    axis = 1 if self.ndim > 1 else 0
    ignored = target == ignore_index
    places = torch.where(ignored, torch.zeros_like(target), target)
    chosen = torch.ones_like(grad_output) if weight is None else weight[places]
    slope = -grad_output * torch.where(ignored, torch.zeros_like(chosen), chosen)
    slope = slope / total_weight if reduction == MEAN else slope
    index = places.unsqueeze(axis)
    return torch.zeros_like(self).scatter(axis, index, slope.expand(target.shape).unsqueeze(axis))


rule_by_formula(
    aten.binary_cross_entropy_backward.default,
    _cross_entropy_backward,
    ("grad_output", "self", "target", "weight"),
)
for _operator in (aten.nll_loss_backward.default, aten.nll_loss2d_backward.default):
    rule_by_formula(_operator, _nll_backward, ("grad_output", "self", "weight", "total_weight"))

# Bags of embeddings


def _embedding_bag_backward(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    offset2bag: Tensor,
    bag_size: Tensor,
    maximum_indices: Tensor,
    num_weights: int,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Tensor | None,
    padding_idx: int = -1,
) -> Tensor:
    num_bags = grad.shape[0]
    zeros = grad.new_zeros((num_weights, grad.shape[1]))
    if mode == BAG_MAX:
        found = maximum_indices >= 0
        terms = torch.where(found, grad, torch.zeros_like(grad))
        return zeros.scatter_add(0, torch.where(found, maximum_indices, 0), terms)
    bags = bags_of(indices, offsets, num_bags)
    factors = bag_factors(indices, bags, num_bags, mode, padding_idx, grad)
    if per_sample_weights is not None:
        factors = factors * per_sample_weights
    if scale_grad_by_freq:
        factors = factors / uses_of(indices, num_weights, grad)[indices]
    return zeros.index_add(0, indices, grad[bags] * factors.unsqueeze(-1))


rule_by_formula(
    aten._embedding_bag_backward.default, _embedding_bag_backward, ("grad", "per_sample_weights")
)

# Attention


def _attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    attn_mask: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Math: S̄ = P ⊙ (ȳ vᵀ - rowsum(ȳ ⊙ y)), P = exp(S - logsumexp) (Dao et al. 2022, appendix B.4)."""
    if dropout_p:
        raise NotImplementedError(
            f"attention backward: got dropout_p={dropout_p}, expected 0: the kernel does not tell "
            "which weights it dropped."
        )
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = factor * (query @ key.transpose(-2, -1))
    if attn_mask is not None:
        scores = scores + attn_mask
    weights = (scores - logsumexp.unsqueeze(-1)).exp()
    if is_causal:
        weights = weights.tril()
    rows = (grad_out * out).sum(-1, keepdim=True)
    of_scores = factor * weights * (grad_out @ value.transpose(-2, -1) - rows)
    of_key = of_scores.transpose(-2, -1) @ query
    return of_scores @ key, of_key, weights.transpose(-2, -1) @ grad_out


rule_by_formula(
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    _attention_backward,
    ("grad_out", "query", "key", "value", "out", "logsumexp", "attn_mask"),
)
