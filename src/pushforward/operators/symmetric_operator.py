"""SymmetricOperator: what Hessians and Gauss-Newton matrices share."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from pushforward.operators.linear_operator import LinearOperator


class SymmetricOperator(LinearOperator):
    """A real symmetric matrix."""

    @property
    def H(self) -> Self:
        """The operator itself."""
        return self

    def pull(self, columns: Tensor) -> Tensor:
        """Multiply columns."""
        return self.push(columns)
