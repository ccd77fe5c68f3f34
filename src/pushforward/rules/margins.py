"""Losses of many classes that compare scores: margins, and cross entropy with its linear layer inside."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.contract import Contract
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.sum import Sum
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.losses import MEAN, NONE
from pushforward.rules.registry import rule
from pushforward.rules.views import flat_gather

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


def _multi_margin_weight(
    self: Tensor,
    target: Tensor,
    p: float = 1,
    margin: float = 1,
    weight: Tensor | None = None,
    reduction: int = MEAN,
) -> AbstractLinearMap:
    assert weight is not None
    excess, counts = _excess(self, target, margin)
    terms = torch.where(counts, excess**p, torch.zeros_like(excess))
    slope = terms.sum(1, keepdim=True) * _class_weight(self, target, None)
    places = target.reshape(-1, 1)
    picked = flat_gather(tuple(weight.shape), tuple(places.shape), places, is_total=True)
    shape = tuple(target.shape) if reduction == NONE else ()
    return compose(picked, _reduced(slope, picked.out_shape, reduction, shape))


rule(aten.multi_margin_loss, _multi_margin, weight=_multi_margin_weight)

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


def _multilabel_map(
    self: Tensor, target: Tensor, is_target: Tensor, reduction: int
) -> AbstractLinearMap:
    slope = _multilabel_slope(self, target, is_target)
    shape = tuple(self.shape[:-1]) if reduction == NONE else ()
    return _reduced(slope, tuple(self.shape), reduction, shape)


def _multilabel_margin(
    self: Tensor, target: Tensor, reduction: int, *, out: tuple[Tensor, Tensor]
) -> tuple[AbstractLinearMap, None]:
    return _multilabel_map(self, target, out[1], reduction), None


rule(aten.multilabel_margin_loss_forward, _multilabel_margin)

# Cross entropy of a linear layer, which PyTorch computes chunk by chunk


class _Scores:
    """Slopes of the loss in the scores x Wᵀ + b of every sample, and the weights of the samples."""

    def __init__(
        self,
        x: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None,
        weight: Tensor | None,
        reduction: str,
        ignore_index: int,
    ) -> None:
        logits = torch.nn.functional.linear(x, linear_weight, linear_bias)
        ignored = target == ignore_index
        self.places = torch.where(ignored, torch.zeros_like(target), target)
        zero = logits.new_zeros(())
        chosen = logits.new_ones(()) if weight is None else weight[self.places]
        self.counts = torch.where(ignored, zero, logits.new_ones(()))
        self.share = torch.where(ignored, zero, chosen)
        self.total = self.share.sum() if reduction == "mean" else logits.new_ones(())
        picked = torch.nn.functional.one_hot(self.places, logits.shape[1]).to(logits.dtype)
        log_probs = logits.log_softmax(1)
        self.losses = -log_probs.gather(1, self.places.unsqueeze(1)).squeeze(1)
        self.slope = (log_probs.exp() - picked) * (self.share / self.total).unsqueeze(1)
        self.is_summed, self.is_mean = reduction != "none", reduction == "mean"

    def finish(self, linear_map: AbstractLinearMap) -> AbstractLinearMap:
        """Sum over the samples where the loss does."""
        if not self.is_summed:
            return linear_map
        return compose(linear_map, Sum(linear_map.out_shape, (), (0,)))

    def input_map(self, x: Tensor, linear_weight: Tensor) -> AbstractLinearMap:
        out_shape = (x.shape[0],)
        inner = Contract(tuple(x.shape), out_shape, "nf", "nf", "n", self.slope @ linear_weight)
        return self.finish(inner)

    def weight_map(self, x: Tensor, linear_weight: Tensor) -> AbstractLinearMap:
        shape = tuple(linear_weight.shape)
        if self.is_summed:
            return Contract(shape, (), "vf", "vf", "", self.slope.t() @ x)
        scores = (x.shape[0], shape[0])
        layer = Contract(shape, scores, "vf", "nf", "nv", x)
        return compose(layer, Contract(scores, scores[:1], "nv", "nv", "n", self.slope))

    def bias_map(self, bias: Tensor) -> AbstractLinearMap:
        samples = self.slope.shape[0]
        return self.finish(Contract(tuple(bias.shape), (samples,), "v", "nv", "n", self.slope))

    def class_weight_map(self, weight: Tensor) -> AbstractLinearMap:
        """Math: the mean Σ w l / Σ w moves by (l − mean) / Σ w."""
        picked = flat_gather(
            tuple(weight.shape), tuple(self.places.shape), self.places, is_total=True
        )
        mean = (self.share * self.losses).sum() / self.total
        slope = self.losses - mean if self.is_mean else self.losses
        scaled = Scale(picked.out_shape, picked.out_shape, slope * self.counts / self.total)
        return self.finish(compose(picked, scaled))


def _chunked(
    which: str,
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
) -> AbstractLinearMap:
    scores = _Scores(input, linear_weight, target, linear_bias, weight, reduction, ignore_index)
    match which:
        case "input":
            return scores.input_map(input, linear_weight)
        case "linear_weight":
            return scores.weight_map(input, linear_weight)
        case "linear_bias":
            assert linear_bias is not None
            return scores.bias_map(linear_bias)
    assert weight is not None
    return scores.class_weight_map(weight)


def _summed_chunks(which: str) -> Any:
    def partial(
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None,
        weight: Tensor | None,
        reduction: str,
        ignore_index: int,
        *options: Any,
    ) -> tuple[AbstractLinearMap, None, None, None]:
        first = (input, linear_weight, target, linear_bias, weight, reduction, ignore_index)
        return _chunked(which, *first), None, None, None  # the others are PyTorch's gradients

    return partial


def _separate_chunks(which: str) -> Any:
    def partial(
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None,
        weight: Tensor | None,
        ignore_index: int,
        *options: Any,
    ) -> AbstractLinearMap:
        first = (input, linear_weight, target, linear_bias, weight, "none", ignore_index)
        return _chunked(which, *first)

    return partial


def _declare_chunked(name: str, partial: Any) -> None:
    rule(
        getattr(torch.ops.torch_nn, name).default,
        partial("input"),
        partial("linear_weight"),
        None,
        partial("linear_bias"),
        partial("weight"),
    )


try:
    importlib.import_module("torch.nn.modules.linear_cross_entropy")  # which defines the operators
except ImportError:  # not every PyTorch has them
    pass
else:
    _declare_chunked("_linear_cross_entropy_batch_chunked", _summed_chunks)
    _declare_chunked("_linear_cross_entropy_batch_chunked_no_reduction", _separate_chunks)
