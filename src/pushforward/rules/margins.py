"""Losses of many classes that compare scores: margins, and cross entropy with its linear layer inside."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.sum import Sum
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.losses import MEAN, NONE
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten


def _matrix(x: Tensor) -> Tensor:
    """Return (samples, classes), a single sample as a row."""
    return x.reshape(-1, x.shape[-1]) if x.ndim else x.reshape(1, 1)


def _reduced(slope: Tensor, in_shape: Shape, reduction: int, out_shape: Shape) -> AbstractLinearMap:
    """Return the map of a loss with these slopes (samples, classes), summed over classes."""
    samples = slope.shape[0]
    if reduction == MEAN:
        slope = slope / max(samples, 1)
    axes = (1,) if reduction == NONE else (0, 1)
    shape = tuple(slope.shape)
    summed = Sum(shape, tuple(n for i, n in enumerate(shape) if i not in axes), axes)
    maps = [Reshape(in_shape, shape), Scale(shape, shape, slope), summed]
    return compose(*maps, Reshape(summed.out_shape, out_shape))


# Distance of every score from that of the right class


def _excess(x: Tensor, target: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return margin − x_y + x_j, and where it counts: positive, and j not the right class y."""
    rows, column = _matrix(x), target.reshape(-1, 1)
    excess = margin - rows.gather(1, column) + rows
    others = torch.arange(rows.shape[1], device=x.device) != column
    return excess, others & (excess > 0)


def _class_weight(x: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Return the factor of every sample: the weight of its class over the number of classes."""
    classes = max(_matrix(x).shape[1], 1)
    chosen = x.new_ones(()) if weight is None else weight[target.reshape(-1)].unsqueeze(1)
    return chosen / classes


def _multi_margin(
    self: Tensor,
    target: Tensor,
    p: float = 1,
    margin: float = 1,
    weight: Tensor | None = None,
    reduction: int = MEAN,
) -> AbstractLinearMap:
    slope = _multi_margin_slope(self, target, p, margin, weight)
    shape = tuple(target.shape) if reduction == NONE else ()
    return _reduced(slope, tuple(self.shape), reduction, shape)


def _multi_margin_slope(
    self: Tensor, target: Tensor, p: float, margin: float, weight: Tensor | None
) -> Tensor:
    excess, counts = _excess(self, target, margin)
    power = torch.ones_like(excess) if p == 1 else p * excess
    slope = torch.where(counts, power, torch.zeros_like(power))
    slope = slope * _class_weight(self, target, weight)
    return slope.scatter_add(1, target.reshape(-1, 1), -slope.sum(1, keepdim=True))


rule(aten.multi_margin_loss, _multi_margin)

# Distance of every score from those of several right classes


def _multilabel_slope(self: Tensor, target: Tensor, is_target: Tensor) -> Tensor:
    rows, labels = _matrix(self), _matrix(target)
    valid = (labels >= 0).to(torch.uint8).cumprod(1) > 0  # a row ends at its first -1
    places = torch.where(valid, labels, torch.zeros_like(labels))
    excess = 1 - rows.gather(1, places).unsqueeze(2) + rows.unsqueeze(1)
    others = _matrix(is_target).unsqueeze(1) == 0
    counts = (valid.unsqueeze(2) & others & (excess > 0)).to(self.dtype)
    counts = counts / max(rows.shape[1], 1)
    return counts.sum(1).scatter_add(1, places, -counts.sum(2))


@with_output
def _multilabel_margin(
    self: Tensor, target: Tensor, reduction: int, *, out: tuple[Tensor, Tensor]
) -> tuple[AbstractLinearMap, None]:
    slope = _multilabel_slope(self, target, out[1])
    shape = tuple(self.shape[:-1]) if reduction == NONE else ()
    return _reduced(slope, tuple(self.shape), reduction, shape), None


rule(aten.multilabel_margin_loss_forward, _multilabel_margin)
