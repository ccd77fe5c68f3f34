"""gauss_newton_operator: the Gauss-Newton matrix of a loss of a function's output, known by its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pushforward.errors import ArgumentTypeError, message
from pushforward.operators.csr import adjoint_csr, csr_product
from pushforward.operators.hessian_operator import HessianOperator, named_hessian_operator
from pushforward.operators.recorded import Recorded
from pushforward.operators.symmetric_operator import SymmetricOperator
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import Argnums

NAME = "gauss_newton_operator"


class GaussNewtonOperator(SymmetricOperator):
    """Jᵀ H J, with the Jacobian of a function and the Hessian of a loss of its output.

    Attributes:
        output: What the function returned.
        value: The loss of that.
        gradient: Of the loss, as a vector ``(columns,)``.
    """

    def __init__(self, recorded: Recorded, loss: HessianOperator | None) -> None:
        """Keep what was recorded; no ``loss`` is half the sum of squares."""
        space = recorded.inputs
        super().__init__(space, space, space.dtype, space.device)
        self._recorded, self._loss = recorded, loss
        self.output = recorded.value
        residuals = recorded.outputs.join(recorded.tape.results)
        slope = residuals if loss is None else loss.gradient
        self.value: Tensor = residuals.square().sum() / 2 if loss is None else loss.value
        self.gradient = recorded.pull(slope)

    def push(self, columns: Tensor) -> Tensor:
        """Multiply columns."""
        pushed = self._recorded.push(columns)
        return self._recorded.pull(pushed if self._loss is None else self._loss.push(pushed))

    def to_dense(self) -> Tensor:
        """Return the matrix."""
        jacobian = self._recorded.to_dense(by_parts=True)
        curved = jacobian if self._loss is None else self._loss.push(jacobian)
        return jacobian.mT @ curved

    def to_csr(self) -> Tensor:
        """Return the matrix as a sparse tensor."""
        jacobian = self._recorded.to_csr(by_parts=True)
        curved = jacobian if self._loss is None else csr_product(self._loss.to_csr(), jacobian)
        return csr_product(adjoint_csr(jacobian), curved)


@left_alone_by_dynamo
def gauss_newton_operator(
    func: Callable[..., Any],
    *args: Any,
    loss: Callable[[Any], Tensor] | None = None,
    argnums: Argnums = 0,
    **kwargs: Any,
) -> GaussNewtonOperator:
    """Return the Gauss-Newton matrix of ``loss(func(*args))`` as a matrix of which nothing is formed.

    That is Jᵀ H J, with the Jacobian J of ``func`` and the Hessian H of ``loss``: the Hessian without the curvature of
    ``func``, and positive semidefinite where ``loss`` is convex. For the negative logarithm of a likelihood in its
    natural parameters (cross entropy of logits) it is the Fisher matrix.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree): residuals, or the output of a network.
        *args: Its arguments.
        loss: Takes what ``func`` returns to one real tensor without axes; left out, half the sum of squares, whose
            matrix is JᵀJ.
        argnums: With respect to which of the arguments, ``int`` or tuple of distinct ``int``.
        **kwargs: Keyword arguments of ``func``.

    Returns:
        A symmetric `LinearOperator` over the numbers of the arguments, those of several tensors one after the other; a
        complex number counts as two real ones. ``.output``, ``.value`` (of the loss) and its ``.gradient``, a vector,
        come along.

    Raises:
        TypeError: As `jacobian_operator`, and `grad` of ``loss``.
        ValueError: As `jacobian_operator`, and `grad` of ``loss``.

    Example:
        >>> G = gauss_newton_operator(lambda x: x**2, torch.tensor([1.0, 2.0]))
        >>> G @ torch.ones(2), G.gradient
        (tensor([ 4., 16.]), tensor([ 2., 16.]))

    References:
        Schraudolph, Fast curvature matrix-vector products for second-order gradient descent, Neural Computation 14
        (2002). Martens, New insights and perspectives on the natural gradient method, JMLR 21 (2020), sections 5 and 9.
    """
    return named_gauss_newton_operator(NAME, func, args, loss, argnums, kwargs)


def named_gauss_newton_operator(
    name: str,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    loss: Callable[[Any], Tensor] | None,
    argnums: Argnums,
    kwargs: dict[str, Any],
) -> GaussNewtonOperator:
    """Return `gauss_newton_operator`; errors say ``name``."""
    if loss is not None and not callable(loss):
        got, way_out = f"{type(loss).__name__} {loss!r:.60}", "Leave it out for least squares."
        raise ArgumentTypeError(message(name, "loss", got, "a function of the output", way_out))
    recorded = Recorded(name, func, args, argnums, kwargs)
    if loss is None:
        return GaussNewtonOperator(recorded, None)
    curvature = named_hessian_operator(name, loss, (recorded.value,), 0, {})
    return GaussNewtonOperator(recorded, curvature)
