"""Sparse matrices as operators need them: in compressed rows, put together of entries, and computed with."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.sparse.entries import rows_of, starts_of
from pushforward.transforms.sparse_output import warned_of_beta

# Of matrices in compressed rows PyTorch knows few operations; of coordinates it knows those below.


def csr_of(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the matrix with ``values`` at distinct places, in any order."""
    warned_of_beta()
    order = (rows * max(shape[1], 1) + columns).argsort()
    starts = starts_of(torch.bincount(rows, minlength=shape[0]))
    return torch.sparse_csr_tensor(
        starts, columns[order], values[order], shape, check_invariants=False
    )


def coordinates(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, columns and values of the entries of a matrix in compressed rows."""
    return rows_of(matrix.crow_indices()), matrix.col_indices(), matrix.values()


def adjoint_csr(matrix: Tensor, transposes: bool = True) -> Tensor:
    """Return the conjugate transpose, or the conjugate."""
    rows, columns, values = coordinates(matrix)
    if values.is_complex():
        values = values.conj_physical()
    if transposes:
        return csr_of(columns, rows, values, (matrix.shape[1], matrix.shape[0]))
    return csr_of(rows, columns, values, (matrix.shape[0], matrix.shape[1]))


def csr_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product."""
    dtype = torch.promote_types(left.dtype, right.dtype)
    warned_of_beta()
    product = torch.sparse.mm(_coo(left, dtype), _coo(right, dtype))
    return _csr(product)


def csr_sum(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum."""
    dtype = torch.promote_types(first.dtype, second.dtype)
    return _csr(_coo(first, dtype) + _coo(second, dtype))


def scaled_csr(factor: Tensor | complex, matrix: Tensor) -> Tensor:
    """Return the matrix times a number."""
    rows, columns, values = coordinates(matrix)
    return csr_of(rows, columns, factor * values, (matrix.shape[0], matrix.shape[1]))


def diagonal_csr(entries: Tensor) -> Tensor:
    """Return a diagonal matrix."""
    numbers = torch.arange(len(entries), device=entries.device)
    return csr_of(numbers, numbers, entries, (len(entries), len(entries)))


def _coo(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    rows, columns, values = coordinates(matrix)
    return torch.sparse_coo_tensor(
        torch.stack([rows, columns]),
        values.to(dtype),
        matrix.shape,
        is_coalesced=True,
        check_invariants=False,
    )


def _csr(matrix: Tensor) -> Tensor:
    matrix = matrix.coalesce()
    rows, columns = matrix.indices()
    return csr_of(rows, columns, matrix.values(), (matrix.shape[0], matrix.shape[1]))
