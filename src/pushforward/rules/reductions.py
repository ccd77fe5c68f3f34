"""Rules of the operators that work along axes: sums, products, norms, extrema, sorting.

A reduction whose derivative is a weighted sum is a contraction with the weights, so that a tied
axis becomes a free one without arithmetic. Ties of extrema go as PyTorch's autograd has it: shared
evenly where the operator gives values only, to the index where it gives one.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import normalize_axes, normalize_axis
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.contract import Contract
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.mask import Mask
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.sum import Sum
from pushforward.linear.kinds.take_along import TakeAlong
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.elementwise import conj, mask_map
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten

Dim = int | Sequence[int] | None
MAX_ENTRIES = 2**14  # of a matrix for an axis: beyond that, scans take less time than its entries


def weighted_sum(x: Tensor, out: Tensor, weight: Tensor, dim: Dim) -> AbstractLinearMap:
    """Return ẏ = Σ_dim weight ⊙ ẋ, with or without the reduced axes as ``out`` has them."""
    axes = normalize_axes(dim, x.ndim)
    shape = tuple(x.shape)
    letters = string.ascii_lowercase[: x.ndim]
    left = "".join(c for i, c in enumerate(letters) if i not in axes)
    reduced = tuple(n for i, n in enumerate(shape) if i not in axes)
    if weight.shape != x.shape:
        weight = weight.expand(x.shape)
    total = Contract(shape, reduced, letters, letters, left, weight)
    return _into(total, out)


def _into(linear_map: AbstractLinearMap, out: Tensor) -> AbstractLinearMap:
    """Return ``linear_map`` with its output in the shape of ``out``."""
    if linear_map.out_shape == tuple(out.shape):
        return linear_map
    return compose(linear_map, Reshape(linear_map.out_shape, tuple(out.shape)))


def over(x: Tensor, reduced: Tensor, dim: Dim) -> Tensor:
    """Return a result of reduction with its reduced axes put back, to broadcast against ``x``."""
    axes = normalize_axes(dim, x.ndim)
    return reduced.reshape([1 if i in axes else n for i, n in enumerate(x.shape)])


def _count(x: Tensor, dim: Dim) -> int:
    return math.prod(x.shape[i] for i in normalize_axes(dim, x.ndim))


def identity(x: Tensor) -> Scale:
    """Return the map that changes nothing."""
    return Scale(tuple(x.shape), tuple(x.shape), 1)


# Sums and means


@with_output
def _sum(
    x: Tensor, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None, out: Tensor
) -> Sum:
    return Sum(tuple(x.shape), tuple(out.shape), normalize_axes(dim, x.ndim), keepdim)


@with_output
def _nansum(
    x: Tensor, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None, out: Tensor
) -> AbstractLinearMap:
    shape = tuple(x.shape)
    known = Mask(shape, shape, torch.logical_not(torch.isnan(x)))
    return compose(known, _sum(x, dim, keepdim, out=out))


@with_output
def _mean(
    x: Tensor, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None, out: Tensor
) -> AbstractLinearMap:
    shape = tuple(out.shape)
    count = _count(x, dim)
    share = 1 / count if count else math.nan
    return compose(_sum(x, dim, keepdim, out=out), Scale(shape, shape, share))


def _trace(x: Tensor) -> AbstractLinearMap:
    shape = tuple(x.shape)
    eye = torch.eye(*shape, dtype=torch.bool, device=x.device)
    return compose(Mask(shape, shape, eye), Sum(shape, (), (0, 1)))


rule(aten.sum, _sum)
rule(aten.nansum, _nansum)
rule(aten.mean, _mean)
rule(aten.trace, _trace)

# Products


def _product_of_others(x: Tensor, axis: int) -> Tensor:
    """Return what the other elements' product is, without division: right with zeros."""
    size = x.shape[axis]
    if size == 0:
        return x
    if x.numel() * size <= MAX_ENTRIES:  # with 1 in each one's place: a third of the time
        here = torch.eye(size, dtype=torch.bool, device=x.device)
        here = here.reshape(size, size, *(1,) * (x.ndim - axis - 1))
        return torch.where(here, 1, x.unsqueeze(axis)).prod(axis + 1)
    # Running products from both ends, each shifted by one.
    one = torch.ones_like(x.narrow(axis, 0, 1))
    before = torch.cat([one, x.narrow(axis, 0, size - 1).cumprod(axis)], axis)
    rest = x.narrow(axis, 1, size - 1).flip(axis).cumprod(axis).flip(axis)
    return before * torch.cat([rest, one], axis)


@with_output
def _prod(x: Tensor, *, dtype: Any = None, out: Tensor) -> AbstractLinearMap:
    weight = _product_of_others(x.reshape(-1), 0).reshape(x.shape)
    return weighted_sum(x, out, weight, None)


@with_output
def _prod_dim(
    x: Tensor, dim: int, keepdim: bool = False, *, dtype: Any = None, out: Tensor
) -> AbstractLinearMap:
    if x.ndim == 0:
        return identity(x)
    return weighted_sum(x, out, _product_of_others(x, normalize_axis(dim, x.ndim)), dim)


