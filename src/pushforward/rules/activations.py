"""Rules of the activation functions, and of the kernels that PyTorch's autograd calls for them.

At kinks the derivative is PyTorch's: that of the branch which its backward kernel takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.kinds.mask import Mask
from pushforward.linear.kinds.pointwise import Pointwise
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.elementwise import conj, masked_scale
from pushforward.rules.registry import elementwise, no_map, rule, with_output

aten = torch.ops.aten


def _mask(x: Tensor, mask: Tensor) -> Mask:
    return Mask(tuple(x.shape), tuple(x.shape), mask)


def _scale(x: Tensor, coef: Tensor | float) -> Scale:
    return Scale(tuple(x.shape), tuple(x.shape), coef)


def _by_kernel(
    operator: Any,
    kernel: Callable[..., Tensor],
    coef: Callable[..., Tensor | float] | None = None,
    *,
    takes_input: bool = True,
) -> None:
    """Declare an activation by PyTorch's own kernel for the product of its derivative with a tangent.

    Only where that kernel has a derivative of its own.

    Args:
        operator: As in `rule`.
        kernel: Takes the tangent, the operator's output, and the operator's arguments.
        coef: The derivative of complex numbers, from output and arguments, where there are any.
        takes_input: Whether the kernel needs the input, beside the output.
    """

    @with_output
    def maps(x: Tensor, *args: Any, out: Tensor, **kwargs: Any) -> AbstractLinearMap:
        if x.is_complex() and coef is not None:
            return _scale(x, coef(out, x, *args, **kwargs))
        shape = tuple(x.shape)
        if takes_input:
            # What in-place operators did not save is missed here, and not in the sweep
            x = x.reshape(shape)
        return Pointwise(shape, shape, lambda x_dot: kernel(x_dot, out, x, *args, **kwargs))

    rule(operator, maps)


# Piecewise linear


def _leaky(x: Tensor, slope: float) -> Tensor:
    return torch.where(x > 0, 1.0, torch.full_like(x, slope))


def _hardswish(x: Tensor) -> Tensor:
    return torch.where(x <= -3, 0, torch.where(x < 3, x / 3 + 0.5, 1))


def _below(x: Tensor, coef: Tensor) -> Tensor:
    """Return ``coef`` where x is not positive, 1 elsewhere."""
    return torch.where(x > 0, 1, coef)


_by_kernel(
    aten.relu,
    lambda x_dot, y, x: aten.threshold_backward.default(x_dot, y, 0),
    takes_input=False,
)
rule(aten.threshold, lambda x, threshold, value: _mask(x, ~(x <= threshold)))
rule(aten.threshold_backward, lambda y_bar, x, threshold: _mask(y_bar, ~(x <= threshold)), no_map)
_by_kernel(
    aten.leaky_relu,
    lambda x_dot, y, x, negative_slope=0.01: aten.leaky_relu_backward.default(
        x_dot, x, negative_slope, False
    ),
)
elementwise(
    aten.leaky_relu_backward,
    lambda y_bar, x, negative_slope, self_is_result: _leaky(x, negative_slope),
    no_map,
)
_by_kernel(
    aten.hardtanh,
    lambda x_dot, y, x, min_val=-1, max_val=1: aten.hardtanh_backward.default(
        x_dot, x, min_val, max_val
    ),
)
rule(
    aten.hardtanh_backward,
    lambda y_bar, x, min_val, max_val: _mask(y_bar, (x > min_val) & (x < max_val)),
    no_map,
)
rule(aten.hardsigmoid, lambda x: masked_scale(x, x, (x > -3) & (x < 3), 1 / 6))
_by_kernel(aten.hardswish, lambda x_dot, y, x: aten.hardswish_backward.default(x_dot, x))
rule(
    aten.hardswish_backward,
    lambda y_bar, x: _scale(y_bar, _hardswish(x)),
    with_output(lambda y_bar, x, *, out: masked_scale(x, out, (x > -3) & (x < 3), y_bar / 3)),
)


def _declare_shrinkage(operator: Any, backward: Any) -> None:
    _by_kernel(operator, lambda x_dot, y, x, lambd=0.5: backward.default(x_dot, x, lambd))
    rule(backward, lambda y_bar, x, lambd: _mask(y_bar, x.abs() > lambd), no_map)


_declare_shrinkage(aten.softshrink, aten.softshrink_backward)
_declare_shrinkage(aten.hardshrink, aten.hardshrink_backward)
rule(
    aten._prelu_kernel,
    lambda x, weight: _scale(x, _below(x, weight)),
    lambda x, weight: masked_scale(weight, x, ~(x > 0), x),
)
rule(
    aten._prelu_kernel_backward,
    lambda y_bar, x, weight: (
        _scale(y_bar, _below(x, weight)),
        masked_scale(y_bar, x, ~(x > 0), x),
    ),
    lambda y_bar, x, weight: (None, masked_scale(x, x, ~(x > 0), y_bar)),
    lambda y_bar, x, weight: (masked_scale(weight, x, ~(x > 0), y_bar), None),
)


def _rrelu_coef(x: Tensor, noise: Tensor, lower: float, upper: float, training: bool) -> Tensor:
    # The threshold of PyTorch's kernel, below which the slope counts as fixed.
    if training and upper - lower > 1e-6:
        return noise
    return _leaky(x, (lower + upper) / 2)


elementwise(
    aten.rrelu_with_noise.default,
    lambda x, noise, lower=1 / 8, upper=1 / 3, training=False, generator=None: _rrelu_coef(
        x, noise, lower, upper, training
    ),
)
elementwise(
    aten.rrelu_with_noise_.default,
    with_output(
        lambda x, noise, lower=1 / 8, upper=1 / 3, training=False, generator=None, *, out: (
            _rrelu_coef(out, noise, lower, upper, training)
        )
    ),
)
elementwise(
    aten.rrelu_with_noise_backward,
    lambda y_bar, x, noise, lower, upper, training, self_is_result: _rrelu_coef(
        x, noise, lower, upper, training
    ),
    no_map,
)

# Exponential linear units


def _elu(x: Tensor, alpha: float, scale: float, input_scale: float) -> Tensor:
    # Of the exponential's argument the positive part is cut off, lest it overflow unused.
    negative = torch.exp(torch.where(x > 0, 0, x) * input_scale)
    return torch.where(x > 0, scale, scale * alpha * input_scale * negative)


def _elu_backward(
    y_bar: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor
) -> Tensor:
    if is_result:
        return torch.where(x > 0, scale, input_scale * (x + scale * alpha))
    return _elu(x, alpha, scale, input_scale)


def _elu_twice(
    y_bar: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor
) -> Tensor:
    if is_result:
        return torch.where(x > 0, 0, y_bar * input_scale)
    slope = _elu(x, alpha, scale, input_scale)
    return torch.where(x > 0, 0, y_bar * slope * input_scale)


_by_kernel(
    aten.elu,
    lambda x_dot, y, x, alpha=1, scale=1, input_scale=1: aten.elu_backward.default(
        x_dot, alpha, scale, input_scale, False, x
    ),
)
_by_kernel(
    aten.celu,
    lambda x_dot, y, x, alpha=1.0: aten.elu_backward.default(x_dot, alpha, 1, 1 / alpha, False, x),
)
# In-place, autograd saves the output alone.
_by_kernel(
    aten.elu_.default,
    lambda x_dot, y, x, alpha=1, scale=1, input_scale=1: aten.elu_backward.default(
        x_dot, alpha, scale, input_scale, True, y
    ),
    takes_input=False,
)
_by_kernel(
    aten.celu_.default,
    lambda x_dot, y, x, alpha=1.0: aten.elu_backward.default(x_dot, alpha, 1, 1 / alpha, True, y),
    takes_input=False,
)
elementwise(aten.elu_backward, _elu_backward, None, None, None, None, _elu_twice)

# Sigmoids


_by_kernel(
    aten.sigmoid,
    lambda x_dot, y, x: aten.sigmoid_backward.default(x_dot, y),
    lambda y, x: y * (1 - y),
    takes_input=False,
)
_by_kernel(
    aten.tanh,
    lambda x_dot, y, x: aten.tanh_backward.default(x_dot, y),
    lambda y, x: 1 - y.square(),
    takes_input=False,
)
rule(
    aten.sigmoid_backward,
    lambda y_bar, y: _scale(y_bar, conj(y * (1 - y))),
    lambda y_bar, y: Scale(
        tuple(y.shape), tuple(y.shape), y_bar * conj(1 - 2 * y), conjugate=y.is_complex()
    ),
)
rule(
    aten.tanh_backward,
    lambda y_bar, y: _scale(y_bar, conj(1 - y * y)),
    lambda y_bar, y: Scale(
        tuple(y.shape), tuple(y.shape), -2 * y_bar * conj(y), conjugate=y.is_complex()
    ),
)
rule(aten.log_sigmoid_forward, lambda x: (_scale(x, torch.sigmoid(-x)), None))
elementwise(
    aten.log_sigmoid_backward,
    lambda y_bar, x, buffer: torch.sigmoid(-x),
    lambda y_bar, x, buffer: -y_bar * torch.sigmoid(x) * torch.sigmoid(-x),
)


def _softplus(x: Tensor, beta: float, threshold: float) -> Tensor:
    return torch.where(x * beta > threshold, 1, torch.sigmoid(x * beta))


def _softplus_twice(y_bar: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    slope = torch.sigmoid(x * beta)
    return torch.where(x * beta > threshold, 0, y_bar * beta * slope * (1 - slope))


_by_kernel(
    aten.softplus,
    lambda x_dot, y, x, beta=1, threshold=20: aten.softplus_backward.default(
        x_dot, x, beta, threshold
    ),
)
elementwise(
    aten.softplus_backward,
    lambda y_bar, x, beta, threshold: _softplus(x, beta, threshold),
    _softplus_twice,
)

# Dropout


@with_output
def _dropout(x: Tensor, p: float, train: bool | None, *, out: Any) -> tuple[Scale, None]:
    if train is False:
        return _scale(x, 1), None
    return _scale(x, out[1] * (0.0 if p == 1 else 1 / (1 - p))), None


rule(aten.native_dropout, _dropout)
elementwise(aten.native_dropout_backward, lambda y_bar, mask, scale: mask * scale)
