"""Tables: integer tensors that follow from structure alone, the same for every call with the same signature."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

_MARK = "_is_pushforward_table"


def table(tensor: Tensor) -> Tensor:
    """Return ``tensor``, marked: modes that write computations down may keep it instead of making it again."""
    if has_torch_function_unary(tensor):
        return handle_torch_function(table, (tensor,), tensor)
    setattr(tensor, _MARK, True)
    return tensor


def is_table(tensor: Tensor) -> bool:
    """Tell whether a tensor is the same at every call with the same signature."""
    return hasattr(tensor, _MARK)
