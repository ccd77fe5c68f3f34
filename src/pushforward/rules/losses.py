"""Losses: an elementwise function of prediction and target, then a reduction."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.kinds.composed import Composed, compose
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.sum import Sum
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import no_map, rule, with_output

aten = torch.ops.aten

NONE, MEAN, SUM = 0, 1, 2  # at::Reduction


def _reduced(x: Tensor, coef: Tensor, reduction: int) -> AbstractLinearMap:
    """Return the map of a loss from its elementwise slope: scaled, then summed or averaged."""
    shape = tuple(coef.shape)
    if reduction == NONE:
        return Scale(tuple(x.shape), shape, coef)
    if reduction == MEAN:
        coef = coef / math.prod(shape) if coef.numel() else coef
    return compose(Scale(tuple(x.shape), shape, coef), Sum(shape, (), tuple(range(len(shape)))))


def _difference(x: Tensor, target: Tensor) -> Tensor:
    return x - (target.to(x.dtype) if target.dtype is torch.bool else target)


def _symmetric(slope: Callable[..., Tensor]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the partials of a loss of prediction minus target, from its slope there."""

    def of_prediction(
        self: Tensor, target: Tensor, reduction: int = MEAN, *options: float, **named: float
    ) -> AbstractLinearMap:
        return _reduced(self, slope(_difference(self, target), *options, **named), reduction)

    def of_target(
        self: Tensor, target: Tensor, reduction: int = MEAN, *options: float, **named: float
    ) -> AbstractLinearMap:
        return _reduced(target, -slope(_difference(self, target), *options, **named), reduction)

    return of_prediction, of_target


# Regression


def smooth_l1_slope(difference: Tensor, beta: float = 1.0) -> Tensor:
    """Return the slope of the loss: linear within ``beta``, the sign beyond; nan at nan, whose sign is 0."""
    if beta == 0:
        return difference.sgn()
    return torch.where(difference.abs() >= beta, difference.sgn(), difference / beta)


def huber_slope(difference: Tensor, delta: float = 1.0) -> Tensor:
    """Return the slope of the loss: linear up to ``delta``, constant beyond; nan at nan, whose sign is 0."""
    return torch.where(difference.abs() > delta, difference.sgn() * delta, difference)


rule(aten.mse_loss, *_symmetric(lambda difference: 2 * difference))
rule(aten.smooth_l1_loss, *_symmetric(smooth_l1_slope))
rule(aten.huber_loss, *_symmetric(huber_slope))

# Two classes


def _weighted(coef: Tensor, weight: Tensor | None) -> Tensor:
    return coef if weight is None else coef * weight


def _cross_entropy_prediction(
    self: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = MEAN
) -> AbstractLinearMap:
    """Math: -(t/x - (1 - t)/(1 - x)); x(1 - x) is held above 1e-12, as PyTorch does."""
    coef = (self - target) / (self * (1 - self)).clamp(min=1e-12)
    return _reduced(self, _weighted(coef, weight), reduction)


def _cross_entropy_target(
    self: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = MEAN
) -> AbstractLinearMap:
    """Math: log(1 - x) - log x; the logarithms are held above -100, as PyTorch does."""
    coef = torch.log1p(-self).clamp(min=-100) - torch.log(self).clamp(min=-100)
    return _reduced(target, _weighted(coef, weight), reduction)


rule(aten.binary_cross_entropy, _cross_entropy_prediction, _cross_entropy_target)


def _logits_slope(self: Tensor, target: Tensor, pos_weight: Tensor | None) -> Tensor:
    """Return the slope of -(p t log σ(x) + (1 - t) log σ(-x)), p the positive weight."""
    if pos_weight is None:
        return self.sigmoid() - target
    positive = pos_weight * target
    return (positive + 1 - target) * self.sigmoid() - positive


def _logits(
    self: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = MEAN,
) -> AbstractLinearMap:
    coef = _logits_slope(self, target, pos_weight)
    return _reduced(self, _weighted(coef, weight), reduction)


def _logits_target(
    self: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = MEAN,
) -> AbstractLinearMap:
    right, wrong = _log_sigmoid(self), _log_sigmoid(-self)
    coef = wrong - (right if pos_weight is None else pos_weight * right)
    return _reduced(target, _weighted(coef, weight), reduction)


def _log_sigmoid(x: Tensor) -> Tensor:
    return torch.minimum(x, torch.zeros_like(x)) - torch.log1p(torch.exp(-x.abs()))


rule(aten.binary_cross_entropy_with_logits, _logits, _logits_target)
rule(
    aten.soft_margin_loss,
    lambda self, target, reduction=MEAN: _reduced(
        self, -target * torch.sigmoid(-target * self), reduction
    ),
)


