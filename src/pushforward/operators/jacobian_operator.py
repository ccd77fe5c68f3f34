"""jacobian_operator: the Jacobian of a function at a point, known by its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.operators.linear_operator import LinearOperator
from pushforward.operators.recorded import Recorded
from pushforward.operators.spaces import Space
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import Argnums

NAME = "jacobian_operator"


class JacobianOperator(LinearOperator):
    """The Jacobian of a function at a point: ``J @ v`` pushes tangents, ``J.T @ w`` pulls cotangents.

    Attributes:
        value: What the function returned.
    """

    def __init__(self, recorded: Recorded) -> None:
        """Keep what was recorded."""
        tape = recorded.tape
        outputs = Space(tape.results, tape.spec)
        dtype = outputs.dtype
        for x in tape.inputs:
            dtype = torch.promote_types(dtype, x.dtype)
        super().__init__(recorded.inputs, outputs, dtype, recorded.inputs.device)
        self._recorded, self.value = recorded, recorded.value
        self._is_complex = any(y.is_complex() for y in tape.results)

    def push(self, columns: Tensor) -> Tensor:
        """Multiply columns."""
        pushed = self._recorded.push(columns)
        if not self._is_complex:
            return pushed
        pieces = []
        for piece, y in zip(pushed.split(self._recorded.outputs.sizes), self._results, strict=True):
            if y.is_complex():
                pair = piece.unflatten(0, (-1, 2))
                piece = pair[:, 0] + 1j * pair[:, 1]
            pieces.append(piece)
        return torch.cat(pieces)

    def pull(self, columns: Tensor) -> Tensor:
        """Multiply columns by the conjugate transpose."""
        if self._is_complex:
            pieces = []
            for piece, y in zip(columns.split(self.outputs.sizes), self._results, strict=True):
                if y.is_complex():  # of a row r + is, r and s are rows of the recorded matrix
                    piece = torch.stack([piece, -1j * piece], 1).flatten(0, 1)
                pieces.append(piece)
            columns = torch.cat(pieces)
        return self._recorded.pull(columns)

    @property
    def _results(self) -> list[Tensor]:
        return self._recorded.tape.results

    def to_dense(self) -> Tensor:
        """Return the matrix, by `jacobian`'s way with what was recorded."""
        return self._recorded.to_dense(by_parts=False)

    def to_csr(self) -> Tensor:
        """Return the matrix as a sparse tensor."""
        return self._recorded.to_csr(by_parts=False)


@left_alone_by_dynamo
def jacobian_operator(
    func: Callable[..., Any], *args: Any, argnums: Argnums = 0, **kwargs: Any
) -> JacobianOperator:
    """Return the Jacobian of ``func`` at ``args`` as a matrix of which nothing is formed.

    ``func`` is called once. ``J @ v`` multiplies by what was recorded (as `linearize`), ``J.T @ w`` by its transpose
    (as `vjp`); ``J.T @ J`` is an operator again.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree).
        *args: Its arguments.
        argnums: With respect to which of them, ``int`` or tuple of distinct ``int``; negative counts from the end.
        **kwargs: Keyword arguments of ``func``.

    Returns:
        A `LinearOperator` of ``out.numel()`` rows and ``in.numel()`` columns, those of several tensors one after the
        other; with ``.value``, what ``func`` returned. A complex argument has two columns for each number, as the
        Jacobians of `jacobian` have: along the real and the imaginary direction.

    Raises:
        TypeError: An argument to differentiate, or an output, is not a floating or complex tensor.
        ValueError: ``argnums`` are out of range, repeated or empty; later, something is multiplied of another length.

    Example:
        >>> J = jacobian_operator(lambda x: x[1:] * x[:-1], torch.tensor([1.0, 2.0, 3.0]))
        >>> J @ torch.tensor([1.0, 0.0, 0.0]), J.T @ J.value
        (tensor([2., 0.]), tensor([ 4., 20., 12.]))

    References:
        Griewank and Walther, Evaluating Derivatives (2008), sections 3.1 and 3.2.
    """
    return JacobianOperator(Recorded(NAME, func, args, argnums, kwargs))
