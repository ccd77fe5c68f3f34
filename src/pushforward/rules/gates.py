"""Smooth gates: silu, gelu, mish, glu."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pushforward.linear.axes import kept_axes, normalize_axis
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import elementwise, rule

aten = torch.ops.aten

_TANH_CUBIC = 0.044715  # of Hendrycks and Gimpel, Gaussian error linear units, 2016, section 2

ONEDNN_PAYS = 4096  # numbers: from 8,000 on it is faster than two rows elsewhere


def _silu(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    slope: Tensor = aten.sigmoid_backward.default(x, gate)  # x σ'
    return gate + slope


def _gelu(x: Tensor, approximate: str) -> Tensor:
    if approximate == "none":
        density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density
    gate, slope, _ = _gelu_gate(x)
    return 0.5 * (1 + gate) + 0.5 * x * (1 - gate * gate) * slope


def _gelu_slope(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Return the derivative by PyTorch's kernels.

    oneDNN's takes 11 µs to set up. It is given whole tensors alone, and does not broadcast: a few numbers are viewed
    as two equal rows, which need not go there and take 4 µs.
    """
    # As many axes as x has: vmap takes one without axes for a number, and fails.
    rows, one = x, torch.ones((1,) * x.ndim, dtype=x.dtype, device=x.device)
    by_onednn = x.dtype != torch.float64 and approximate == "none"
    if by_onednn and x.numel() > ONEDNN_PAYS:
        one = torch.ones_like(x)
    elif by_onednn:
        rows, one = x.expand(2, *x.shape), one.expand(2, *x.shape)
    slope: Tensor = aten.gelu_backward.default(one, rows, approximate=approximate)
    return slope if rows is x else slope[0]


def _gelu_twice(x: Tensor, approximate: str) -> Tensor:
    if approximate == "none":
        return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi) * (2 - x * x)
    gate, slope, curvature = _gelu_gate(x)
    steep = 1 - gate * gate
    return steep * (slope + 0.5 * x * (curvature - 2 * gate * slope * slope))


def _gelu_gate(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return tanh u, u' and u'' for u = √(2/π) (x + c x³)."""
    unit = math.sqrt(2 / math.pi)
    square = x * x
    gate = torch.tanh(unit * x * (1 + _TANH_CUBIC * square))
    return gate, unit * (1 + 3 * _TANH_CUBIC * square), unit * 6 * _TANH_CUBIC * x


def _mish(x: Tensor) -> Tensor:
    gate = torch.tanh(torch.nn.functional.softplus(x))
    slope: Tensor = aten.tanh_backward.default(torch.nn.functional.silu(x), gate)
    return gate + slope


elementwise(aten.silu, _silu)
elementwise(aten.gelu, _gelu_slope)
elementwise(
    aten.gelu_backward,
    lambda y_bar, x, *, approximate="none": _gelu(x, approximate),
    lambda y_bar, x, *, approximate="none": y_bar * _gelu_twice(x, approximate),
)
elementwise(aten.mish, _mish)


def _glu(x: Tensor, dim: int = -1) -> AbstractLinearMap:
    # y = a σ(b) for the two halves of x along the axis.
    axis = normalize_axis(dim, x.ndim)
    a, b = x.chunk(2, axis)
    gate = torch.sigmoid(b)
    slope = a * gate * (1 - gate)

    def push(tangent: Tensor) -> Tensor:
        a_dot, b_dot = tangent.chunk(2, axis + 1)
        return gate * a_dot + slope * b_dot

    def pull(cotangent: Tensor) -> Tensor:
        return torch.cat([gate * cotangent, slope * cotangent], axis + 1)

    return General(tuple(x.shape), tuple(a.shape), push, pull, kept_axes(x.ndim, axis))


def _glu_twice(y_bar: Tensor, x: Tensor, dim: int) -> AbstractLinearMap:
    axis = normalize_axis(dim, x.ndim)
    a, b = x.chunk(2, axis)
    gate = torch.sigmoid(b)
    mixed = y_bar * gate * (1 - gate)
    second = a * mixed * (1 - 2 * gate)

    def apply(tangent: Tensor) -> Tensor:
        a_dot, b_dot = tangent.chunk(2, axis + 1)
        return torch.cat([mixed * b_dot, mixed * a_dot + second * b_dot], axis + 1)

    return General(tuple(x.shape), tuple(x.shape), apply, apply, kept_axes(x.ndim, axis))


rule(aten.glu, _glu)
rule(aten.glu_backward, lambda y_bar, x, dim: transpose(_glu(x, dim)), _glu_twice)
