"""Tensors in double precision, and how they are compared."""

from typing import Any

import torch
from torch import Tensor

F64 = torch.float64


def randn(*shape: int) -> Tensor:
    """Return normal random numbers."""
    return torch.randn(shape, dtype=F64)


def close(actual: Any, expected: Any, **options: Any) -> None:
    """Assert that values are as good as equal."""
    torch.testing.assert_close(actual, expected, **options)
