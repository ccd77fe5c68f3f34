"""From blocks to the Jacobians that the caller gets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.block import Block, complex_identity, identity
from pushforward.linear.block_sum import Blocks, to_dense, to_rows
from pushforward.tape.distributed_tensors import everywhere, mesh_of


def start(primal: Tensor, source: int, num_batch: int = 0) -> Block:
    """Return the block with which forward mode starts at an input, reverse mode at an output.

    The first ``num_batch`` axes are a batch: what is done to one of its members is done to all.
    """
    make = complex_identity if primal.is_complex() else identity
    block = make(primal, source, num_batch)
    mesh = mesh_of((primal,))
    return block if mesh is None else block.with_values(everywhere(block.values, mesh))


def directions(primal: Tensor, num_batch: int = 0) -> Shape:
    """Return the axes of a Jacobian that belong to ``primal``: a complex number has two directions."""
    shape = tuple(primal.shape[num_batch:])
    return (*shape, 2) if primal.is_complex() else shape


def jacobian_dtype(primal: Tensor, x: Tensor) -> torch.dtype:
    """Return the promoted dtype of output and input."""
    first, second = primal.dtype, x.dtype
    return first if first is second else torch.promote_types(first, second)


def from_tangents(blocks: Blocks, primal: Tensor, x: Tensor, num_batch: int = 0) -> Tensor:
    """Write the Jacobian of output ``primal`` with respect to ``x`` from blocks that were pushed."""
    jacobian = to_dense(blocks, tuple(primal.shape), directions(x, num_batch), like=primal)
    return _in_dtype(jacobian, primal, x)


def from_cotangents(blocks: Blocks, primal: Tensor, x: Tensor, num_batch: int = 0) -> Tensor:
    """Write the Jacobian of output ``primal`` with respect to ``x`` from blocks that were pulled."""
    seed_shape = directions(primal, num_batch)
    rows = to_rows(blocks, tuple(x.shape), seed_shape, like=x)
    if num_batch:
        axes = tuple(range(num_batch))
        rows = rows.movedim(tuple(len(seed_shape) + i for i in axes), axes)
    return from_rows(rows, primal, x)


def from_rows(rows: Tensor, primal: Tensor, x: Tensor) -> Tensor:
    """Write the Jacobian from the cotangents ``(*batch, *directions of the output, *x.shape without batch)``.

    Math: with Re⟨w, J v⟩ = Re⟨Jᵀw, v⟩, w = 1 gives the real part of a row, w = i its imaginary part; the parts of
    a complex cotangent belong to the two directions of its input.
    """
    if rows.is_complex():
        rows = torch.view_as_real(rows.resolve_conj())
    if primal.is_complex():
        real, imaginary = rows.unbind(primal.dim())
        rows = torch.complex(real, imaginary)
    return _in_dtype(rows, primal, x)


def _in_dtype(jacobian: Tensor, primal: Tensor, x: Tensor) -> Tensor:
    dtype = jacobian_dtype(primal, x)
    if jacobian.dtype is dtype and jacobian.is_contiguous():
        return unpinned(jacobian)
    return jacobian.to(dtype).contiguous()


def unpinned(result: Tensor) -> Tensor:
    """Return ``result``, copied if it is a view that would keep more than twice its size alive."""
    base = result._base
    return result if base is None or base.numel() <= 2 * result.numel() else result.clone()


def result_bytes(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> int:
    """Return how many bytes the Jacobians of ``outputs`` with respect to ``inputs`` have."""
    return sum(
        y.numel() * math.prod(directions(x)) * jacobian_dtype(y, x).itemsize
        for y in outputs
        for x in inputs
    )
