"""Products, sums and choices of values: what a sweep of numbers spends its time on."""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Collection

import torch
from torch import Tensor

from pushforward.linear.differentiated import has_duals

LONG = 32  # an axis along which values are laid out
# Products that are added up element by element; matrices are multiplied where there are more
MAX_ADDED = 8
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def times(values: Tensor, factor: Tensor) -> Tensor:
    """Multiply elements, broadcasting; outer products are laid out along long axes, so that loops run along these."""
    shape = [max(sizes) for sizes in zip(values.shape, factor.shape, strict=True)]
    if math.prod(shape) <= max(values.numel(), factor.numel()):
        return values * factor
    order = sorted(range(len(shape)), key=lambda a: shape[a] >= LONG)
    back = sorted(order, key=order.__getitem__)
    product = values.permute(order).contiguous() * factor.permute(order).contiguous()
    return product.permute(back)


def summed_product(values: Tensor, factor: Tensor, axes: Collection[int]) -> Tensor:
    """Multiply elements, broadcasting, and add up along ``axes``, where both have more than one; these stay as 1."""
    ndim = values.ndim
    if ndim > len(string.ascii_letters) or _is_short(values, factor, axes):
        return _summed_short(values, factor, sorted(axes))
    letters = string.ascii_letters[:ndim]
    mine = [a for a in range(ndim) if values.shape[a] != 1]
    its = [a for a in range(ndim) if factor.shape[a] != 1]
    kept = [a for a in range(ndim) if (a in mine or a in its) and a not in axes]
    left, right, result = ("".join(letters[a] for a in part) for part in (mine, its, kept))
    product = torch.einsum(
        f"{left},{right}->{result}",
        values.reshape([values.shape[a] for a in mine]),
        factor.reshape([factor.shape[a] for a in its]),
    )
    sizes = [max(values.shape[a], factor.shape[a]) if a in kept else 1 for a in range(ndim)]
    return product.reshape(sizes)


def _summed_short(values: Tensor, factor: Tensor, axes: list[int]) -> Tensor:
    if not axes:
        return times(values, factor)
    axis, *rest = axes
    pairs = list(zip(values.split(1, axis), factor.split(1, axis), strict=True))
    if rest:
        return functools.reduce(torch.add, [_summed_short(v, f, rest) for v, f in pairs])
    total = times(*pairs[0])
    for pair in pairs[1:]:
        total = torch.addcmul(total, *pair)
    return total


def summed(values: Tensor, axes: Collection[int]) -> Tensor:
    """Add up along ``axes``, which stay as 1."""
    for axis in axes:
        size = values.shape[axis]
        if 0 < size <= MAX_ADDED and values.numel() >= LONG * size:
            values = functools.reduce(torch.add, values.split(1, axis))
        else:
            values = values.sum(axis, keepdim=True)
    return values


def _is_short(values: Tensor, factor: Tensor, axes: Collection[int]) -> bool:
    """Tell whether there are few products for each sum, and many matrices, each of them small."""
    pairs = [(m, n) for a, (m, n) in enumerate(zip(values.shape, factor.shape, strict=True))]
    terms = rows = columns = batch = 1
    for a, (m, n) in enumerate(pairs):
        if a in axes:
            terms *= m
        elif m != 1 and n != 1:
            batch *= m
        else:
            rows, columns = rows * m, columns * n
    return 0 < terms <= MAX_ADDED and batch >= rows * columns


def taken(values: Tensor, axis: int, places: Tensor) -> Tensor:
    """Take the elements at ``places`` along an axis; what is short beside it comes to lie outside."""
    beside = values.numel() // max(values.shape[axis], 1)
    if values.ndim == 1 or (beside >= LONG and axis < values.ndim - 1):
        return values.index_select(axis, places)
    # By element, where index_select takes up to five times as long.
    moved = values.movedim(axis, -1)
    return moved.gather(-1, places.expand(*moved.shape[:-1], -1)).movedim(-1, axis)


def chosen(mask: Tensor, values: Tensor) -> Tensor:
    """Return the values where ``mask`` holds, elsewhere zeros, also in place of what is not finite."""
    integer = _INTEGERS.get(values.element_size()) if values.is_floating_point() else None
    is_followed = has_duals() or (values.requires_grad and torch.is_grad_enabled())
    if integer is None or is_followed or not values.is_cpu:
        return torch.where(mask, values, 0)
    # By bits: here a choice element by element takes as long as twenty products.
    bits = mask.to(integer).neg_() & values.view(integer)
    return bits.view(values.dtype)
