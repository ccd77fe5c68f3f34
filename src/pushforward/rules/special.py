"""Orthogonal polynomials, and special functions of which PyTorch has no derivative.

The derivative of a polynomial of degree n is written as a sum of polynomials of the same kind of lower
degree: it has no singularity, and can itself be differentiated. The degree is read as an integer: `no_map`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import broadcast
from pushforward.rules.following import followed
from pushforward.rules.registry import elementwise, no_map, with_output

aten = torch.ops.aten

Degree = Tensor | float
Slope = Callable[[Any, Degree], Tensor]


def _lower(polynomial: Any, weight: Callable[[int], float], step: int = 1) -> Slope:
    """Return x, n ↦ Σ weight(k) · polynomial_k(x) over k = n - 1, n - 1 - step, ..."""

    def slope(x: Tensor, n: Degree) -> Tensor:
        degree = torch.as_tensor(n, device=x.device).trunc()  # as the kernels read it
        top = int(degree.max()) if degree.numel() else 0
        shape = broadcast(x.shape, degree.shape)
        total = torch.zeros(shape, dtype=x.dtype, device=x.device)
        for k in range(top):
            counts = (degree > k) & ((degree - k - 1) % step == 0)
            term = weight(k) * followed(polynomial, x, k)
            total = total + torch.where(counts, term, torch.zeros_like(term))
        return total

    return slope


def _degree(n: Degree) -> Any:
    return n.trunc() if isinstance(n, Tensor) else int(n)


def _shifted(slope: Slope) -> Slope:
    """Return the slope of a polynomial of 2x - 1."""
    return lambda x, n: 2 * slope(2 * x - 1, n)


_second = _lower(aten.special_chebyshev_polynomial_u, lambda k: 2.0 * (k + 1), step=2)


def _first(x: Tensor, n: Degree) -> Tensor:
    slope: Tensor = _degree(n) * followed(aten.special_chebyshev_polynomial_u, x, _degree(n) - 1)
    return slope


def _third(x: Tensor, n: Degree) -> Tensor:
    return _second(x, n) - _second(x, n - 1)  # V_n = U_n - U_(n-1)


def _fourth(x: Tensor, n: Degree) -> Tensor:
    return _second(x, n) + _second(x, n - 1)  # W_n = U_n + U_(n-1)


for _kind, _slope in (("t", _first), ("u", _second), ("v", _third), ("w", _fourth)):
    elementwise(getattr(aten, f"special_chebyshev_polynomial_{_kind}"), _slope, no_map)
    _operator = getattr(aten, f"special_shifted_chebyshev_polynomial_{_kind}")
    elementwise(_operator, _shifted(_slope), no_map)

elementwise(
    aten.special_hermite_polynomial_h,
    lambda x, n: 2 * _degree(n) * followed(aten.special_hermite_polynomial_h, x, _degree(n) - 1),
    no_map,
)
elementwise(
    aten.special_hermite_polynomial_he,
    lambda x, n: _degree(n) * followed(aten.special_hermite_polynomial_he, x, _degree(n) - 1),
    no_map,
)
elementwise(
    aten.special_laguerre_polynomial_l,
    _lower(aten.special_laguerre_polynomial_l, lambda k: -1.0),
    no_map,
)
elementwise(
    aten.special_legendre_polynomial_p,
    _lower(aten.special_legendre_polynomial_p, lambda k: 2.0 * k + 1, step=2),
    no_map,
)

SMALL = 1e-1  # below, the quotients lose digits: 6 terms of the series are exact to 1e-17


def _spherical_bessel_slope(x: Tensor) -> Tensor:
    """Math: (sin x / x)′ = (cos x - sin x / x) / x = -x/3 + x³/30 - x⁵/840 + ..."""
    is_small = x.abs() < SMALL
    safe = torch.where(is_small, torch.ones_like(x), x)
    far = (safe.cos() - safe.sin() / safe) / safe
    square = torch.where(is_small, x, torch.zeros_like(x)) ** 2
    series = torch.zeros_like(x)
    for coef in (-1 / 518918400, 1 / 3991680, -1 / 45360, 1 / 840, -1 / 30, 1 / 3):
        series = series * square + coef
    return torch.where(is_small, -x * series, far)


elementwise(aten.special_spherical_bessel_j0, _spherical_bessel_slope)

# Bessel functions. PyTorch declares most of them without derivative; these are the recurrences.


def _over_x(x: Tensor, y: Tensor) -> Tensor:
    """Return y / x, and 1/2 where x is 0, or too small for a quotient to be right."""
    is_small = x.abs() < torch.finfo(x.dtype).tiny
    return torch.where(is_small, 0.5, y / torch.where(is_small, 1, x))


elementwise(aten.i0, lambda x: torch.special.i1(x))
elementwise(
    aten.special_i0e, with_output(lambda x, *, out: torch.special.i1e(x) - torch.sgn(x) * out)
)
elementwise(aten.special_i1, with_output(lambda x, *, out: torch.special.i0(x) - _over_x(x, out)))
elementwise(
    aten.special_i1e,
    with_output(lambda x, *, out: torch.special.i0e(x) - torch.sgn(x) * out - _over_x(x, out)),
)
elementwise(aten.special_bessel_j0, lambda x: -followed(aten.special_bessel_j1, x))
elementwise(
    aten.special_bessel_j1,
    with_output(lambda x, *, out: followed(aten.special_bessel_j0, x) - _over_x(x, out)),
)
elementwise(aten.special_bessel_y0, lambda x: -followed(aten.special_bessel_y1, x))
elementwise(
    aten.special_bessel_y1,
    with_output(
        lambda x, *, out: torch.where(
            x == 0, math.inf, followed(aten.special_bessel_y0, x) - out / x
        )
    ),
)
elementwise(aten.special_modified_bessel_i0, lambda x: torch.special.i1(x))
elementwise(
    aten.special_modified_bessel_i1,
    with_output(lambda x, *, out: torch.special.i0(x) - _over_x(x, out)),
)
elementwise(
    aten.special_modified_bessel_k0, lambda x: -followed(aten.special_modified_bessel_k1, x)
)
elementwise(
    aten.special_modified_bessel_k1,
    with_output(lambda x, *, out: -followed(aten.special_modified_bessel_k0, x) - out / x),
)
elementwise(
    aten.special_scaled_modified_bessel_k0,
    with_output(lambda x, *, out: out - followed(aten.special_scaled_modified_bessel_k1, x)),
)
elementwise(
    aten.special_scaled_modified_bessel_k1,
    with_output(
        lambda x, *, out: out - followed(aten.special_scaled_modified_bessel_k0, x) - out / x
    ),
)
