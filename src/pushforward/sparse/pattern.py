"""Pattern: where a matrix may have non-zeros. Index tensors on the CPU and no values."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import ArgumentValueError, message
from pushforward.sparse.entries import rows_of, starts_of, stored_entries
from pushforward.sparse.picture import picture


class Pattern:
    """The positions at which a matrix may be non-zero, row by row (CSR). Never changed after it is made.

    Args:
        shape: Rows and columns.
        indptr: ``(rows + 1,)``; row ``i`` has the entries ``indptr[i]`` to ``indptr[i + 1]``.
        indices: ``(nnz,)``; the column of each entry, increasing within a row.

    Raises:
        ArgumentValueError: The tensors are no such description.

    Example:
        >>> pattern = Pattern((2, 3), torch.tensor([0, 1, 3]), torch.tensor([0, 1, 2]))
        >>> pattern
        Pattern(2×3, 3 non-zeros)
        >>> pattern.rows, pattern.cols
        (tensor([0, 1, 1]), tensor([0, 1, 2]))
    """

    def __init__(self, shape: tuple[int, int], indptr: Tensor, indices: Tensor) -> None:
        """Check the tensors and keep them."""
        num_rows, num_cols = shape
        self.shape = (int(num_rows), int(num_cols))
        self.indptr = indptr.detach().to("cpu", torch.int64).contiguous()
        self.indices = indices.detach().to("cpu", torch.int64).contiguous()
        problem = self._problem()
        if problem:
            raise ArgumentValueError(message("Pattern", *problem))

    def _problem(self) -> tuple[str, object, str, str] | None:
        """Return what is wrong with the tensors, None if nothing is."""
        (num_rows, num_cols), indptr, indices = self.shape, self.indptr, self.indices
        if num_rows < 0 or num_cols < 0:
            return "shape", self.shape, "two sizes", "Give (rows, columns)."
        if indptr.shape != (num_rows + 1,) or indices.ndim != 1:
            shapes = tuple(indptr.shape), tuple(indices.shape)
            return (
                "indptr and indices",
                shapes,
                f"shapes ({num_rows + 1},) and (nnz,)",
                "Pattern.from_coo takes rows and columns.",
            )
        counts = indptr.diff()
        if indptr[0] != 0 or indptr[-1] != len(indices) or bool((counts < 0).any()):
            return (
                "indptr",
                indptr,
                f"numbers that increase from 0 to {len(indices)}",
                "Pattern.from_coo takes rows and columns.",
            )
        if len(indices):
            low, high = (int(bound) for bound in indices.aminmax())
            if low < 0 or high >= num_cols:
                return "indices", (low, high), f"columns in [0, {num_cols})", "Check the shape."
            increases = torch.ones(len(indices) + 1, dtype=torch.bool)
            torch.gt(indices[1:], indices[:-1], out=increases[1:-1])
            increases[indptr] = True
            if not bool(increases.all()):
                return (
                    "indices",
                    "columns out of order, or twice",
                    "columns that increase within each row",
                    "Pattern.from_coo sorts and drops duplicates.",
                )
        return None

    @classmethod
    def from_coo(cls, shape: tuple[int, int], rows: Tensor, cols: Tensor) -> Pattern:
        """Return the pattern with entries at ``(rows[k], cols[k])``, in any order; duplicates count once.

        Example:
            >>> Pattern.from_coo((2, 2), torch.tensor([1, 0, 1]), torch.tensor([1, 0, 1])).cols
            tensor([0, 1])
        """
        num_rows, num_cols = shape
        rows, cols = (x.detach().to("cpu", torch.int64).reshape(-1) for x in (rows, cols))
        for name, found, size in (("rows", rows, num_rows), ("columns", cols, num_cols)):
            if len(found) and (int(found.min()) < 0 or int(found.max()) >= size):
                got, expected = (int(found.min()), int(found.max())), f"{name} in [0, {size})"
                raise ArgumentValueError(
                    message("Pattern.from_coo", name, got, expected, "Check the shape.")
                )
        keys = rows * num_cols + cols
        if not bool((keys[1:] > keys[:-1]).all()):
            keys = keys.unique()
            rows = keys // max(num_cols, 1)
            cols = keys - rows * num_cols
        return cls((num_rows, num_cols), _starts(rows, num_rows), cols)

    @classmethod
    def from_matrix(cls, matrix: Any) -> Pattern:
        """Return the pattern of a torch tensor of any layout, or of a scipy.sparse matrix or array.

        Entries that a sparse matrix stores count, also where their value is zero; of a dense one, the non-zeros.

        Raises:
            ArgumentTypeError: It is none of these.

        Example:
            >>> print(Pattern.from_matrix(torch.eye(4)))
            Pattern(4×4, 4 non-zeros)
            density 25 %, 1 to 1 a row
            ⠑⢄
        """
        return pattern_of("Pattern.from_matrix", matrix)

    @property
    def nnz(self) -> int:
        """The number of entries."""
        return len(self.indices)

    @property
    def cols(self) -> Tensor:
        """The column of each entry; the same as ``indices``."""
        return self.indices

    @functools.cached_property
    def rows(self) -> Tensor:
        """The row of each entry."""
        return rows_of(self.indptr)

    @functools.cached_property
    def by_columns(self) -> Tensor:
        """The entries column by column: CSC values are the CSR values at these places."""
        return torch.sort(self.indices, stable=True).indices

    @functools.cached_property
    def _transposed(self) -> Pattern:
        order = self.by_columns
        cols = self.indices[order]
        return Pattern(self.shape[::-1], _starts(cols, self.shape[1]), self.rows[order])

    def transpose(self) -> Pattern:
        """Return the pattern with rows and columns exchanged; its arrays are the CSC arrays of this one."""
        return self._transposed

    def of_rows(self, kept: Tensor) -> Pattern:
        """Return the pattern with the entries of the rows in the mask ``(rows,)``; the others are empty."""
        starts = starts_of(torch.where(kept, self.indptr.diff(), 0))
        return Pattern(self.shape, starts, self.indices[kept[self.rows]])

    @functools.cached_property
    def is_symmetric(self) -> bool:
        """Whether the pattern equals its transpose."""
        return self.shape[0] == self.shape[1] and self == self.transpose()

    def __or__(self, other: Pattern) -> Pattern:
        """Return the union: the entries of either."""
        if not isinstance(other, Pattern):
            return NotImplemented
        if other.shape != self.shape:
            got, expected = f"{self.shape} and {other.shape}", "equal shapes"
            way_out = "A union is of patterns of one function."
            raise ArgumentValueError(message("Pattern.__or__", "shapes", got, expected, way_out))
        if self == other:
            return self
        rows, cols = (
            torch.cat(pair) for pair in ((self.rows, other.rows), (self.cols, other.cols))
        )
        return Pattern.from_coo(self.shape, rows, cols)

    def __eq__(self, other: object) -> bool:
        """Tell whether shape and entries are the same."""
        if self is other:
            return True
        if not isinstance(other, Pattern):
            return NotImplemented
        return (
            self.shape == other.shape
            and torch.equal(self.indptr, other.indptr)
            and torch.equal(self.indices, other.indices)
        )

    def __hash__(self) -> int:
        """Equal patterns hash alike."""
        return hash((self.shape, self.nnz))

    def to_torch(
        self, values: Tensor | None = None, layout: torch.layout = torch.sparse_csr
    ) -> Tensor:
        """Return a sparse tensor with ``values``, in CSR order, at the entries; without values, of True.

        Args:
            values: ``(nnz,)``; differentiable.
            layout: ``torch.sparse_coo``, ``torch.sparse_csr`` or ``torch.sparse_csc``.
        """
        if values is None:
            values = torch.ones(self.nnz, dtype=torch.bool)
        self._check_values("Pattern.to_torch", values)
        if layout == torch.sparse_coo:
            index = torch.stack((self.rows, self.cols)).to(values.device)
            return torch.sparse_coo_tensor(
                index, values, self.shape, is_coalesced=True, check_invariants=False
            )
        if layout not in (torch.sparse_csr, torch.sparse_csc):
            expected = "torch.sparse_coo, torch.sparse_csr or torch.sparse_csc"
            raise ArgumentValueError(
                message("Pattern.to_torch", "layout", layout, expected, "Convert the result.")
            )
        held = self
        if layout == torch.sparse_csc:
            held, values = self.transpose(), values[self.by_columns.to(values.device)]
        return torch.sparse_compressed_tensor(
            held.indptr.to(values.device),
            held.indices.to(values.device),
            values,
            self.shape,
            layout=layout,
            check_invariants=False,
        )

    def to_scipy(self, values: Tensor | None = None) -> Any:
        """Return a ``scipy.sparse.csr_array`` with ``values``, in CSR order, at the entries; without, of True."""
        import scipy.sparse

        if values is None:
            values = torch.ones(self.nnz, dtype=torch.bool)
        self._check_values("Pattern.to_scipy", values)
        arrays = (x.detach().cpu().numpy() for x in (values, self.indices, self.indptr))
        return scipy.sparse.csr_array(tuple(arrays), shape=self.shape)

    def _check_values(self, function: str, values: Tensor) -> None:
        if values.shape != (self.nnz,):
            got, expected = tuple(values.shape), f"({self.nnz},), one for each entry"
            raise ArgumentValueError(
                message(
                    function, "values", got, expected, "They are in the order of rows and cols."
                )
            )

    def __repr__(self) -> str:
        """Show shape and number of entries on one line."""
        num_rows, num_cols = self.shape
        return f"Pattern({num_rows}×{num_cols}, {self.nnz} non-zeros)"

    def __str__(self) -> str:
        """Show the entries as a small picture of dots, at most 40 columns wide."""
        lines = [repr(self)]
        if self.nnz:
            counts = self.indptr.diff()
            density = 100 * self.nnz / (self.shape[0] * self.shape[1])
            lines.append(f"density {density:.3g} %, {counts.min()} to {counts.max()} a row")
            lines += picture(self.shape, self.rows, self.cols)
        return "\n".join(lines)


def pattern_of(name: str, matrix: Any) -> Pattern:
    """Return the pattern of a matrix as `Pattern.from_matrix` does; errors say ``name``."""
    if isinstance(matrix, Pattern):
        return matrix
    return Pattern.from_coo(*stored_entries(matrix, name))


def _starts(sorted_index: Tensor, size: int) -> Tensor:
    """Return where each of ``size`` numbers begins in ``sorted_index``, and its length at the end."""
    return starts_of(torch.bincount(sorted_index, minlength=size))
