"""Embedding: rows of a table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.gather import Gather
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import rule, with_output
from pushforward.rules.views import (
    shape_of,
)

aten = torch.ops.aten

# Embedding: rows of a table. The row at padding_idx is a constant, as PyTorch documents it.


def _embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> AbstractLinearMap:
    shape = shape_of(weight)
    looked_up = _embedding_map(shape, indices, padding_idx)
    if not scale_grad_by_freq:
        return looked_up
    return compose(_divided_by_uses(weight, indices, shape), looked_up)


def _embedding_map(shape: Shape, indices: Tensor, padding_idx: int) -> AbstractLinearMap:
    index = indices.reshape(-1)
    if padding_idx >= 0:
        index = torch.where(index == padding_idx, -1, index)
    out_shape = shape_of(indices) + shape[1:]
    mixed_out = tuple(range(indices.ndim))
    return Gather(shape, out_shape, index, (0,), mixed_out, is_total=padding_idx < 0)


@with_output
def _embedding_dense_backward(
    y: Tensor, indices: Tensor, num_weights: int, padding_idx: int, *_: Any, out: Tensor
) -> AbstractLinearMap:
    """Without ``scale_grad_by_freq``: it is not saved, and PyTorch's second derivative leaves it out, too."""
    return transpose(_embedding_map(shape_of(out), indices, padding_idx))


def _divided_by_uses(like: Tensor, indices: Tensor, shape: Shape) -> AbstractLinearMap:
    """Divide each row by how often it is used: PyTorch's scaling of gradients, here the same in every mode."""
    return Scale(shape, shape, 1 / uses_of(indices, shape[0], like).unsqueeze(-1))


def uses_of(indices: Tensor, num_rows: int, like: Tensor) -> Tensor:
    """Return how often each row is looked up, at least 1."""
    ones = torch.ones((indices.numel(),), dtype=like.dtype, device=like.device)
    counts = torch.zeros((num_rows,), dtype=like.dtype, device=like.device)
    return counts.index_add(0, indices.reshape(-1), ones).clamp(min=1)


rule(aten.embedding, _embedding)
rule(aten.embedding_dense_backward, _embedding_dense_backward)