def _soft_margin_twice(
    grad_output: Tensor, self: Tensor, target: Tensor, reduction: int
) -> AbstractLinearMap:
    gate = torch.sigmoid(-target * self)
    coef = grad_output * target * target * gate * (1 - gate)
    return Scale(tuple(self.shape), tuple(self.shape), _mean_of(coef, reduction))


def _mean_of(coef: Tensor, reduction: int) -> Tensor:
    return coef / coef.numel() if reduction == MEAN and coef.numel() else coef


rule(
    aten.soft_margin_loss_backward,
    lambda grad_output, self, target, reduction: Scale(
        tuple(grad_output.shape),
        tuple(self.shape),
        _mean_of(-target * torch.sigmoid(-target * self), reduction),
    ),
    _soft_margin_twice,
)

# Many classes: the loss picks one log-probability of each sample


def _nll_picked(
    self: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return the class picked for each sample, and minus its weight; 0 where it is ignored."""
    ignored = target == ignore_index
    places = target.masked_fill(ignored, 0)
    if weight is None:
        return places, ignored.to(self.dtype) - 1
    return places, -weight[places].masked_fill(ignored, 0)


def _nll_map(
    self: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    axis: int,
    pull_at_once: Callable[[Tensor, int], Tensor] | None,
    total: Tensor | None,
) -> AbstractLinearMap:
    """Return the map of a loss; ``pull_at_once`` pulls one cotangent through a reduction, ``total`` weighs all."""
    in_shape, out_shape = tuple(self.shape), tuple(target.shape)

    def picked(seeds: Tensor) -> tuple[Tensor, Tensor]:
        places, coef = _nll_picked(self, target, weight, ignore_index)
        places = places.unsqueeze(axis)
        return places.expand(len(seeds), *places.shape), coef

    def push(seeds: Tensor) -> Tensor:
        index, coef = picked(seeds)
        return seeds.gather(axis + 1, index).squeeze(axis + 1) * coef

    def pull(seeds: Tensor) -> Tensor:
        if pull_at_once is not None and len(seeds) == 1:
            return pull_at_once(seeds[0], NONE)[None]
        index, coef = picked(seeds)
        zeros = seeds.new_zeros((len(seeds), *in_shape))
        return zeros.scatter(axis + 1, index, (seeds * coef).unsqueeze(axis + 1))

    kept = [i for i in range(self.ndim) if i != axis]
    pick = General(in_shape, out_shape, push, pull, tuple((i, j) for j, i in enumerate(kept)))
    if reduction == NONE:
        return pick
    added: AbstractLinearMap = Sum(out_shape, (), tuple(range(len(out_shape))))
    if reduction == MEAN:
        if total is None:
            total = -_nll_picked(self, target, weight, ignore_index)[1].sum()
        added = compose(added, Scale((), (), total.reciprocal()))
    if pull_at_once is None:
        return compose(pick, added)
    pull_loss = pull_at_once  # not None
    return Composed(in_shape, (), pick, added, lambda cotangent: pull_loss(cotangent, reduction))


def _nll_forward(backward: Any, has_space: bool) -> Callable[..., tuple[AbstractLinearMap, None]]:
    @with_output
    def of_input(
        self: Tensor,
        target: Tensor,
        weight: Tensor | None,
        reduction: int,
        ignore_index: int,
        *,
        out: Any,
    ) -> tuple[AbstractLinearMap, None]:
        def pull(cotangent: Tensor, reduction: int) -> Tensor:
            given = (self, target, weight, reduction, ignore_index, out[1])
            pulled: Tensor = backward(cotangent, *given)
            return pulled

        axis = 1 if has_space else self.ndim - 1
        given = (self, target, weight, reduction, ignore_index, axis)
        return _nll_map(*given, pull, out[1]), None

    return of_input


def _nll_backward(has_space: bool) -> Callable[..., AbstractLinearMap]:
    def of_cotangent(
        grad_output: Tensor,
        self: Tensor,
        target: Tensor,
        weight: Tensor | None,
        reduction: int,
        ignore_index: int,
        total_weight: Tensor,
    ) -> AbstractLinearMap:
        axis = 1 if has_space else self.ndim - 1
        return transpose(_nll_map(self, target, weight, reduction, ignore_index, axis, None, None))

    return of_cotangent


for _forward, _backward, _has_space in (
    (aten.nll_loss_forward, aten.nll_loss_backward, False),
    (aten.nll_loss2d_forward, aten.nll_loss2d_backward, True),
):
    rule(_forward, _nll_forward(_backward.default, _has_space))
    rule(_backward, _nll_backward(_has_space), no_map, like=1)
