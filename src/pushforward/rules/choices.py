"""Choices: where, clamp, maximum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pushforward.linear.kinds.mask import Mask
from pushforward.rules.elementwise import mask_map
from pushforward.rules.registry import elementwise, rule

aten = torch.ops.aten
Number = complex  # also float and int

# Choices: where, clamp, maximum


def _clamp(x: Tensor, min: Any = None, max: Any = None, *, out: Tensor) -> Mask:
    inside = torch.ones((), dtype=torch.bool, device=x.device)
    if min is not None:
        inside = inside & (x >= min)
    if max is not None:
        inside = inside & (x <= max)
    return mask_map(x, out, inside)


def _clamp_lower(x: Tensor, min: Any, max: Any = None, *, out: Tensor) -> Mask:
    below = x < min
    return mask_map(min, out, below if max is None else below & (min < max))


def _clamp_upper(x: Tensor, min: Any = None, max: Any = None, *, out: Tensor) -> Mask:
    assert max is not None
    above = x > max
    return mask_map(max, out, above if min is None else above | (max < min))


def _share(x: Tensor, is_less: Tensor, is_equal: Tensor) -> Tensor:
    """Return 1 where the argument ``x`` is chosen, 0 where it is not, 1/2 at a tie."""
    return torch.where(is_equal, 0.5, torch.logical_not(is_less).to(x.dtype))


rule(
    aten.where.self,
    None,
    lambda condition, x, y, *, out: mask_map(x, out, _condition(condition)),
    lambda condition, x, y, *, out: mask_map(y, out, torch.logical_not(condition)),
)


def _condition(condition: Tensor) -> Tensor:
    return condition if condition.dtype is torch.bool else condition != 0


rule(
    aten.masked_fill,
    lambda x, mask, value, *, out: mask_map(x, out, torch.logical_not(mask)),
    None,
    lambda x, mask, value, *, out: mask_map(value, out, mask),
)
rule(aten.nan_to_num, lambda x, *args, out, **kwargs: mask_map(x, out, torch.isfinite(x)))
rule(aten.clamp, _clamp, _clamp_lower, _clamp_upper)
rule(
    aten.clamp_min,
    lambda x, min, *, out: mask_map(x, out, x >= min),
    lambda x, min, *, out: mask_map(min, out, x < min),
)
rule(
    aten.clamp_max,
    lambda x, max, *, out: mask_map(x, out, x <= max),
    lambda x, max, *, out: mask_map(max, out, x > max),
)
elementwise(
    aten.maximum,
    lambda x, y: _share(x, x < y, x == y),
    lambda x, y: _share(y, y < x, x == y),
)
elementwise(
    aten.minimum,
    lambda x, y: _share(x, x > y, x == y),
    lambda x, y: _share(y, y > x, x == y),
)
rule(
    aten.fmax,
    lambda x, y, *, out: mask_map(x, out, (x >= y) | y.isnan()),
    lambda x, y, *, out: mask_map(y, out, torch.logical_not((x >= y) | y.isnan())),
)
rule(
    aten.fmin,
    lambda x, y, *, out: mask_map(x, out, (x <= y) | y.isnan()),
    lambda x, y, *, out: mask_map(y, out, torch.logical_not((x <= y) | y.isnan())),
)
