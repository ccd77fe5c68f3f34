"""An operator as SciPy's: it takes and gives NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Multiplies(Protocol):
    """What multiplies tensors."""

    dtype: torch.dtype
    device: torch.device

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    def __matmul__(self, other: Any) -> Any:
        """Multiply."""


def scipy_operator(operator: Multiplies, adjoint: Multiplies) -> Any:
    """Return a ``scipy.sparse.linalg.LinearOperator``."""
    from scipy.sparse.linalg import LinearOperator

    def through(multiply: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
        def product(array: Any) -> Any:
            given = torch.as_tensor(array, device=operator.device)
            with torch.no_grad():
                return multiply(given).cpu().resolve_conj().numpy()

        return product

    return LinearOperator(
        operator.shape,
        matvec=through(lambda v: operator @ v.reshape(-1)),  # SciPy may give (n, 1)
        rmatvec=through(lambda w: adjoint @ w.reshape(-1)),
        matmat=through(operator.__matmul__),
        rmatmat=through(adjoint.__matmul__),
        dtype=torch.empty(0, dtype=operator.dtype).numpy().dtype,
    )
