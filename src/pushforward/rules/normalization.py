"""Normalizations: group, batch, root mean square, weight. Layers have a module of their own.

The statistics are computed again from the input where somebody may differentiate what is made of them: the saved ones
are outputs, and taken as constants they would make second derivatives wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import kept_axes
from pushforward.linear.differentiated import is_differentiated_again
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.expand import Expand
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.sum import Sum
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten

Axes = tuple[int, ...]
Maps = tuple[AbstractLinearMap | None, ...]


def standardized(x: Tensor, axes: Axes, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return x̂ = (x - μ) / σ and 1 / σ, with σ² the biased variance plus ``eps``.

    A tensor is the value of 1 / σ that autograd saved instead of ``eps``.
    """
    wide, share = _widened(x), 1 / _count(x, axes)
    centred = torch.sub(wide, wide.sum(axes, keepdim=True), alpha=share)
    total = (centred * centred).sum(axes, keepdim=True)  # a tenth of the time of torch.var
    if isinstance(eps, Tensor):
        known = torch.pow(eps.detach().to(wide.dtype), -2)
        eps = torch.sub(known, total.detach(), alpha=share)
        rstd = torch.add(eps, total, alpha=share).rsqrt()
    else:
        rstd = (total * share + eps).rsqrt()
    return _like(centred * rstd, x), _like(rstd, x)


def _count(x: Tensor, axes: Axes) -> int:
    """Return how many numbers a mean is taken of: a sum takes half the time of one, for small tensors."""
    return max(math.prod(x.shape[a] for a in axes), 1)