rule(aten.prod.default, _prod)
rule(aten.prod.dim_int, _prod_dim)

# Variances


def _var_weight(x: Tensor, dim: Dim, correction: float | None) -> Tensor:
    # 2 (x - mean) / (n - correction). That the mean moves too adds nothing: Σ (x - mean) = 0.
    freedom = max(0.0, _count(x, dim) - (1 if correction is None else correction))
    mean = x.mean(normalize_axes(dim, x.ndim), keepdim=True) if x.ndim else x
    return conj(x - mean) * (2 / freedom if freedom else math.inf)


@with_output
def _var(
    x: Tensor,
    dim: Dim = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
    out: Tensor,
) -> AbstractLinearMap:
    return weighted_sum(x, out, _var_weight(x, dim, correction), dim)


@with_output
def _std(
    x: Tensor,
    dim: Dim = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
    out: Tensor,
) -> AbstractLinearMap:
    # √v has derivative 1 / 2√v; 0 at v = 0.
    twice = 2 * over(x, torch.where(out != 0, out, math.inf), dim)
    linear_map = weighted_sum(x, out, _var_weight(x, dim, correction) / twice, dim)
    return compose(linear_map, mask_map(out, out, out != 0))


def _with_mean(spread: Callable[..., AbstractLinearMap]) -> Callable[..., Any]:
    """Return the partial of an operator that gives the mean beside the variance or its root."""

    @with_output
    def partial(
        x: Tensor,
        dim: Dim = None,
        *,
        keepdim: bool = False,
        out: tuple[Tensor, Tensor],
        **named: Any,
    ) -> tuple[AbstractLinearMap, AbstractLinearMap]:
        return spread(x, dim, out=out[0], **named), _mean(x, dim, keepdim, out=out[1])

    return partial


rule(aten.var.correction, _var)
rule(aten.std.correction, _std)
rule(aten.var_mean.correction, _with_mean(_var))
rule(aten.std_mean.correction, _with_mean(_std))

# Norms and distances


def _is_result(x: Tensor, reduced: Tensor) -> Tensor:
    """Return which elements equal the result of the reduction."""
    return (x == reduced) | (torch.isnan(x) & torch.isnan(reduced))


def _evenly(is_chosen: Tensor, dim: Dim, dtype: torch.dtype) -> Tensor:
    """Return the even share of each element that is chosen."""
    chosen, axes = is_chosen.to(dtype), normalize_axes(dim, is_chosen.ndim)
    return chosen / (chosen.sum(axes, keepdim=True) if axes else chosen)


def _norm_weight(x: Tensor, p: float, norm: Tensor, dim: Dim) -> Tensor:
    """Return the gradient of the p-norm; 0 in zero vectors, and for the count p = 0."""
    if p == 2:
        return conj(x) / torch.where(norm == 0, math.inf, norm)
    if p == 0:
        return torch.zeros_like(x)
    sgn = conj(torch.sgn(x))
    if p < 0:  # where one element is 0 the norm is 0, whatever the others are
        sgn = torch.where(norm == 0, 0, sgn)
    if p == 1:
        return sgn
    size = x.abs()
    if math.isinf(p):
        return sgn * _evenly(_is_result(size, norm), dim, norm.dtype)
    # conj(sgn x) (|x| / norm)ᵖ⁻¹; at x = 0 sgn makes it 0, and the power must not make that NaN.
    is_zero = x == 0
    ratio = torch.where(is_zero, 1, size) / torch.where(norm == 0, 1, norm)
    return sgn * ratio.pow(p - 1)


@with_output
def _norm(
    x: Tensor,
    p: float | None = 2,
    dim: Dim = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
    out: Tensor,
) -> AbstractLinearMap | None:
    if p == 0:
        return None
    p = 2 if p is None else p
    linear_map = weighted_sum(x, out, _norm_weight(x, p, over(x, out, dim), dim), dim)
    mask = mask_map(out, out, out != 0)
    return linear_map if p in (1, 2) or math.isinf(p) else compose(linear_map, mask)


@with_output
def _dist(x: Tensor, y: Tensor, p: float = 2, *, out: Tensor) -> AbstractLinearMap | None:
    return _dist_part(x, x - y, p, out, 1)


@with_output
def _dist_other(x: Tensor, y: Tensor, p: float = 2, *, out: Tensor) -> AbstractLinearMap | None:
    return _dist_part(y, x - y, p, out, -1)


def _dist_part(
    x: Tensor, difference: Tensor, p: float, out: Tensor, sign: int
) -> AbstractLinearMap | None:
    change = Scale(tuple(x.shape), tuple(difference.shape), sign)
    norm = _norm(difference, p, out=out)
    return None if norm is None else compose(change, norm)


