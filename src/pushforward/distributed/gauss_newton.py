"""gauss_newton_operator: JᵀJ, or JᵀHJ, of residuals that lie in several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from pushforward.distributed.meshes import anchored, check_mesh, entered, summed
from pushforward.errors import UnsupportedError, message
from pushforward.operators.gauss_newton_operator import (
    GaussNewtonOperator,
    named_gauss_newton_operator,
)
from pushforward.operators.symmetric_operator import SymmetricOperator
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import Argnums, check_function

NAME = "distributed.gauss_newton_operator"


class SummedGaussNewtonOperator(SymmetricOperator):
    """The sum over processes of their Gauss-Newton matrices; a product is one all-reduce of a vector.

    Attributes:
        output: What the function returned in this process.
        value: The loss, summed over the processes.
        gradient: Of that, as a vector ``(columns,)``.
        mesh: The processes.
    """

    def __init__(
        self, local: GaussNewtonOperator, mesh: DeviceMesh, anchor: Tensor | None = None
    ) -> None:
        """Sum loss and gradient."""
        super().__init__(local.inputs, local.inputs, local.dtype, local.device)
        self._local, self.mesh, self._anchor, self.output = local, mesh, anchor, local.output
        both = torch.cat([local.value.reshape(1).to(local.gradient.dtype), local.gradient])
        both = self._summed(both)
        self.value, self.gradient = both[0], both[1:]

    def _summed(self, part: Tensor) -> Tensor:
        return summed(anchored(part, self._anchor), self.mesh)

    def push(self, columns: Tensor) -> Tensor:
        """Multiply columns."""
        return self._summed(self._local.push(columns))

    def to_dense(self) -> Tensor:
        """Return the matrix, in every process."""
        return self._summed(self._local.to_dense())

    def to_csr(self) -> Tensor:
        """Refuse: no sparse tensors are sent."""
        raise UnsupportedError(
            message(
                NAME,
                "to_csr",
                "a matrix that is a sum over processes",
                "to_dense(), or products",
                'For a sparse JᵀJ take distributed.jacobian(..., share="rows", output="csr"), and J.gram().',
            )
        )


@left_alone_by_dynamo
def gauss_newton_operator(
    func: Callable[..., Any],
    *args: Any,
    mesh: DeviceMesh,
    loss: Callable[[Any], Tensor] | None = None,
    argnums: Argnums = 0,
    **kwargs: Any,
) -> SummedGaussNewtonOperator:
    """Return the Gauss-Newton matrix of residuals that lie in several processes; nothing of it is formed.

    Every process calls it with residuals of its own (those of its data) and the same arguments to differentiate by.
    The matrix is the sum over the processes: JᵀJ with the Jacobian of all residuals. Each process multiplies by its
    own Jacobian and its transpose; what is sent is one all-reduce of a vector ``(columns,)`` for each product, and one
    for loss and gradient together.

    Args:
        func: The residuals of this process, or the output of a network for its data.
        *args: Its arguments; those to differentiate by are the same in every process.
        mesh: The processes.
        loss: As in `gauss_newton_operator` of one process, of the part of each; the loss is the sum of them all.
        argnums: With respect to which of the arguments, ``int`` or tuple of distinct ``int``.
        **kwargs: Keyword arguments of ``func``.

    Returns:
        A symmetric `LinearOperator`, the same in every process, with ``.value`` (of the loss) and ``.gradient`` of the
        sum, and the ``.output`` of this process. All processes have to multiply.

    Raises:
        TypeError: There is no mesh; and as `gauss_newton_operator` of one process.
        ValueError: As `gauss_newton_operator` of one process.
        UnsupportedError: Another transform is around it.

    Example:
        In a process of a group:

            G = gauss_newton_operator(residuals_of_my_data, x, mesh=mesh)
            step = conjugate_gradients(G.add_diagonal(damping), -G.gradient)

    References:
        Nocedal and Wright, Numerical Optimization (2006), section 10.3.
    """
    check_function(NAME, func)
    check_mesh(NAME, mesh)
    (args, kwargs), anchor = entered(NAME, mesh, (args, kwargs))
    local = named_gauss_newton_operator(NAME, func, args, loss, argnums, kwargs)
    return SummedGaussNewtonOperator(local, mesh, anchor)