def _widened(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is in half precision, where squares of 256 overflow."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _like(result: Tensor, x: Tensor) -> Tensor:
    return result if result.dtype == x.dtype else result.to(x.dtype)


def standardized_as_saved(
    x: Tensor, axes: Axes, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Return x̂ and 1 / σ of a call that saved μ and 1 / σ."""
    if is_differentiated_again():
        return standardized(x, axes, rstd)
    return _like((_widened(x) - mean) * rstd, x), _like(rstd, x)


def standardized_tangent(tangent: Tensor, x_hat: Tensor, rstd: Tensor, axes: Axes) -> Tensor:
    """Push through x̂ = (x - μ) / σ, or pull: it is its own adjoint.

    Math: dx̂ = ẋ / σ - mean(ẋ / σ) - x̂ mean(ẋ x̂ / σ), of which autograd keeps nothing but ẋ for each seed.
    """
    share = 1 / _count(tangent, axes)
    along = (rstd * x_hat * tangent).sum(axes, keepdim=True)
    spread = rstd * tangent
    centred = torch.sub(spread, spread.sum(axes, keepdim=True), alpha=share)
    return torch.addcmul(centred, x_hat, along, value=-share)


def _standardization(axes: Axes, x_hat: Tensor, rstd: Tensor) -> AbstractLinearMap:
    """Return the map of x̂ = (x - μ) / σ from x̂ and 1 / σ."""
    inner = tuple(a + 1 for a in axes)
    return self_adjoint(x_hat, axes, lambda seeds: standardized_tangent(seeds, x_hat, rstd, inner))


def self_adjoint(x: Tensor, axes: Axes, apply: Callable[[Tensor], Tensor]) -> AbstractLinearMap:
    """Return a map that mixes ``axes`` only and is its own adjoint, from what it does to seeds."""
    shape = tuple(x.shape)
    return General(shape, shape, apply, apply, kept_axes(x.ndim, *axes))


def _column(weight: Tensor, ndim: int) -> Tensor:
    """Return the per-channel ``weight`` so that it broadcasts along axis 1 of ``ndim`` axes."""
    return weight.reshape(1, -1, *(1,) * (ndim - 2))


def _per_channel(weight: Tensor, out: Tensor, coef: Tensor | None = None) -> AbstractLinearMap:
    """Return the map of a per-channel parameter, multiplied by ``coef``."""
    shape = (1, *weight.shape, *(1,) * (out.ndim - 2))
    spread: AbstractLinearMap = Expand(shape, tuple(out.shape))
    if coef is not None:
        spread = Scale(shape, tuple(out.shape), coef)
    return compose(Reshape(tuple(weight.shape), shape), spread)


def _mean_map(x: Tensor, axes: Axes, out: Tensor) -> AbstractLinearMap:
    count = math.prod(x.shape[a] for a in axes)
    shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    total = Sum(tuple(x.shape), shape, axes, keepdim=True)
    return compose(total, Scale(shape, shape, 1 / max(count, 1)), Reshape(shape, tuple(out.shape)))


def _weighted_sum_map(x: Tensor, axes: Axes, coef: Tensor, out: Tensor) -> AbstractLinearMap:
    """Return ẋ ↦ Σ_axes coef · ẋ in the shape of ``out``."""
    full = tuple(x.shape)
    shape = tuple(1 if a in axes else n for a, n in enumerate(full))
    total = Sum(full, shape, axes, keepdim=True)
    return compose(Scale(full, full, coef), total, Reshape(shape, tuple(out.shape)))


def _rstd_map(x_hat: Tensor, rstd: Tensor, axes: Axes, out: Tensor) -> AbstractLinearMap:
    """Return the map of 1/σ: its derivative is -mean(x̂ ẋ) / σ²."""
    count = max(math.prod(x_hat.shape[a] for a in axes), 1)
    return _weighted_sum_map(x_hat, axes, -x_hat * rstd * rstd / count, out)


def scaled(linear_map: AbstractLinearMap, weight: Tensor | None) -> AbstractLinearMap:
    """Return the map followed by a product with the weight, if there is one."""
    if weight is None:
        return linear_map
    shape = linear_map.out_shape
    return compose(linear_map, Scale(shape, shape, weight))


# Layers by their root mean square


def last_axes(x: Tensor, normalized_shape: Sequence[int]) -> Axes:
    """Return the axes that have ``normalized_shape``."""
    return tuple(range(x.ndim - len(normalized_shape), x.ndim))


def _root_mean_square(x: Tensor, axes: Axes, eps: float | None) -> Tensor:
    """Return 1 / sqrt(mean(x²) + eps); without ``eps`` the machine's."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    wide = _widened(x)
    return _like(((wide * wide).mean(axes, keepdim=True) + eps).rsqrt(), x)


@with_output
def _rms_norm_input(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    *,
    out: tuple[Tensor, Tensor],
) -> Maps:
    """Math: dx̂ = r (ẋ - x̂ mean(x̂ ẋ)) with x̂ = r x, and ṙ = -r² mean(x̂ ẋ)."""
    shape = tuple(input.shape)
    axes = last_axes(input, normalized_shape)
    inner = tuple(a + 1 for a in axes)
    rms = _root_mean_square(input, axes, eps)
    x_hat = input * rms

    def apply(seeds: Tensor, x_hat: Tensor, rms: Tensor) -> Tensor:
        return rms * (seeds - x_hat * (x_hat * seeds).mean(inner, keepdim=True))

    normalize = General(
        shape,
        shape,
        lambda seeds: apply(seeds, x_hat, rms),
        lambda seeds: apply(seeds, x_hat.conj(), rms.conj()),
        kept_axes(input.ndim, *axes),
    )
    count = max(math.prod(normalized_shape), 1)
    rms_map = _weighted_sum_map(input, axes, -x_hat * rms * rms / count, out[1])
    return scaled(normalize, weight), rms_map


def _rms_norm_weight(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor, eps: float | None
) -> Maps:
    x_hat = input * _root_mean_square(input, last_axes(input, normalized_shape), eps)
    return Scale(tuple(weight.shape), tuple(input.shape), x_hat), None


rule(aten._fused_rms_norm, _rms_norm_input, None, _rms_norm_weight)

# Groups of channels: the group is made an axis of its own, and stays tied.


def _grouped_shape(input: Tensor, group: int) -> tuple[int, ...]:
    batch = input.shape[0]
    return (batch, group, input.numel() // max(batch * group, 1))


@with_output
def _group_norm_input(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    N: int,
    C: int,
    HxW: int,
    group: int,
    eps: float,
    *,
    out: tuple[Tensor, ...],
) -> Maps:
    shape, grouped = tuple(input.shape), _grouped_shape(input, group)
    regroup, axes = Reshape(shape, grouped), (2,)
    x_hat, rstd = _standardized_groups(input, group, out)
    normalize = compose(regroup, _standardization(axes, x_hat, rstd), Reshape(grouped, shape))
    return (
        scaled(normalize, None if weight is None else _column(weight, input.ndim)),
        compose(regroup, _mean_map(x_hat, axes, out[1])),
        compose(regroup, _rstd_map(x_hat, rstd, axes, out[2])),
    )


def _standardized_groups(
    input: Tensor, group: int, out: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Return x̂ with the group as an axis, and 1 / σ; autograd saves no ``eps`` from 2.14 on."""
    x = input.reshape(_grouped_shape(input, group))
    mean, rstd = (saved.reshape(*x.shape[:2], 1) for saved in out[1:])
    return standardized_as_saved(x, (2,), mean, rstd)


@with_output
def _group_norm_weight(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    N: int,
    C: int,
    HxW: int,
    group: int,
    eps: float,
    *,
    out: tuple[Tensor, ...],
) -> Maps:
    x_hat, _ = _standardized_groups(input, group, out)
    return _per_channel(weight, input, x_hat.reshape(input.shape)), None, None


rule(
    aten.native_group_norm,
    _group_norm_input,
    _group_norm_weight,
    lambda input, weight, bias, *sizes: (_per_channel(bias, input), None, None),
)

# Batches. Of the outputs only the first is followed by autograd.


def _batch_statistics(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, training: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """Return x̂ and 1 / σ, of the batch's own statistics or of running ones."""
    if training:
        return standardized(x, _all_but_channels(x), eps)
    assert running_mean is not None
    assert running_var is not None
    rstd = _column((running_var + eps).rsqrt(), x.ndim)
    return (x - _column(running_mean, x.ndim)) * rstd, rstd


def _all_but_channels(x: Tensor) -> Axes:
    return tuple(i for i in range(x.ndim) if i != 1)


def _declare_batch_norm(operator: Any, *, stats: bool = True, training: bool | None = None) -> None:
    """Declare one of the overloads, which differ in their arguments.

    Args:
        operator: The overload.
        stats: Whether it takes running statistics.
        training: Whether it takes the input's own statistics; None if an argument says so.
    """
    others = (None,) * (len(operator._schema.returns) - 1)

    def read(args: tuple[Any, ...]) -> tuple[Any, Any, bool, float]:
        rest = list(args)
        mean, var = (rest.pop(0), rest.pop(0)) if stats else (None, None)
        is_training = rest.pop(0) if training is None else training
        return mean, var, is_training, rest[1]

    def from_input(input: Tensor, weight: Tensor | None, bias: Any, *args: Any) -> Maps:
        mean, var, is_training, eps = read(args)
        column = None if weight is None else _column(weight, input.ndim)
        if is_training:
            axes = _all_but_channels(input)
            linear_map = _standardization(axes, *standardized(input, axes, eps))
        else:
            _, rstd = _batch_statistics(input, mean, var, False, eps)
            linear_map = Scale(tuple(input.shape), tuple(input.shape), rstd)
        return (scaled(linear_map, column), *others)

    def from_weight(input: Tensor, weight: Tensor, bias: Any, *args: Any) -> Maps:
        x_hat, _ = _batch_statistics(input, *read(args))
        return (_per_channel(weight, input, x_hat), *others)

    def from_bias(input: Tensor, weight: Any, bias: Tensor, *args: Any) -> Maps:
        return (_per_channel(bias, input), *others)

    rule(operator, from_input, from_weight, from_bias)


_declare_batch_norm(aten.native_batch_norm.default)
_declare_batch_norm(aten.cudnn_batch_norm.default)
_declare_batch_norm(aten.miopen_batch_norm.default)
_declare_batch_norm(aten._native_batch_norm_legit.default)
_declare_batch_norm(aten._native_batch_norm_legit.no_stats, stats=False)
_declare_batch_norm(aten._native_batch_norm_legit_no_training.default, training=False)
_declare_batch_norm(aten._batch_norm_with_update.default, training=True)
_declare_batch_norm(aten._batch_norm_no_update.default, training=False)

# Weights: w = g v / |v|, the norm taken over all axes but one


def _weight_norm(v: Tensor, dim: int) -> tuple[Tensor, Axes]:
    axes = tuple(i for i in range(v.ndim) if i != dim % v.ndim)
    return (v * v).sum(axes, keepdim=True).sqrt() if axes else v.abs(), axes


@with_output
def _weight_norm_direction(
    v: Tensor, g: Tensor, dim: int = 0, *, out: tuple[Tensor, Tensor]
) -> Maps:
    """Math: ẇ = g/|v| (v̇ - v̂ ⟨v̂, v̇⟩) with v̂ = v/|v|, which is its own adjoint; |v|˙ = ⟨v̂, v̇⟩."""
    norm, axes = _weight_norm(v, dim)
    direction = v / norm
    factor = g / norm
    inner = tuple(a + 1 for a in axes)
    shape = tuple(v.shape)

    def apply(seeds: Tensor) -> Tensor:
        product = direction * seeds
        along = product.sum(inner, keepdim=True) if inner else product
        return factor * (seeds - direction * along)

    axis = dim % v.ndim
    direct = General(shape, shape, apply, apply, ((axis, axis),))
    return direct, _weighted_sum_map(v, axes, direction, out[1])


def _weight_norm_length(v: Tensor, g: Tensor, dim: int = 0) -> Maps:
    norm, _ = _weight_norm(v, dim)
    return Scale(tuple(g.shape), tuple(v.shape), v / norm), None


rule(aten._weight_norm_interface, _weight_norm_direction, _weight_norm_length)
