"""Rules of elementwise operators: arithmetic, powers, exponentials, trigonometry, special ones.

Coefficients of complex arguments are holomorphic derivatives; the engine takes the real part where
the output is real. Conventions at kinks and at isolated singularities are PyTorch's.
"""

from __future__ import annotations

import cmath
import math
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import kept_axes
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.mask import Mask
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import elementwise, no_map, rule, with_output

aten = torch.ops.aten

Number = complex  # also float and int


def mask_map(x: Any, out: Tensor, mask: Tensor) -> Mask:
    """Return the map of an argument ``x`` that is the output where ``mask`` says."""
    return Mask(tuple(x.shape), tuple(out.shape), mask)


def conj(x: Tensor) -> Tensor:
    """Return the conjugate; ``x`` itself where it is real."""
    return torch.conj_physical(x) if x.is_complex() else x


def masked_scale(x: Any, out: Tensor, mask: Tensor, coef: Tensor | float) -> AbstractLinearMap:
    """Return the map that scales where ``mask`` says, and gives zeros elsewhere, whatever comes in."""
    shape = tuple(out.shape)
    return compose(Scale(tuple(x.shape), shape, coef), Mask(shape, shape, mask))


def _like(value: Any, x: Tensor) -> Tensor:
    """Return ``value`` as a tensor in which ``x`` is exact: a number becomes a 0-d one.

    The inverse of an integer would have the default dtype, and that of a float32 be too coarse beside a float64.
    """
    if isinstance(value, Tensor):
        return value.to(torch.promote_types(value.dtype, x.dtype))
    return torch.full((), value, dtype=x.dtype, device=x.device)


# Arithmetic


def _inverse(y: Any, x: Any) -> Any:
    if isinstance(y, Tensor):
        return _like(y, x).reciprocal()
    if y == 0:
        return math.nan if isinstance(y, complex) else math.copysign(math.inf, y)
    return 1 / y


elementwise(aten.neg, lambda x: -1)
elementwise(aten._neg_view, lambda x: -1)
elementwise(aten._neg_view_copy, lambda x: -1)
elementwise(aten.add, lambda x, y, alpha=1: 1, lambda x, y, alpha=1: alpha)
elementwise(aten.sub, lambda x, y, alpha=1: 1, lambda x, y, alpha=1: -alpha)
elementwise(aten.rsub, lambda x, y, alpha=1: -alpha, lambda x, y, alpha=1: 1)
elementwise(aten.mul, lambda x, y: y, lambda x, y: x)
elementwise(
    aten.div,
    lambda x, y, rounding_mode=None: None if rounding_mode else _inverse(y, x),
    # Not by the output, which is not saved.
    lambda x, y, rounding_mode=None: None if rounding_mode else -(x / y) / y,
)
elementwise(aten.reciprocal, with_output(lambda x, *, out: -out * out))
elementwise(
    aten.fmod,
    lambda x, y: 1,
    lambda x, y: -torch.div(_like(x, y), y, rounding_mode="trunc"),
)
elementwise(
    aten.remainder,
    lambda x, y: 1,
    lambda x, y: -torch.div(_like(x, y), y, rounding_mode="floor"),
)
elementwise(aten.frac, lambda x: 1)
elementwise(
    aten.lerp,
    lambda x, end, weight: 1 - weight,
    lambda x, end, weight: weight,
    lambda x, end, weight: end - x,
)
elementwise(
    aten.addcmul,
    lambda x, a, b, *, value=1: 1,
    lambda x, a, b, *, value=1: b if value == 1 else value * b,
    lambda x, a, b, *, value=1: a if value == 1 else value * a,
)
elementwise(
    aten.addcdiv,
    lambda x, a, b, *, value=1: 1,
    lambda x, a, b, *, value=1: value / b,
    lambda x, a, b, *, value=1: -value * a / (b * b),
)
elementwise(aten.deg2rad, lambda x: math.pi / 180)
elementwise(aten.rad2deg, lambda x: 180 / math.pi)

# Powers and roots


@with_output
def _pow_base(x: Tensor, y: Tensor, *, out: Tensor) -> AbstractLinearMap:
    # y xʸ⁻¹, but nothing at y = 0. Where 1/x is not finite there, 0¹ stands for x⁻¹, so that neither the
    # value nor its derivatives are NaN.
    base = _like(x, y)
    is_flat = y == 0
    is_singular = is_flat & ~(base.abs() >= torch.finfo(base.dtype).tiny)
    power = torch.pow(torch.where(is_singular, 0, base), torch.where(is_singular, 1, y - 1))
    return masked_scale(x, out, torch.logical_not(is_flat), y * power)


def _pow_base_scalar(x: Tensor, y: Number) -> Tensor | Number | None:
    if y == 0:
        return None
    if y == 1:
        return 1.0
    return x + x if y == 2 else y * x.pow(y - 1)


