"""Padding: axis by axis, from the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import with_size
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.concat import Concat
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.tables import table
from pushforward.rules.indexing import along_axis
from pushforward.rules.registry import rule
from pushforward.rules.views import identity_map, shape_of, slice_map

aten = torch.ops.aten


def _constant_pad(x: Tensor, pad: Sequence[int], value: complex = 0) -> AbstractLinearMap:
    maps = [identity_map(shape_of(x))]
    for axis, before, behind in _pad_axes(x, pad):
        shape = maps[-1].out_shape
        taken = slice_map(shape, axis, max(-before, 0), shape[axis] - max(-behind, 0))
        n = taken.out_shape[axis] + max(before, 0) + max(behind, 0)
        maps.append(taken)
        if before > 0 or behind > 0:
            out_shape = with_size(shape, axis, n)
            maps.append(Concat(taken.out_shape, out_shape, axis, max(before, 0)))
    return compose(*(maps[1:] or maps))


def _pad_axes(x: Tensor, pad: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (axis, places before, places behind) of the axes that are padded."""
    triples = [(x.ndim - 1 - k, pad[2 * k], pad[2 * k + 1]) for k in range(len(pad) // 2)]
    return [(axis, before, behind) for axis, before, behind in triples if before or behind]


def _pad_by(
    source: Callable[[Tensor, int], Tensor],
) -> Callable[[Tensor, Sequence[int]], AbstractLinearMap]:
    """Return the partial of a padding; ``source`` says which of n positions stands at a place."""

    def partial(x: Tensor, padding: Sequence[int]) -> AbstractLinearMap:
        maps = [identity_map(shape_of(x))]
        for axis, before, behind in _pad_axes(x, padding):
            n = x.shape[axis]
            place = torch.arange(-before, n + behind, device=x.device)
            maps.append(along_axis(maps[-1].out_shape, axis, table(source(place, n))))
        return compose(*(maps[1:] or maps))

    return partial


reflection_pad_map = _pad_by(lambda place, n: n - 1 - (n - 1 - place.abs()).abs())
replication_pad_map = _pad_by(lambda place, n: place.clamp(0, n - 1))


rule(aten.constant_pad_nd, _constant_pad)
rule(aten.reflection_pad1d, reflection_pad_map)
rule(aten.reflection_pad2d, reflection_pad_map)
rule(aten.reflection_pad3d, reflection_pad_map)
rule(aten.replication_pad1d, replication_pad_map)
rule(aten.replication_pad2d, replication_pad_map)
rule(aten.replication_pad3d, replication_pad_map)
