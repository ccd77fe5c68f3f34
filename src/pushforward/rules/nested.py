"""Jagged against padded: rows of different length, end to end or with padding behind each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.errors import UnsupportedError
from pushforward.linear.axes import Shape
from pushforward.linear.kinds.gather import Gather
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import rule

aten = torch.ops.aten


def _padding(values: Shape, padded: Shape, offsets: Sequence[Tensor]) -> AbstractLinearMap:
    """Return the map from (total, *rest) to (rows, longest, *rest)."""
    if len(offsets) != 1:
        raise UnsupportedError(
            f"nested: padding of {len(offsets)} jagged axes: expected 1. Pad one after the other."
        )
    place = torch.arange(padded[1], device=offsets[0].device)
    index = offsets[0][:-1].unsqueeze(1) + place
    index = torch.where(index < offsets[0][1:].unsqueeze(1), index, -1)
    return Gather(values, padded, index.reshape(-1), (0,), (0, 1))


rule(
    aten._jagged_to_padded_dense_forward,
    lambda values, offsets, max_lengths, padding_value=0.0, *, out: _padding(
        tuple(values.shape), tuple(out.shape), offsets
    ),
)
rule(
    aten._padded_dense_to_jagged_forward,
    lambda dense, offsets, total_L=None, *, out: transpose(
        _padding(tuple(out.shape), tuple(dense.shape), offsets)
    ),
)
