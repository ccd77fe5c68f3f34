"""Backward operators of PyTorch's own, which functions that call autograd inside are made of.

In the cotangent they are the forward operator's map, transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.sum import Sum
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules import indexing, losses, padding
from pushforward.rules.convolution import convolution_map, convolution_weight_map
from pushforward.rules.registry import no_map, rule

aten = torch.ops.aten

Triple = tuple[AbstractLinearMap | None, AbstractLinearMap | None, AbstractLinearMap | None]

# Convolution: ⟨ȳ, conv(x, w)⟩ is linear in each of the three; its slope in x is the convolution
# that exchanges x and y.


def _exchanged(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> AbstractLinearMap:
    """Return the map from ``weight`` to the cotangent of ``input``."""
    space = range(input.ndim - 2)

    def at(sizes: Sequence[int], i: int) -> int:
        return sizes[i] if len(sizes) > 1 else sizes[0]

    def span(i: int) -> int:  # of the kernel
        return at(dilation, i) * (weight.shape[2 + i] - 1) + 1

    small, large = (input, grad_output) if transposed else (grad_output, input)
    extra = [
        large.shape[2 + i]
        - ((small.shape[2 + i] - 1) * at(stride, i) - 2 * at(padding, i) + span(i))
        for i in space
    ]
    shape = tuple(input.shape)
    if transposed:  # what lies beyond the last whole stride gives one position more
        more = [extra[i] // at(stride, i) for i in space]
        shape = (*shape[:2], *(n + m for n, m in zip(shape[2:], more, strict=True)))
        extra = [0] * len(extra)
    whole = input.new_empty(()).expand(shape)
    options = (stride, padding, dilation, not transposed, extra, groups)
    linear_map = convolution_weight_map(grad_output, weight, None, *options, out=whole)
    if shape != tuple(input.shape):
        linear_map = compose(linear_map, indexing.cropped_map(shape, tuple(input.shape)))
    return linear_map


def _convolution_cotangent(
    grad_output: Tensor, input: Tensor, weight: Tensor, bias_sizes: Any, *options: Any
) -> Triple:
    *geometry, output_mask = options
    y_shape = tuple(grad_output.shape)
    axes = tuple(i for i in range(grad_output.ndim) if i != 1)
    makers: list[Callable[[], AbstractLinearMap]] = [
        lambda: transpose(convolution_map(input, weight, None, *geometry, out=grad_output)),
        lambda: transpose(convolution_weight_map(input, weight, None, *geometry, out=grad_output)),
        lambda: Sum(y_shape, y_shape[1:2], axes),
    ]
    first, second, third = (
        make() if wanted else None for make, wanted in zip(makers, output_mask, strict=True)
    )
    return first, second, third


def _convolution_primal(
    grad_output: Tensor, input: Tensor, weight: Tensor, *options: Any
) -> Triple:
    *_, output_mask = options
    if not output_mask[1]:
        return None, None, None
    return None, transpose(_exchanged(grad_output, input, weight, *options)), None


def _convolution_kernel(
    grad_output: Tensor, input: Tensor, weight: Tensor, *options: Any
) -> Triple:
    *_, output_mask = options
    if not output_mask[0]:
        return None, None, None
    return _exchanged(grad_output, input, weight, *options), None, None


rule(aten.convolution_backward, _convolution_cotangent, _convolution_primal, _convolution_kernel)

# Losses of prediction minus target


def _scaled(reduction: int, x: Tensor, coef: Tensor) -> AbstractLinearMap:
    """Return the map that multiplies by the slope of each element, over their count in a mean."""
    if reduction == losses.MEAN and coef.numel():
        coef = coef / coef.numel()
    return Scale(tuple(x.shape), tuple(coef.shape), coef)


def _declare_symmetric(
    operator: Any, slope: Callable[..., Tensor], curvature: Callable[..., Tensor]
) -> None:
    def of_cotangent(
        grad_output: Tensor, self: Tensor, target: Tensor, reduction: int, *options: float
    ) -> AbstractLinearMap:
        return _scaled(reduction, grad_output, slope(self - target, *options))

    def of_prediction(
        grad_output: Tensor, self: Tensor, target: Tensor, reduction: int, *options: float
    ) -> AbstractLinearMap:
        return _scaled(reduction, self, curvature(self - target, *options) * grad_output)

    def of_target(
        grad_output: Tensor, self: Tensor, target: Tensor, reduction: int, *options: float
    ) -> AbstractLinearMap:
        return _scaled(reduction, target, -curvature(self - target, *options) * grad_output)

    rule(operator, of_cotangent, of_prediction, of_target)


def _inside(difference: Tensor, bound: float, value: float) -> Tensor:
    return torch.where(difference.abs() < bound, value, 0.0).to(difference.dtype)


_declare_symmetric(
    aten.mse_loss_backward.default,
    lambda difference: 2 * difference,
    lambda difference: torch.full_like(difference, 2.0),
)
_declare_symmetric(
    aten.smooth_l1_loss_backward.default,
    losses.smooth_l1_slope,
    lambda difference, beta: _inside(difference, beta, 1 / beta if beta else 0.0),
)
_declare_symmetric(
    aten.huber_loss_backward.default,
    losses.huber_slope,
    lambda difference, delta: _inside(difference, delta, 1.0),
)

# Paddings and writes


def _declare_padding(operator: Any, forward: Callable[..., AbstractLinearMap]) -> None:
    rule(
        operator,
        lambda grad_output, self, padding: transpose(forward(self, padding)),
        no_map,
        like=1,
    )


for _num_space in (1, 2, 3):
    _declare_padding(
        getattr(aten, f"reflection_pad{_num_space}d_backward").default, padding.reflection_pad_map
    )
    _declare_padding(
        getattr(aten, f"replication_pad{_num_space}d_backward").default, padding.replication_pad_map
    )


def _masked_scatter_backward(
    grad_output: Tensor, mask: Tensor, sizes: Sequence[int]
) -> AbstractLinearMap:
    source = grad_output.new_empty(()).expand(tuple(sizes))
    return transpose(indexing.masked_scatter_map(tuple(grad_output.shape), mask, source))


rule(aten.masked_scatter_backward, _masked_scatter_backward)