def _renorm(x: Tensor, p: float, dim: int, maxnorm: float) -> AbstractLinearMap:
    # y = f x in every slice, f = maxnorm / (norm + 1e-7) where norm > maxnorm, else 1; the 1e-7 is
    # PyTorch's. ẏ = f ẋ + x f' Σ w ẋ, w the gradient of the norm.
    axis = normalize_axis(dim, x.ndim)
    others = [i for i in range(x.ndim) if i != axis]
    norm = torch.linalg.vector_norm(x, p, others, keepdim=True)
    is_long = norm > maxnorm
    safe = torch.where(is_long, norm, 1) + 1e-7
    factor = torch.where(is_long, maxnorm / safe, 1)
    slope = torch.where(is_long, -maxnorm / (safe * safe), 0)
    weight = _norm_weight(x, p, norm, others)
    near = [i + 1 for i in others]

    def push(tangent: Tensor) -> Tensor:
        stretch = torch.real((weight * tangent).sum(near, keepdim=True))
        return factor * tangent + slope * x * stretch

    def pull(cotangent: Tensor) -> Tensor:
        stretch = torch.real((conj(x) * cotangent).sum(near, keepdim=True))
        return factor * cotangent + slope * conj(weight) * stretch

    return General(tuple(x.shape), tuple(x.shape), push, pull, ((axis, axis),))


rule(aten.linalg_vector_norm, _norm)
rule(aten.norm, _norm)
rule(aten.dist, _dist, _dist_other)
rule(aten.renorm, _renorm)


# Extrema


@with_output
def _extremum(x: Tensor, *, out: Tensor) -> AbstractLinearMap:
    shape = tuple(x.shape)
    is_chosen = _is_result(x, out)
    share = is_chosen.sum(dtype=out.dtype).reciprocal()
    return compose(
        Mask(shape, shape, is_chosen), Sum(shape, (), tuple(range(x.ndim))), Scale((), (), share)
    )


@with_output
def _extremum_of_numbers(x: Tensor, dim: Dim = None, keepdim: bool = False, *, out: Tensor) -> Any:
    """As PyTorch has it, nan where a nan is the extremum."""
    return weighted_sum(x, out, _evenly(x == over(x, out, dim), dim, out.dtype), dim)


@with_output
def _aminmax(
    x: Tensor, dim: Dim = None, keepdim: bool = False, *, out: tuple[Tensor, Tensor]
) -> tuple[AbstractLinearMap, AbstractLinearMap]:
    return _extremum_of_numbers(x, dim, out=out[0]), _extremum_of_numbers(x, dim, out=out[1])


rule(aten.amax, _extremum_of_numbers)
rule(aten.amin, _extremum_of_numbers)
rule(aten.max.default, _extremum)
rule(aten.min.default, _extremum)
rule(aten.median.default, _extremum)
rule(aten.nanmedian.default, _extremum)
rule(aten.aminmax, _aminmax)

# Choices with an index: max along an axis, median, sort, top-k


def _pick(x: Tensor, out: tuple[Tensor, Tensor], dim: int) -> tuple[AbstractLinearMap, None]:
    values, index = out[0], out[1]
    if x.ndim == 0:
        return Scale((), tuple(values.shape), 1), None
    axis, shape = normalize_axis(dim, x.ndim), tuple(x.shape)
    if index.ndim < x.ndim and axis:
        index = index.unsqueeze(axis)
    if index.ndim < x.ndim or index.shape[axis] == 1:
        # One of the axis: a sum of one term, in which a tied axis becomes free without arithmetic.
        place = torch.arange(x.shape[axis], device=x.device)
        chosen = Mask(shape, shape, place.reshape(-1, *(1,) * (x.ndim - axis - 1)) == index)
        return compose(
            chosen, Sum(shape, tuple(values.shape), (axis,), values.ndim == x.ndim)
        ), None
    return TakeAlong(shape, tuple(values.shape), axis, index, is_total=True), None


rule(aten.max.dim, with_output(lambda x, dim, keepdim=False, *, out: _pick(x, out, dim)))
rule(aten.min.dim, with_output(lambda x, dim, keepdim=False, *, out: _pick(x, out, dim)))
rule(aten.median.dim, with_output(lambda x, dim, keepdim=False, *, out: _pick(x, out, dim)))
rule(aten.nanmedian.dim, with_output(lambda x, dim, keepdim=False, *, out: _pick(x, out, dim)))
rule(aten.mode, with_output(lambda x, dim=-1, keepdim=False, *, out: _pick(x, out, dim)))
rule(aten.kthvalue, with_output(lambda x, k, dim=-1, keepdim=False, *, out: _pick(x, out, dim)))
rule(
    aten.sort,
    with_output(lambda x, dim=-1, descending=False, *, stable=None, out: _pick(x, out, dim)),
)
rule(
    aten.topk,
    with_output(lambda x, k, dim=-1, largest=True, sorted=True, *, out: _pick(x, out, dim)),
)
rule(aten.cummax, with_output(lambda x, dim, *, out: _pick(x, out, dim)))
rule(aten.cummin, with_output(lambda x, dim, *, out: _pick(x, out, dim)))
