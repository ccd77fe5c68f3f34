"""hessian_operator: the Hessian of a scalar function at a point, known by its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pushforward.operators.recorded import Recorded
from pushforward.operators.symmetric_operator import SymmetricOperator
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import Argnums, check_function, normalize_argnums
from pushforward.transforms.grad import named_grad_and_value

NAME = "hessian_operator"


class HessianOperator(SymmetricOperator):
    """The Hessian of a scalar function at a point.

    Attributes:
        value: What the function returned.
        gradient: As a vector ``(columns,)``.
    """

    def __init__(self, recorded: Recorded) -> None:
        """Keep the gradient, as it was recorded."""
        space = recorded.inputs
        super().__init__(space, space, space.dtype, space.device)
        self._recorded = recorded
        self.value: Tensor = recorded.tape.aux
        self.gradient = space.join(recorded.tape.results)

    def push(self, columns: Tensor) -> Tensor:
        """Multiply columns."""
        return self._recorded.push(columns)

    def to_dense(self) -> Tensor:
        """Return the matrix."""
        return self._recorded.to_dense(by_parts=True)

    def to_csr(self) -> Tensor:
        """Return the matrix as a sparse tensor."""
        return self._recorded.to_csr(by_parts=True)


@left_alone_by_dynamo
def hessian_operator(
    func: Callable[..., Any], *args: Any, argnums: Argnums = 0, **kwargs: Any
) -> HessianOperator:
    """Return the Hessian of a scalar ``func`` at ``args`` as a matrix of which nothing is formed.

    The gradient is computed once, in reverse, and recorded; ``H @ v`` pushes ``v`` through that.

    Args:
        func: Returns one real tensor without axes.
        *args: Its arguments.
        argnums: With respect to which of them, ``int`` or tuple of distinct ``int``; negative counts from the end.
        **kwargs: Keyword arguments of ``func``.

    Returns:
        A symmetric `LinearOperator` over the numbers of the arguments, those of several tensors one after the other; a
        complex number counts as two real ones. ``.value`` and ``.gradient``, a vector, come along.

    Raises:
        TypeError: As `grad`.
        ValueError: As `grad`; later, something is multiplied of another length.

    Example:
        >>> H = hessian_operator(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0]))
        >>> H @ torch.ones(2), H.gradient
        (tensor([ 6., 12.]), tensor([ 3., 12.]))

    References:
        Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994).
    """
    return named_hessian_operator(NAME, func, args, argnums, kwargs)


def named_hessian_operator(
    name: str,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    argnums: Argnums,
    kwargs: dict[str, Any],
) -> HessianOperator:
    """Return `hessian_operator`; errors say ``name``."""
    check_function(name, func)
    positions = normalize_argnums(name, argnums, len(args))
    chosen = argnums if isinstance(argnums, int) else positions
    gradient = named_grad_and_value(name, func, chosen)
    return HessianOperator(Recorded(name, gradient, args, argnums, kwargs, has_aux=True))
