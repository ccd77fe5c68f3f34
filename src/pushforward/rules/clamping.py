"""Choices whose conventions at ties depend on the version of PyTorch: clamp, fmax, fmin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pushforward.linear.kinds.mask import Mask
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.choices import share_map
from pushforward.rules.elementwise import mask_map
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten

# Up to 2.13 the argument has the slope on a bound, and the first one at a tie of fmax. From 2.14 on it is outside on
# a bound that is a number, and shares with one that is a tensor, as in `maximum`.
SHARES_TIES = torch.__version__ >= "2.14"


# Without shares


@with_output
def _inside(x: Tensor, min: Any = None, max: Any = None, *, out: Tensor) -> Mask:
    inside = torch.ones((), dtype=torch.bool, device=x.device)
    if min is not None:
        inside = inside & (x > min if SHARES_TIES else x >= min)
    if max is not None:
        inside = inside & (x < max if SHARES_TIES else x <= max)
    return mask_map(x, out, inside)


@with_output
def _below(x: Tensor, min: Any, max: Any = None, *, out: Tensor) -> Mask:
    below = x < min
    return mask_map(min, out, below if max is None else below & (min < max))


@with_output
def _above(x: Tensor, min: Any = None, max: Any = None, *, out: Tensor) -> Mask:
    assert max is not None
    above = x > max
    return mask_map(max, out, above if min is None else above | (max < min))


# With shares


@with_output
def _argument(x: Tensor, min: Any = None, max: Any = None, *, out: Tensor) -> AbstractLinearMap:
    if max is None:
        return share_map(x, out, torch.logical_not(x < min), x == min)
    if min is None:
        return share_map(x, out, torch.logical_not(x > max), x == max)
    is_outside = (x < min) | (x > max)
    on_bound = ((x == min) | (x == max)) & (min < max)
    return share_map(x, out, torch.logical_not(is_outside), on_bound)


@with_output
def _lower(x: Tensor, min: Any, max: Any = None, *, out: Tensor) -> AbstractLinearMap:
    if max is None:
        return share_map(min, out, torch.logical_not(x > min), x == min)
    on_bound = (x == min) & (min < max)
    return share_map(min, out, ((x < min) & (min <= max)) | on_bound, on_bound)


@with_output
def _upper(x: Tensor, min: Any = None, max: Any = None, *, out: Tensor) -> AbstractLinearMap:
    assert max is not None
    if min is None:
        return share_map(max, out, torch.logical_not(x < max), x == max)
    on_bound = (x == max) & (min < max)
    is_chosen = ((x > max) & (min <= max)) | (max < min) | on_bound
    return share_map(max, out, is_chosen, on_bound)


if SHARES_TIES:
    rule(aten.clamp.default, _inside)
    rule(aten.clamp.Tensor, _argument, _lower, _upper)
    rule(aten.clamp_min.default, _inside)
    rule(aten.clamp_min.Tensor, _argument, _lower)
    rule(aten.clamp_max.default, with_output(lambda x, max, *, out: _inside(x, None, max, out=out)))
    rule(
        aten.clamp_max.Tensor,
        with_output(lambda x, max, *, out: _argument(x, None, max, out=out)),
        with_output(lambda x, max, *, out: _upper(x, None, max, out=out)),
    )
else:
    rule(aten.clamp, _inside, _below, _above)
    rule(aten.clamp_min, _inside, _below)
    rule(
        aten.clamp_max,
        with_output(lambda x, max, *, out: _inside(x, None, max, out=out)),
        with_output(lambda x, max, *, out: _above(x, None, max, out=out)),
    )


# What is not a number is never chosen by these two


def _first(x: Tensor, y: Tensor, out: Tensor, is_before: Tensor) -> AbstractLinearMap:
    is_chosen = is_before | y.isnan()
    return share_map(x, out, is_chosen, x == y) if SHARES_TIES else mask_map(x, out, is_chosen)


def _second(x: Tensor, y: Tensor, out: Tensor, is_before: Tensor) -> AbstractLinearMap:
    is_chosen = torch.logical_not(is_before | y.isnan())
    if SHARES_TIES:
        return share_map(y, out, is_chosen | (x == y), x == y)
    return mask_map(y, out, is_chosen)


rule(
    aten.fmax,
    with_output(lambda x, y, *, out: _first(x, y, out, x >= y)),
    with_output(lambda x, y, *, out: _second(x, y, out, x >= y)),
)
rule(
    aten.fmin,
    with_output(lambda x, y, *, out: _first(x, y, out, x <= y)),
    with_output(lambda x, y, *, out: _second(x, y, out, x <= y)),
)
