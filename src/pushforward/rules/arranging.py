"""Joining, rolls, flips and repetitions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, normalize_axis
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.concat import Concat
from pushforward.linear.kinds.expand import Expand
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.tables import table
from pushforward.rules.indexing import along_axis, between
from pushforward.rules.registry import rule, with_output
from pushforward.rules.views import identity_map, place_along, shape_of, transpose_map

aten = torch.ops.aten

# Joining: one map for each piece


@with_output
def _cat(tensors: Sequence[Tensor], dim: int = 0, *, out: Tensor) -> list[AbstractLinearMap | None]:
    axis, out_shape = normalize_axis(dim, out.ndim), shape_of(out)
    maps: list[AbstractLinearMap | None] = []
    start = 0
    for x in tensors:
        if x.ndim != out.ndim:  # an empty tensor of one axis may be joined to anything
            maps.append(None)
            continue
        maps.append(Concat(shape_of(x), out_shape, axis, start))
        start += x.shape[axis]
    return maps


@with_output
def _stack(tensors: Sequence[Tensor], dim: int = 0, *, out: Tensor) -> list[AbstractLinearMap]:
    axis, out_shape = normalize_axis(dim, out.ndim), shape_of(out)
    shape = (*out_shape[:axis], *out_shape[axis + 1 :])
    return [Concat(shape, out_shape, axis, i, new_axis=True) for i in range(len(tensors))]


@with_output
def _block_diag(tensors: Sequence[Tensor], *, out: Tensor) -> list[AbstractLinearMap]:
    maps = []
    top = left = 0
    for x in tensors:
        shape = (1,) * (2 - x.ndim) + shape_of(x)
        wide = (shape[0], out.shape[1])
        maps.append(
            compose(
                Reshape(shape_of(x), shape),
                Concat(shape, wide, 1, left),
                Concat(wide, shape_of(out), 0, top),
            )
        )
        top, left = top + shape[0], left + shape[1]
    return maps


rule(aten.cat, _cat)
rule(aten.stack, _stack)
rule(aten.block_diag, _block_diag)


# Rolls, flips, repetitions


def _roll(
    x: Tensor, shifts: int | Sequence[int], dims: int | Sequence[int] = ()
) -> AbstractLinearMap:
    shape = shape_of(x)
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    axes = [dims] if isinstance(dims, int) else list(dims)
    if not axes:
        return between(_rolled((x.numel(),), 0, shifts[0], x), shape, shape)
    maps = [identity_map(shape)]
    for shift, dim in zip(shifts, axes, strict=True):
        maps.append(_rolled(shape, normalize_axis(dim, x.ndim), shift, x))
    return compose(*maps)


def _rolled(shape: Shape, axis: int, shift: int, like: Tensor) -> AbstractLinearMap:
    place, n = place_along(shape[axis], like), max(shape[axis], 1)
    index, inverse = table((place - shift) % n), table((place + shift) % n)
    return along_axis(shape, axis, index, inverse=inverse, shift=shift)


def _flip(x: Tensor, dims: Sequence[int]) -> AbstractLinearMap:
    shape = shape_of(x)
    if not shape:
        return identity_map(shape)
    maps = [identity_map(shape)]
    for dim in dims:
        axis = normalize_axis(dim, x.ndim)
        back = table(shape[axis] - 1 - place_along(shape[axis], x))
        maps.append(along_axis(shape, axis, back, inverse=back))
    return compose(*(maps[1:] or maps))


def _rot90(x: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> AbstractLinearMap:
    first, second = (normalize_axis(d, x.ndim) for d in dims)
    quarter = k % 4
    if quarter == 0:
        return identity_map(shape_of(x))
    if quarter == 2:
        return _flip(x, (first, second))
    flipped = _flip(x, (second,) if quarter == 1 else (first,))
    return compose(flipped, transpose_map(shape_of(x), first, second))


def _repeat(x: Tensor, repeats: Sequence[int]) -> AbstractLinearMap:
    shape = (1,) * (len(repeats) - x.ndim) + shape_of(x)
    paired = tuple(m for n in shape for m in (1, n))
    repeated = tuple(m for r, n in zip(repeats, shape, strict=True) for m in (r, n))
    out_shape = tuple(r * n for r, n in zip(repeats, shape, strict=True))
    return compose(
        Reshape(shape_of(x), paired), Expand(paired, repeated), Reshape(repeated, out_shape)
    )


rule(aten.roll, _roll)
rule(aten.flip, _flip)
rule(aten.rot90, _rot90)
rule(aten.repeat, _repeat)
