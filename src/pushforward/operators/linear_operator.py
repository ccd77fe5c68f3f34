"""LinearOperator: a matrix that is known by its products, and the algebra of such matrices."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import ArgumentTypeError, ArgumentValueError, message
from pushforward.operators.csr import adjoint_csr, csr_product, csr_sum, diagonal_csr, scaled_csr
from pushforward.operators.factors import is_number, plain, result_type
from pushforward.operators.scipy_operator import scipy_operator
from pushforward.operators.spaces import Space
from pushforward.tape.private_torch import left_alone_by_dynamo

NAME = "LinearOperator"


class LinearOperator(abc.ABC):
    """A matrix that is known by its products with vectors; none of its entries is stored.

    ``A @ v`` multiplies a vector ``(columns,)``, the columns of a matrix ``(columns, k)``, or a pytree (tuple, list,
    dict) like the arguments that the columns stand for, which gives one like the output. ``A @ B``, ``A + B``,
    ``A - B``, ``c * A``, ``A.T``, ``A.H`` and ``A.add_diagonal(d)`` are operators again; they compute nothing. Autograd
    flows through products, to the vectors and to what the operators were made of.

    Attributes:
        inputs: The `Space` of the columns: ``A.inputs.flatten(tree)`` is a vector, ``A.inputs.unflatten(v)`` a pytree.
        outputs: That of the rows.
        dtype: Of the entries.
        device: Where they are.
    """

    # NumPy leaves ``array @ operator`` to us, who refuse it.
    __array_ufunc__ = None

    def __init__(
        self, inputs: Space, outputs: Space, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Say between which spaces it maps."""
        self.inputs, self.outputs, self.dtype, self.device = inputs, outputs, dtype, device

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns."""
        return self.outputs.size, self.inputs.size

    @abc.abstractmethod
    def push(self, columns: Tensor) -> Tensor:
        """Multiply ``(columns,)`` or ``(columns, k)``, unchecked."""

    @abc.abstractmethod
    def pull(self, columns: Tensor) -> Tensor:
        """Multiply ``(rows,)`` or ``(rows, k)`` by the conjugate transpose, unchecked."""

    @abc.abstractmethod
    def to_dense(self) -> Tensor:
        """Return the matrix."""

    @abc.abstractmethod
    def to_csr(self) -> Tensor:
        """Return the matrix as a sparse tensor, with the entries that may be nonzero by the structure of the function.

        Raises:
            UnsupportedError: As `jacobian` with ``output='csr'``.
        """

    def to_scipy(self) -> Any:
        """Return a ``scipy.sparse.linalg.LinearOperator``, which takes and gives NumPy arrays.

        Example:
            >>> from pushforward import jacobian_operator
            >>> jacobian_operator(torch.sin, torch.zeros(2)).to_scipy() @ [1.0, 2.0]
            array([1., 2.], dtype=float32)
        """
        return scipy_operator(self, self.H)

    @property
    def H(self) -> LinearOperator:
        """The conjugate transpose."""
        return Adjoint(self)

    @property
    def T(self) -> LinearOperator:
        """The transpose."""
        return self.H.conj()

    @property
    def mT(self) -> LinearOperator:
        """The transpose."""
        return self.T

    @property
    def mH(self) -> LinearOperator:
        """The conjugate transpose."""
        return self.H

    def conj(self) -> LinearOperator:
        """Return the conjugate; a real operator itself."""
        return Conjugate(self) if self.dtype.is_complex else self

    def add_diagonal(self, diagonal: Tensor | float) -> LinearOperator:
        """Return the operator plus a diagonal matrix: a number, or a tensor ``(columns,)``, on its diagonal.

        ``(J.T @ J).add_diagonal(damping)`` is the matrix of the Levenberg-Marquardt method.
        """
        return Sum(self, Diagonal(diagonal, self))

    @left_alone_by_dynamo
    def __matmul__(self, other: Any) -> Any:
        """Multiply a vector, the columns of a matrix, a pytree, or another operator."""
        if isinstance(other, LinearOperator):
            return Product(self, other)
        if isinstance(other, Tensor):
            self._check(other, self.shape[1])
            return self.push(other)
        if isinstance(other, (tuple, list, dict)):
            return self.outputs.unflatten(self.push(self.inputs.flatten(other)))
        raise self._is_no_operand("right operand of @", other)

    @left_alone_by_dynamo
    def __rmatmul__(self, other: Any) -> Tensor:
        """Multiply a row ``(rows,)``, or rows ``(k, rows)``, from the left."""
        if not isinstance(other, Tensor):
            raise self._is_no_operand("left operand of @", other)
        product: Tensor = self.T @ (other if other.dim() == 1 else other.mT)
        return product if other.dim() == 1 else product.mT

    def _check(self, given: Tensor, size: int) -> None:
        if given.layout is not torch.strided:
            what, way_out = "layout of the right operand of @", "Use .to_dense()."
            raise ArgumentTypeError(message(NAME, what, given.layout, "a dense tensor", way_out))
        if given.dim() not in (1, 2) or given.shape[0] != size:
            raise ArgumentValueError(
                message(
                    NAME,
                    f"shape of what {self!r} multiplies",
                    tuple(given.shape),
                    f"({size},), or ({size}, k) for k columns",
                    "Operators multiply flat vectors: use .flatten(), or .inputs.flatten(tree).",
                )
            )

    def _is_no_operand(self, what: str, given: object) -> ArgumentTypeError:
        return ArgumentTypeError(
            message(
                NAME,
                what,
                type(given).__name__,
                "a tensor, a pytree of tensors, or an operator",
                "torch.as_tensor makes a tensor of an array; .to_scipy() gives what multiplies arrays.",
            )
        )

    def __add__(self, other: Any) -> LinearOperator:
        """Return the sum."""
        return Sum(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: Any) -> LinearOperator:
        """Return the difference."""
        return Sum(self, Scaled(-1, other)) if isinstance(other, LinearOperator) else NotImplemented

    def __neg__(self) -> LinearOperator:
        """Return the operator times -1."""
        return Scaled(-1, self)

    def __mul__(self, factor: Any) -> LinearOperator:
        """Return the operator times a number, or a tensor without axes."""
        return Scaled(factor, self) if is_number(factor) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> LinearOperator:
        """Return the operator divided by a number, or a tensor without axes."""
        if not is_number(divisor):
            return NotImplemented
        if isinstance(divisor, Tensor):  # a quotient in its own dtype may be less precise
            divisor = divisor.to(result_type(self.dtype, divisor))
        return Scaled(1 / divisor, self)

    def __repr__(self) -> str:
        """Show shape and dtype."""
        return f"{type(self).__name__}({self.shape[0]}×{self.shape[1]}, {self.dtype})"


class Adjoint(LinearOperator):
    """The conjugate transpose of an operator."""

    def __init__(self, of: LinearOperator) -> None:
        """Transpose."""
        super().__init__(of.outputs, of.inputs, of.dtype, of.device)
        self.of = of

    @property
    def H(self) -> LinearOperator:
        """The operator itself."""
        return self.of

    def push(self, columns: Tensor) -> Tensor:
        """Multiply columns."""
        return self.of.pull(columns)

    def pull(self, columns: Tensor) -> Tensor:
        """Multiply columns by the operator itself."""
        return self.of.push(columns)

    def to_dense(self) -> Tensor:
        """Return the matrix."""
        return self.of.to_dense().mH

    def to_csr(self) -> Tensor:
        """Return the matrix as a sparse tensor."""
        return adjoint_csr(self.of.to_csr())


class Conjugate(LinearOperator):
    """The conjugate of an operator."""

    def __init__(self, of: LinearOperator) -> None:
        """Conjugate."""
        super().__init__(of.inputs, of.outputs, of.dtype, of.device)
        self.of = of

    def conj(self) -> LinearOperator:
        """Return the operator itself."""
        return self.of

    def push(self, columns: Tensor) -> Tensor:
        """Multiply columns."""
        return self.of.push(columns.conj()).conj()

    def pull(self, columns: Tensor) -> Tensor:
        """Multiply columns by the transpose."""
        return self.of.pull(columns.conj()).conj()

    def to_dense(self) -> Tensor:
        """Return the matrix."""
        return self.of.to_dense().conj().resolve_conj()

    def to_csr(self) -> Tensor:
        """Return the matrix as a sparse tensor."""
        return adjoint_csr(self.of.to_csr(), transposes=False)


class Product(LinearOperator):
    """The product of two operators."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        """Check that they fit."""
        if left.shape[1] != right.shape[0]:
            raise _do_not_fit("@", left, right, "as many columns as the right one has rows")
        dtype = torch.promote_types(left.dtype, right.dtype)
        super().__init__(right.inputs, left.outputs, dtype, left.device)
        self.left, self.right = left, right

    def push(self, columns: Tensor) -> Tensor:
        """Multiply columns by one after the other."""
        return self.left.push(self.right.push(columns))

    def pull(self, columns: Tensor) -> Tensor:
        """Multiply columns by one conjugate transpose after the other."""
        return self.right.pull(self.left.pull(columns))

    def to_dense(self) -> Tensor:
        """Return the matrix."""
        return self.left.to_dense().to(self.dtype) @ self.right.to_dense().to(self.dtype)

    def to_csr(self) -> Tensor:
        """Return the matrix as a sparse tensor."""
        return csr_product(self.left.to_csr(), self.right.to_csr())


class Sum(LinearOperator):
    """The sum of two operators."""

    def __init__(self, first: LinearOperator, second: LinearOperator) -> None:
        """Check that they fit."""
        if first.shape != second.shape:
            raise _do_not_fit("+", first, second, "one shape")
        dtype = torch.promote_types(first.dtype, second.dtype)
        super().__init__(first.inputs, first.outputs, dtype, first.device)
        self.first, self.second = first, second

    def push(self, columns: Tensor) -> Tensor:
        """Multiply columns."""
        return self.first.push(columns) + self.second.push(columns)

    def pull(self, columns: Tensor) -> Tensor:
        """Multiply columns by the conjugate transpose."""
        return self.first.pull(columns) + self.second.pull(columns)

    def to_dense(self) -> Tensor:
        """Return the matrix."""
        return self.first.to_dense() + self.second.to_dense()

    def to_csr(self) -> Tensor:
        """Return the matrix as a sparse tensor."""
        return csr_sum(self.first.to_csr(), self.second.to_csr())


class Scaled(LinearOperator):
    """An operator times a number."""

    def __init__(self, factor: Tensor | complex, of: LinearOperator) -> None:
        """Multiply."""
        if not isinstance(factor, Tensor):
            factor = plain(factor)
        dtype = result_type(of.dtype, factor)
        super().__init__(of.inputs, of.outputs, dtype, of.device)
        self.factor, self.of = factor, of

    def push(self, columns: Tensor) -> Tensor:
        """Multiply columns."""
        return self.factor * self.of.push(columns)

    def pull(self, columns: Tensor) -> Tensor:
        """Multiply columns by the conjugate transpose."""
        factor = self.factor.conj() if isinstance(self.factor, Tensor) else self.factor.conjugate()
        return factor * self.of.pull(columns)

    def to_dense(self) -> Tensor:
        """Return the matrix."""
        return self.factor * self.of.to_dense()

    def to_csr(self) -> Tensor:
        """Return the matrix as a sparse tensor."""
        return scaled_csr(self.factor, self.of.to_csr())


class Diagonal(LinearOperator):
    """A diagonal matrix, of the size of a square operator."""

    def __init__(self, diagonal: Tensor | float, like: LinearOperator) -> None:
        """Check what stands on the diagonal."""
        rows, columns = like.shape
        if rows != columns:
            what, way_out = "shape of what add_diagonal adds to", "Add to J.T @ J instead of J."
            raise ArgumentValueError(message(NAME, what, like.shape, "a square", way_out))
        if not isinstance(diagonal, Tensor):
            diagonal = plain(diagonal)
        elif tuple(diagonal.shape) not in ((), (rows,)):
            got, way_out = tuple(diagonal.shape), "Give a number, or one for each column."
            raise ArgumentValueError(
                message(NAME, "diagonal's shape", got, f"(), or ({rows},)", way_out)
            )
        dtype = result_type(like.dtype, diagonal)
        super().__init__(like.inputs, like.outputs, dtype, like.device)
        self.diagonal = diagonal

    def _times(self, columns: Tensor, diagonal: Tensor | float) -> Tensor:
        if isinstance(diagonal, Tensor) and diagonal.dim() and columns.dim() == 2:
            diagonal = diagonal[:, None]
        return diagonal * columns

    def push(self, columns: Tensor) -> Tensor:
        """Multiply columns."""
        return self._times(columns, self.diagonal)

    def pull(self, columns: Tensor) -> Tensor:
        """Multiply columns by the conjugate."""
        d = self.diagonal
        return self._times(columns, d.conj() if isinstance(d, Tensor) else d.conjugate())

    def entries(self) -> Tensor:
        """Return what stands on the diagonal."""
        given = torch.as_tensor(self.diagonal, dtype=self.dtype, device=self.device)
        return given.expand(self.shape[0])

    def to_dense(self) -> Tensor:
        """Return the matrix."""
        return torch.diag(self.entries())

    def to_csr(self) -> Tensor:
        """Return the matrix as a sparse tensor."""
        return diagonal_csr(self.entries())


def _do_not_fit(
    what: str, left: LinearOperator, right: LinearOperator, expected: str
) -> ArgumentValueError:
    got, way_out = f"{left!r} and {right!r}", "A.T is the transpose of A."
    return ArgumentValueError(message(NAME, f"operands of {what}", got, expected, way_out))