@with_output
def _pow_exponent(x: Any, y: Tensor, *, out: Tensor) -> Tensor:
    # xʸ log x, but 0 where x = 0 and Re y ≥ 0.
    if isinstance(x, Tensor):
        x = _like(x, y)
        at_zero = (x == 0) & (torch.real(y) >= 0)
        return out * torch.where(at_zero, 1, x).log()
    if x == 0:
        return torch.where(torch.real(y) >= 0, torch.zeros_like(out), -math.inf)
    if isinstance(x, complex):
        return out * cmath.log(x)
    return out * (math.log(x) if x > 0 else math.nan)


elementwise(aten.pow.Tensor_Tensor, _pow_base, _pow_exponent)
elementwise(aten.pow.Tensor_Scalar, _pow_base_scalar)
elementwise(aten.pow.Scalar, None, _pow_exponent)
elementwise(aten.sqrt, with_output(lambda x, *, out: 0.5 / out))
elementwise(aten.rsqrt, with_output(lambda x, *, out: -0.5 * out * out * out))
elementwise(
    aten.hypot, with_output(lambda x, y, *, out: x / out), with_output(lambda x, y, *, out: y / out)
)

# Exponentials and logarithms


def _log(x: Any, y: Any) -> Tensor:
    """Return log y, but 0 where x = 0 and y is out of the domain."""
    y = _like(y, x)
    return torch.log(torch.where((x == 0) & (y <= 0), 1, y))


def _log1p(x: Any, y: Any) -> Tensor:
    """Return log(1 + y), but 0 where x = 0 and y is out of the domain."""
    y = _like(y, x)
    return torch.log1p(torch.where((x == 0) & (y <= -1), 0, y))


elementwise(aten.exp, with_output(lambda x, *, out: out))
elementwise(aten.exp2, with_output(lambda x, *, out: out * math.log(2)))
elementwise(aten.expm1, with_output(lambda x, *, out: out + 1))
elementwise(aten.log, lambda x: x.reciprocal())
elementwise(aten.log2, lambda x: 1 / (x * math.log(2)))
elementwise(aten.log10, lambda x: 1 / (x * math.log(10)))
elementwise(aten.log1p, lambda x: 1 / (x + 1))
elementwise(aten.logaddexp, lambda x, y: torch.sigmoid(x - y), lambda x, y: torch.sigmoid(y - x))
elementwise(
    aten.logaddexp2,
    lambda x, y: torch.sigmoid((x - y) * math.log(2)),
    lambda x, y: torch.sigmoid((y - x) * math.log(2)),
)
elementwise(aten.xlogy, _log, lambda x, y: x / y)
elementwise(aten.special_xlog1py, _log1p, lambda x, y: x / (y + 1))
elementwise(
    aten.ldexp,
    lambda x, y: torch.pow(2.0, y),
    with_output(lambda x, y, *, out: out * math.log(2)),
)
rule(
    aten.frexp,
    with_output(
        lambda x, *, out: (
            Scale(tuple(x.shape), tuple(x.shape), torch.exp2(-out[1].to(x.dtype))),
            None,
        )
    ),
)

# Trigonometric


@with_output
def _sinc(x: Tensor, *, out: Tensor) -> Tensor:
    # d/dx sin t / t with t = πx is (cos t - sin t / t) / x. For |t| < 0.1 its Taylor series to t⁷,
    # whose error is below 1e-16, since the fraction cancels there and has no derivative at 0.
    t = math.pi * x
    small = t.abs() < 0.1
    safe = torch.where(small, 1, x)
    away = (torch.cos(math.pi * safe) - torch.sinc(safe)) / safe
    near = torch.where(small, t, 0)
    square = near * near
    series = near * (-1 / 3 + square * (1 / 30 + square * (-1 / 840 + square / 45360)))
    return torch.where(small, math.pi * series, away)


def _squared_radius(x: Tensor, y: Tensor) -> Tensor:
    """Return x² + y²; inf at the origin, where slopes are taken to be 0."""
    square = x * x + y * y
    return torch.where(square == 0, math.inf, square)


elementwise(aten.sin, lambda x: x.cos())
elementwise(aten.cos, lambda x: -x.sin())
elementwise(aten.tan, with_output(lambda x, *, out: 1 + out * out))
elementwise(aten.asin, lambda x: (1 - x * x).rsqrt())
elementwise(aten.acos, lambda x: -(1 - x * x).rsqrt())
elementwise(aten.atan, lambda x: 1 / (1 + x * x))
elementwise(
    aten.atan2,
    lambda y, x: x / _squared_radius(x, y),
    lambda y, x: -y / _squared_radius(x, y),
)
elementwise(aten.sinh, lambda x: x.cosh())
elementwise(aten.cosh, lambda x: x.sinh())
elementwise(aten.asinh, lambda x: (1 + x * x).rsqrt())
elementwise(aten.acosh, lambda x: (x - 1).rsqrt() * (x + 1).rsqrt())
elementwise(aten.atanh, lambda x: 1 / (1 - x * x))
elementwise(aten.sinc, _sinc)

