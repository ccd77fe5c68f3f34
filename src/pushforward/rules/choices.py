"""Choices: where, maximum."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.elementwise import mask_map
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten


def share_map(x: Tensor, out: Tensor, is_chosen: Tensor, is_tied: Tensor) -> AbstractLinearMap:
    """Return the map of an argument ``x`` that is the output where it is chosen, and half of it where tied."""
    chosen = mask_map(x, out, is_chosen)
    shape = tuple(out.shape)
    return compose(chosen, Scale(shape, shape, torch.where(is_tied, 0.5, 1.0).to(out.dtype)))


rule(
    aten.where.self,
    None,
    with_output(lambda condition, x, y, *, out: mask_map(x, out, _condition(condition))),
    with_output(lambda condition, x, y, *, out: mask_map(y, out, torch.logical_not(condition))),
)


def _condition(condition: Tensor) -> Tensor:
    return condition if condition.dtype is torch.bool else condition != 0


rule(
    aten.masked_fill,
    with_output(lambda x, mask, value, *, out: mask_map(x, out, torch.logical_not(mask))),
    None,
    with_output(lambda x, mask, value, *, out: mask_map(value, out, mask)),
)
rule(
    aten.nan_to_num,
    with_output(lambda x, *args, out, **kwargs: mask_map(x, out, torch.isfinite(x))),
)
# Neither is less if one is not a number: both count then.
rule(
    aten.maximum,
    with_output(lambda x, y, *, out: share_map(x, out, torch.logical_not(x < y), x == y)),
    with_output(lambda x, y, *, out: share_map(y, out, torch.logical_not(y < x), x == y)),
)
rule(
    aten.minimum,
    with_output(lambda x, y, *, out: share_map(x, out, torch.logical_not(x > y), x == y)),
    with_output(lambda x, y, *, out: share_map(y, out, torch.logical_not(y > x), x == y)),
)
