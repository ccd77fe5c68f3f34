"""Embedding: rows of a table, and of bags of them the sum, the mean or the largest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.gather import Gather
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import rule, with_output
from pushforward.rules.views import shape_of

aten = torch.ops.aten

# Rows of a table. The row at padding_idx is a constant, as PyTorch documents it.


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
    return Scale(shape, shape, 1 / _uses_of(indices, shape[0], like).unsqueeze(-1))


def _uses_of(indices: Tensor, num_rows: int, like: Tensor) -> Tensor:
    """Return how often each row is looked up, at least 1."""
    ones = torch.ones((indices.numel(),), dtype=like.dtype, device=like.device)
    counts = torch.zeros((num_rows,), dtype=like.dtype, device=like.device)
    return counts.index_add(0, indices.reshape(-1), ones).clamp(min=1)


rule(aten.embedding, _embedding)
rule(aten.embedding_dense_backward, _embedding_dense_backward)

# Bags of embeddings: rows summed, averaged or maximized

BAG_SUM, BAG_MEAN, BAG_MAX = 0, 1, 2


def _bags_of(indices: Tensor, offsets: Tensor, num_bags: int) -> Tensor:
    """Return the bag of every index."""
    place = torch.arange(indices.shape[0], device=indices.device)
    bags = torch.searchsorted(offsets.contiguous(), place.to(offsets.dtype), right=True) - 1
    return bags.clamp(0, max(num_bags - 1, 0))


def _bag_factors(
    indices: Tensor, bags: Tensor, num_bags: int, mode: int, padding_idx: int, like: Tensor
) -> Tensor:
    """Return with what factor each row counts in its bag: 0 for padding, 1 / count in a mean."""
    counted = (indices != padding_idx).to(like.dtype)
    if mode != BAG_MEAN:
        return counted
    count = counted.new_zeros(num_bags).index_add(0, bags, counted).clamp(min=1)
    return counted / count[bags]


@with_output
def _embedding_bag_weight(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = BAG_SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
    *,
    out: tuple[Tensor, ...],
) -> tuple[AbstractLinearMap, None, None, None]:
    in_shape, out_shape = tuple(weight.shape), tuple(out[0].shape)
    num_bags = out_shape[0]
    bags = _bags_of(indices, offsets, num_bags)
    kept = ((1, 1),)
    if mode == BAG_MAX:
        rows = out[3]  # the largest in each bag and column
        empty = (out[2] == 0).unsqueeze(-1)

        def push_max(seeds: Tensor) -> Tensor:
            taken = seeds.gather(1, rows.expand(len(seeds), *rows.shape))
            return torch.where(empty, torch.zeros_like(taken), taken)

        def pull_max(seeds: Tensor) -> Tensor:
            terms = torch.where(empty, torch.zeros_like(seeds), seeds)
            zeros = seeds.new_zeros((len(seeds), *in_shape))
            return zeros.scatter_add(1, rows.expand(len(seeds), *rows.shape), terms)

        return General(in_shape, out_shape, push_max, pull_max, kept), None, None, None
    factors = _bag_factors(indices, bags, num_bags, mode, padding_idx, weight)
    if per_sample_weights is not None:
        factors = factors * per_sample_weights
    if scale_grad_by_freq:
        factors = factors / _uses_of(indices, in_shape[0], weight)[indices]
    column = factors.unsqueeze(-1)

    def push(seeds: Tensor) -> Tensor:
        zeros = seeds.new_zeros((len(seeds), num_bags, seeds.shape[-1]))
        return zeros.index_add(1, bags, seeds.index_select(1, indices) * column)

    def pull(seeds: Tensor) -> Tensor:
        zeros = seeds.new_zeros((len(seeds), in_shape[0], seeds.shape[-1]))
        return zeros.index_add(1, indices, seeds.index_select(1, bags) * column)

    return General(in_shape, out_shape, push, pull, kept, uniform=True), None, None, None


@with_output
def _embedding_bag_samples(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = BAG_SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
    *,
    out: tuple[Tensor, ...],
) -> tuple[AbstractLinearMap, None, None, None]:
    out_shape = tuple(out[0].shape)
    bags = _bags_of(indices, offsets, out_shape[0])
    factors = _bag_factors(indices, bags, out_shape[0], mode, padding_idx, weight)
    rows = weight[indices] * factors.unsqueeze(-1)

    def push(seeds: Tensor) -> Tensor:
        zeros = seeds.new_zeros((len(seeds), *out_shape))
        return zeros.index_add(1, bags, seeds.unsqueeze(-1) * rows)

    def pull(seeds: Tensor) -> Tensor:
        return (seeds.index_select(1, bags) * rows).sum(-1)

    return General(tuple(indices.shape), out_shape, push, pull), None, None, None


rule(aten._embedding_bag, _embedding_bag_weight, per_sample_weights=_embedding_bag_samples)
