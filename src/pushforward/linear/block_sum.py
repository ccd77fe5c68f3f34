"""Sums of blocks: a short tuple of blocks of different structure, merged when that is cheaper."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.block import Block

Blocks = tuple[Block, ...]

MAX_TERMS = 4  # per far end; every further operator is paid once for each term


def add_blocks(terms: Iterable[Block]) -> Blocks:
    """Return the sum of ``terms`` as few blocks: equal structures are added, near-dense ones absorb others."""
    result: list[Block] = []
    for term in terms:
        if result:
            _add_term(result, term)
        else:
            result.append(term)
    return tuple(result)


def _add_term(result: list[Block], term: Block) -> None:
    for i, other in enumerate(result):
        is_same = other.tied == term.tied and other.seed_shape == term.seed_shape
        if is_same and other.source == term.source:
            result[i] = other.with_values(other.values + term.values)
            return
    same_source = [i for i, other in enumerate(result) if other.source == term.source]
    for i in same_source:
        merged = _merge(result[i], term, force=len(same_source) >= MAX_TERMS)
        if merged is not None:
            del result[i]
            _add_term(result, merged)
            return
    result.append(term)


def _merge(a: Block, b: Block, force: bool) -> Block | None:
    """Add blocks of different structure in their common one, if either is more than half as large as that."""
    seed_shape: Shape
    if a.seed_shape == b.seed_shape:
        seed_shape = a.seed_shape
        tied = tuple(x if x == y else None for x, y in zip(a.tied, b.tied, strict=True))
    else:
        seed_shape = (math.prod(a.seed_shape),)
        tied = (None,)
    seeds = math.prod(n for n, axis in zip(seed_shape, tied, strict=True) if axis is None)
    common = seeds * math.prod(a.shape)
    if not force and 2 * max(a.values.numel(), b.values.numel()) < common:
        return None
    a, b = a.to_structure(seed_shape, tied), b.to_structure(seed_shape, tied)
    return a.with_values(a.values + b.values)


def to_dense(blocks: Blocks, shape: Shape, seed_shape: Shape, like: Tensor) -> Tensor:
    """Return the sum as one contiguous tensor ``(*shape, *seed_shape)``; zeros like ``like`` if there is none."""
    return _total([b.to_dense() for b in blocks], shape + seed_shape, like)


def to_rows(blocks: Blocks, shape: Shape, seed_shape: Shape, like: Tensor) -> Tensor:
    """Return the sum as one contiguous tensor ``(*seed_shape, *shape)``; zeros like ``like`` if there is none."""
    return _total([b.to_rows() for b in blocks], seed_shape + shape, like)


def _total(written: list[Tensor], full: Shape, like: Tensor) -> Tensor:
    """Add up blocks that were written out; their seeds may be grouped differently."""
    if not written:
        return torch.zeros(full, dtype=like.dtype, device=like.device)
    total = written[0]
    for other in written[1:]:
        total = total + other.reshape(total.shape)
    return total if total.shape == full else total.reshape(full)


def tensors_in(tangents: Iterable[Tensor | Blocks]) -> list[Tensor]:
    """Return the tensors that tangents are, or that are the values of their blocks."""
    found: list[Tensor] = []
    for each in tangents:
        found += [each] if isinstance(each, Tensor) else [block.values for block in each]
    return found