# Signs, absolute values


@with_output
def _sgn(x: Tensor, *, out: Tensor) -> AbstractLinearMap | None:
    # For y = z / |z|: ẏ = (ż - y Re(ȳ ż)) / |z|, self-adjoint; 0 at z = 0, and for real z.
    if not x.is_complex():
        return None
    shape = tuple(x.shape)
    size = torch.where(out == 0, math.inf, x.abs())

    def apply(tangent: Tensor) -> Tensor:
        radial = torch.real(torch.conj_physical(out) * tangent)
        return (tangent - out * radial) / size

    return General(shape, shape, apply, apply, kept_axes(x.ndim))


rule(aten.sgn, _sgn)
elementwise(aten.abs, lambda x: conj(torch.sgn(x)))
elementwise(
    aten.copysign,
    with_output(
        lambda x, y, *, out: torch.where(
            torch.isnan(x), math.nan, torch.sgn(x) * torch.copysign(torch.ones_like(x), out)
        )
    ),
    no_map,
)
rule(aten.heaviside, no_map, with_output(lambda x, values, *, out: mask_map(values, out, x == 0)))

# The next number towards y moves with x, unless it is y: PyTorch's convention.
rule(aten.nextafter, with_output(lambda x, y, *, out: mask_map(x, out, x != y)), no_map)

# Complex numbers


def _conjugate(x: Tensor) -> Scale:
    return Scale(tuple(x.shape), tuple(x.shape), 1, conjugate=True)


def _angle(x: Tensor) -> Tensor | None:
    # θ = Im log z, so θ̇ = Re(-i ż / z); 0 at z = 0.
    if not x.is_complex():
        return None
    return torch.where(x == 0, 0, -1j / torch.where(x == 0, 1, x))


rule(aten._conj, _conjugate)
rule(aten._conj_physical, _conjugate)
elementwise(aten.angle, _angle)
elementwise(aten.complex, lambda a, b: 1, lambda a, b: 1j)

# Error function and its kin

elementwise(aten.erf, lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x * x))
elementwise(aten.erfc, lambda x: -2 / math.sqrt(math.pi) * torch.exp(-x * x))
elementwise(
    aten.erfinv, with_output(lambda x, *, out: math.sqrt(math.pi) / 2 * torch.exp(out * out))
)
elementwise(
    aten.special_erfcx, with_output(lambda x, *, out: 2 * (x * out - 1 / math.sqrt(math.pi)))
)
elementwise(
    aten.special_ndtri,
    with_output(lambda x, *, out: math.sqrt(2 * math.pi) * torch.exp(out * out / 2)),
)
elementwise(
    aten.special_log_ndtr,
    with_output(lambda x, *, out: torch.exp(-(out + x * x / 2)) / math.sqrt(2 * math.pi)),
)
elementwise(aten.special_entr, lambda x: -(1 + x.log()))


def _logit(x: Tensor, eps: float | None = None) -> Tensor | AbstractLinearMap:
    if eps is None:
        return torch.where((x < 0) | (x > 1), math.nan, 1 / (x * (1 - x)))
    inside = (x >= eps) & (x <= 1 - eps)
    safe = torch.where(inside, x, 0.5)
    return masked_scale(x, x, inside, 1 / (safe * (1 - safe)))


elementwise(aten.logit, _logit)

# Gamma and zeta functions

elementwise(aten.lgamma, lambda x: torch.digamma(x))
elementwise(aten.digamma, lambda x: torch.polygamma(1, x))
elementwise(aten.polygamma, None, lambda n, x: torch.polygamma(n + 1, x))
elementwise(aten.polygamma_.default, lambda x, n: torch.polygamma(n + 1, x))
elementwise(aten.mvlgamma, lambda x, p: torch.digamma(x.unsqueeze(-1) - 0.5 * _count(p, x)).sum(-1))
elementwise(aten.igamma, None, lambda a, x: torch.exp((a - 1) * x.log() - x - torch.lgamma(a)))
elementwise(aten.igammac, None, lambda a, x: -torch.exp((a - 1) * x.log() - x - torch.lgamma(a)))
elementwise(aten.special_zeta, None, lambda s, q: -s * torch.special.zeta(s + 1, q))


def _count(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, dtype=like.dtype, device=like.device)


# Draws that follow their parameter, and quantization that passes slopes through (straight-through estimation)

elementwise(
    aten._standard_gamma,
    with_output(lambda alpha, generator=None, *, out: aten._standard_gamma_grad(alpha, out)),
)
for _operator in (
    aten.fake_quantize_per_tensor_affine_cachemask,
    aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams,
    aten.fake_quantize_per_channel_affine_cachemask,
):
    rule(_operator, with_output(lambda x, *_, out: (mask_map(x, out[0], out[1]), None)))
