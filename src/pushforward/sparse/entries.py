"""The entries that a matrix stores, whatever holds it: torch tensors of all layouts, and scipy.sparse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pushforward.errors import ArgumentTypeError, message

# Shape, rows, columns; in any order, perhaps twice
Entries = tuple[tuple[int, int], Tensor, Tensor]


def stored_entries(matrix: Any, function: str) -> Entries:
    """Return shape, rows and columns of the stored entries; of a dense tensor, of its non-zeros.

    Raises:
        ArgumentTypeError: It is no matrix; named is ``function``.
    """
    if isinstance(matrix, Tensor) and matrix.ndim == 2:
        return _torch_entries(matrix.detach())
    if hasattr(matrix, "tocoo"):  # scipy.sparse, which need not be installed
        coo = matrix.tocoo()
        num_rows, num_cols = coo.shape
        rows, cols = (torch.as_tensor(index, dtype=torch.int64) for index in (coo.row, coo.col))
        return (num_rows, num_cols), rows, cols
    got = f"{tuple(matrix.shape)}" if isinstance(matrix, Tensor) else type(matrix).__name__
    expected = "a torch tensor with two axes, or a scipy.sparse matrix"
    raise ArgumentTypeError(
        message(function, "matrix", got, expected, "Pattern.from_coo takes rows and columns.")
    )


def _torch_entries(matrix: Tensor) -> Entries:
    num_rows, num_cols = matrix.shape
    match matrix.layout:
        case torch.sparse_csr | torch.sparse_bsr:
            rows, cols = rows_of(matrix.crow_indices()), matrix.col_indices()
        case torch.sparse_csc | torch.sparse_bsc:
            cols, rows = rows_of(matrix.ccol_indices()), matrix.row_indices()
        case torch.sparse_coo:
            rows, cols = matrix.coalesce().indices()
        case _:
            rows, cols = matrix.nonzero().unbind(1)
    if matrix.layout in (torch.sparse_bsr, torch.sparse_bsc):
        height, width = matrix.values().shape[1:3]
        rows = rows[:, None, None] * height + torch.arange(height, device=rows.device)[:, None]
        cols = cols[:, None, None] * width + torch.arange(width, device=cols.device)
        rows, cols = torch.broadcast_tensors(rows, cols)
    return (num_rows, num_cols), rows, cols


def starts_of(counts: Tensor) -> Tensor:
    """Return where rows of so many entries begin, and where the last one ends."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def rows_of(starts: Tensor) -> Tensor:
    """Return the row of each entry, from where rows begin."""
    counts = starts.diff()
    return torch.arange(len(counts), device=starts.device).repeat_interleave(counts)
