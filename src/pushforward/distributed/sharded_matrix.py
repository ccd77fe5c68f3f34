"""ShardedMatrix: a sparse matrix of which each process has some rows, or some columns."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from pushforward.distributed.meshes import anchored, summed
from pushforward.operators.csr import csr_of
from pushforward.operators.linear_operator import LinearOperator
from pushforward.operators.spaces import Space
from pushforward.sparse.entries import stored_entries

NAME = "ShardedMatrix"


class ShardedMatrix(LinearOperator):
    """A sparse matrix of which each process has some rows, or some columns; a `LinearOperator` in every one of them.

    Vectors are the same in every process, before and after a product; all processes have to multiply. Along the axis
    that is shared out a product sums over the processes, along the other one it puts their parts together; both is
    one all-reduce. ``A.gram()`` is AᵀA, whose products take one, too, where rows are shared.

    Attributes:
        local: The part of this process, a sparse tensor.
        share: Whether the parts are ``'rows'`` or ``'columns'``.
        positions: Which rows or columns of the whole matrix the rows or columns of ``local`` are, ascending.
        mesh: The processes.
    """

    def __init__(
        self,
        local: Tensor,
        y: Tensor,
        x: Tensor,
        share: str,
        positions: Tensor,
        mesh: DeviceMesh,
        anchor: Tensor | None = None,
    ) -> None:
        """Keep the part of a Jacobian of an output like ``y`` with respect to an argument like ``x``."""
        super().__init__(Space([x], by_parts=True), Space([y]), local.dtype, x.device)
        self.local, self.share, self.positions, self.mesh = local, share, positions, mesh
        self._anchor = anchor
        _, rows, cols = stored_entries(local, NAME)
        places = positions.to(local.device)
        if share == "columns" and x.is_complex():
            places = (2 * places[:, None] + torch.arange(2, device=local.device)).reshape(-1)
        is_by_rows = share == "rows"
        self._rows = places[rows] if is_by_rows else rows
        self._cols = cols if is_by_rows else places[cols]

    @property
    def _values(self) -> Tensor:
        local = self.local
        return anchored(
            local.coalesce().values() if local.is_sparse else local.values(), self._anchor
        )

    def push(self, columns: Tensor) -> Tensor:
        """Multiply columns."""
        return summed(self.product(columns), self.mesh)

    def pull(self, columns: Tensor) -> Tensor:
        """Multiply columns by the conjugate transpose."""
        return summed(self.product_of_adjoint(columns), self.mesh)

    def gram(self) -> LinearOperator:
        """Return AᴴA, whose products take one all-reduce where rows are shared out."""
        return Gram(self) if self.share == "rows" else self.H @ self

    def product(self, columns: Tensor) -> Tensor:
        """Multiply columns by the entries that this process has."""
        return _multiplied(self._values, self._cols, self._rows, self.shape[0], columns)

    def product_of_adjoint(self, columns: Tensor) -> Tensor:
        """Multiply columns by the conjugate transpose of the entries that this process has."""
        values = self._values
        if values.is_complex():
            values = values.conj_physical()
        return _multiplied(values, self._rows, self._cols, self.shape[1], columns)

    def to_dense(self) -> Tensor:
        """Return the whole matrix, in every process."""
        values = self._values
        flat = values.new_zeros(self.shape[0] * self.shape[1])
        flat = flat.index_copy(0, self._rows * self.shape[1] + self._cols, values)
        return summed(flat, self.mesh).reshape(self.shape)

    def to_csr(self) -> Tensor:
        """Return the whole matrix as a sparse tensor, in every process."""
        counts = torch.zeros(self.mesh.size(), dtype=torch.int64, device=self.device)
        mine = _number(self.mesh)
        counts[mine] = len(self._rows)
        counts = summed(counts, self.mesh)
        begin = int(counts[:mine].sum())
        total, places = int(counts.sum()), torch.arange(begin, begin + len(self._rows))
        rows, cols, values = (
            summed(t.new_zeros(total).index_copy(0, places.to(t.device), t), self.mesh)
            for t in (self._rows, self._cols, self._values)
        )
        return csr_of(rows, cols, values, self.shape)


class Gram(LinearOperator):
    """AᴴA of a matrix whose rows are shared out: each process multiplies by its own, and the products are summed."""

    def __init__(self, of: ShardedMatrix) -> None:
        """Keep the matrix."""
        super().__init__(of.inputs, of.inputs, of.dtype, of.device)
        self._of = of

    @property
    def H(self) -> LinearOperator:
        """The operator itself."""
        return self

    def push(self, columns: Tensor) -> Tensor:
        """Multiply columns."""
        of = self._of
        return summed(of.product_of_adjoint(of.product(columns)), of.mesh)

    def pull(self, columns: Tensor) -> Tensor:
        """Multiply columns."""
        return self.push(columns)

    def to_dense(self) -> Tensor:
        """Return the matrix, in every process."""
        dense: Tensor = (self._of.H @ self._of).to_dense()
        return dense

    def to_csr(self) -> Tensor:
        """Return the matrix as a sparse tensor, in every process."""
        matrix: Tensor = (self._of.H @ self._of).to_csr()
        return matrix


def _multiplied(
    values: Tensor, places: Tensor, targets: Tensor, size: int, columns: Tensor
) -> Tensor:
    if columns.dim() == 2:
        values = values[:, None]
    products = values * columns.index_select(0, places)
    return products.new_zeros((size, *columns.shape[1:])).index_add(0, targets, products)


def _number(mesh: DeviceMesh) -> int:
    """Return which process of the mesh this is."""
    number = 0
    for axis, place in enumerate(mesh.get_coordinate() or ()):
        number = number * mesh.size(axis) + place
    return number
