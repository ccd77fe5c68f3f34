"""Layer norm and its backward operator, which applies the derivative in one pass over all seeds.

With x̂ = (x - μ) / σ along the last axes, J = ∂x̂/∂x is its own adjoint, so that the backward operator pushes tangents
as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.differentiated import is_differentiated_again
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.expand import Expand
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.sum import Sum
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.normalization import (
    Axes,
    Maps,
    last_axes,
    scaled,
    self_adjoint,
    standardized,
    standardized_as_saved,
    standardized_tangent,
)
from pushforward.rules.registry import no_map, rule, with_output

aten = torch.ops.aten


def _derivative(
    x: Tensor, axes: Axes, mean: Tensor, rstd: Tensor
) -> Callable[[Tensor, int], Tensor]:
    """Return what multiplies tangents ``(*seeds, *x.shape)`` by J, told how many axes the seeds have.

    The backward operator takes μ and 1/σ as autograd saved them. PyTorch's second derivatives of it take σ for a
    constant, so that who may differentiate the result gets it from steps that know what σ is made of.
    """
    if is_differentiated_again():
        x_hat, inverse = standardized(x, axes, rstd)

        def by_steps(tangent: Tensor, num_seeds: int) -> Tensor:
            inner = tuple(a + num_seeds for a in axes)
            return standardized_tangent(tangent, x_hat, inverse, inner)

        return by_steps
    size = [x.shape[a] for a in axes]

    def at_once(tangent: Tensor, num_seeds: int) -> Tensor:
        seeds = tangent.shape[:num_seeds]
        result: Tensor = aten.native_layer_norm_backward.default(
            tangent.contiguous(),
            x.expand(tangent.shape),
            size,
            *(t.expand(*seeds, *t.shape).contiguous() for t in (mean, rstd)),
            None,
            None,
            [True, False, False],
        )[0]
        return result

    return at_once


def _standardization(x: Tensor, axes: Axes, mean: Tensor, rstd: Tensor) -> AbstractLinearMap:
    """Return J as a map."""
    return _as_map(x, axes, _derivative(x, axes, mean, rstd))


def _as_map(x: Tensor, axes: Axes, apply: Callable[[Tensor, int], Tensor]) -> AbstractLinearMap:
    return self_adjoint(x, axes, lambda seeds: apply(seeds, 1))


@with_output
def _input(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    *_: Any,
    out: tuple[Tensor, ...],
) -> Maps:
    axes = last_axes(input, normalized_shape)
    return scaled(_standardization(input, axes, *out[1:]), weight), None, None


@with_output
def _weight(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    *_: Any,
    out: tuple[Tensor, ...],
) -> Maps:
    axes = last_axes(input, normalized_shape)
    x_hat = standardized_as_saved(input, axes, *out[1:])[0]
    return Scale(tuple(weight.shape), tuple(input.shape), x_hat), None, None


def _bias(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor, *_: Any
) -> Maps:
    return Expand(tuple(bias.shape), tuple(input.shape)), None, None


rule(aten.native_layer_norm, _input, None, _weight, _bias)

# The backward operator gives x̄ = J w̄ with w̄ = ȳ · weight, and Σ ȳ x̂ and Σ ȳ, both over all rows.


def _over_rows(first: AbstractLinearMap, x: Tensor, axes: Axes) -> AbstractLinearMap:
    """Return the map followed by the sum over all axes that are not normalized."""
    outer = tuple(i for i in range(x.ndim) if i not in axes)
    shape = tuple(x.shape)
    return compose(first, Sum(shape, tuple(shape[a] for a in axes), outer)) if outer else first


def _cotangent(
    grad_out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> Maps:
    axes, shape = last_axes(input, normalized_shape), tuple(input.shape)
    whole = Scale(shape, shape, 1 if weight is None else weight)
    of_weight = None
    if output_mask[1]:
        x_hat = standardized_as_saved(input, axes, mean, rstd)[0]
        of_weight = _over_rows(Scale(shape, shape, x_hat), input, axes)
    return (
        compose(whole, _standardization(input, axes, mean, rstd)) if output_mask[0] else None,
        of_weight,
        _over_rows(Scale(shape, shape, 1), input, axes) if output_mask[2] else None,
    )


def _point(
    grad_out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> Maps:
    """Math: with x̄ = J w̄, ∂x̄/∂x ẋ = -(x̄ mean(x̂ ẋ) + x̂ mean(x̄ ẋ) + mean(x̂ w̄) J ẋ) / σ, its own adjoint."""
    axes = last_axes(input, normalized_shape)
    x_hat, inverse = standardized_as_saved(input, axes, mean, rstd)
    seen = grad_out if weight is None else grad_out * weight
    standardize = _derivative(input, axes, mean, rstd)
    pulled = standardize(seen, 0)
    along = (x_hat * seen).mean(axes, keepdim=True)
    inner = tuple(a + 1 for a in axes)

    def apply(seeds: Tensor) -> Tensor:
        turned = pulled * (x_hat * seeds).mean(inner, keepdim=True)
        turned = turned + x_hat * (pulled * seeds).mean(inner, keepdim=True)
        result: Tensor = -inverse * (turned + along * standardize(seeds, 1))
        return result

    shape = tuple(input.shape)
    if not output_mask[1]:
        return self_adjoint(input, axes, apply), None, None
    by_weight = compose(_as_map(input, axes, standardize), Scale(shape, shape, grad_out))
    return self_adjoint(input, axes, apply), _over_rows(by_weight, input, axes), None


def _by_weight(
    grad_out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> Maps:
    axes, shape = last_axes(input, normalized_shape), tuple(input.shape)
    spread = Scale(tuple(weight.shape), shape, grad_out)
    return compose(spread, _standardization(input, axes, mean, rstd)), None, None


rule(
    aten.native_layer_norm_backward.default,
    _cotangent,
    _point,
    None,
    None,
    None,
    _by_weight,
    no_map,
)
