"""Copies into views: the nodes that they leave say nothing, but where the view lies is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pushforward.linear.kinds.gather import Gather
from pushforward.linear.kinds.mask import Mask
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.tape.private_torch import Node, output_metadata
from pushforward.tape.reader import Edge, Geometry


def maps(
    node: Node, edges: Sequence[Edge], geometry: Geometry
) -> list[tuple[Edge, torch.dtype, dict[int, AbstractLinearMap]]]:
    """Return (edge, dtype, maps) for what was there before, and for what was written."""
    base_shape, _, view_shape, _, _ = geometry
    places = positions(geometry)
    device = output_metadata(node)[0].device
    result: list[tuple[Edge, torch.dtype, dict[int, AbstractLinearMap]]] = []
    for index, edge in enumerate(edges):
        if edge[0] < 0:
            continue
        target, nr = node.next_functions[index]
        if index == 0:
            kept = torch.ones(math.prod(base_shape), dtype=torch.bool)
            kept = kept.index_fill(0, places, False).reshape(base_shape).to(device)
            linear_map: AbstractLinearMap = Mask(base_shape, base_shape, kept)
        else:
            axes = tuple(range(len(base_shape)))
            inner = tuple(range(len(view_shape)))
            gather = Gather(base_shape, view_shape, places.to(device), axes, inner, True)
            linear_map = transpose(gather)
        result.append((edge, output_metadata(target)[nr].dtype, {0: linear_map}))
    return result


def positions(geometry: Geometry) -> torch.Tensor:
    """Return the flat position in the base of every element of the view."""
    base_shape, base_stride, shape, stride, offset = geometry
    size = 1 + sum((n - 1) * s for n, s in zip(base_shape, base_stride, strict=True))
    memory = torch.full((max(size, 0),), -1)
    where = torch.arange(math.prod(base_shape)).reshape(base_shape)
    memory.as_strided(base_shape, base_stride).copy_(where)
    return memory.as_strided(shape, stride, offset).reshape(-1)
