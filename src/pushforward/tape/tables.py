"""Tables: integer tensors that a plan made and keeps, and that computations written down may therefore hold."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function

from pushforward.tape.private_torch import num_function_modes


def table(tensor: Tensor) -> Tensor:
    """Return ``tensor``, and let the modes that watch know that it is the same at every call."""
    if not num_function_modes():
        return tensor
    return handle_torch_function(table, (tensor,), tensor)
