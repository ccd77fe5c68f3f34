"""Diagonals: ties written out as elements, zero where positions of two axes do not belong together."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.linear.axes import Part, Tie


def on_diagonal(values: Tensor, axis: int, first: int, second: int) -> Tensor:
    """Return values whose ``axis`` has become the diagonal of the axes ``first`` and ``second``."""
    if not hasattr(values, "placements"):
        if axis != values.ndim - 1:
            values = values.movedim(axis, -1)
        return torch.diag_embed(values, 0, first, second)
    # Of distributed tensors each process has its rows: elementwise operators leave them where they are.
    size = values.shape[axis]
    mask = spread(_eye(size, values), values.ndim + 1, first, second) != 0
    return torch.where(mask, values.unsqueeze(second), values.new_zeros(()))


def spread(matrix: Tensor, ndim: int, rows: int, cols: int) -> Tensor:
    """Return a matrix whose axes are two of so many."""
    shape = [1] * ndim
    shape[rows], shape[cols] = matrix.shape
    return matrix.reshape(shape)


def digits(tie: Tie, size: int, full: int, like: Tensor) -> Tensor:
    """Return ones where a position of a near axis belongs to a seed, ``(size, full)``."""
    eye = _eye(size, like)
    if not isinstance(tie, Part):
        return eye
    return eye.repeat_interleave(tie.within, 1).repeat(1, full // (size * tie.within))


def _eye(size: int, like: Tensor) -> Tensor:
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return eye * like.new_ones(()) if hasattr(like, "placements") else eye
