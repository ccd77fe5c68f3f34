"""Numbers by which operators are multiplied."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import ArgumentTypeError, message


def result_type(dtype: torch.dtype, factor: Tensor | complex) -> torch.dtype:
    """Return the dtype of a tensor with axes times ``factor``."""
    return torch.result_type(torch.empty(1, dtype=dtype, device="meta"), factor)


def is_number(value: object) -> bool:
    """Tell whether an operator may be multiplied by ``value``."""
    if isinstance(value, Tensor):
        return value.dim() == 0
    return isinstance(value, numbers.Number)


def plain(value: Any) -> Any:
    """Return a number of Python's own, which NumPy's need not be."""
    if not isinstance(value, numbers.Number):
        what, expected = "diagonal", "a number or a tensor"
        raise ArgumentTypeError(
            message("LinearOperator", what, type(value).__name__, expected, "Use torch.as_tensor.")
        )
    return value.item() if hasattr(value, "item") else value
