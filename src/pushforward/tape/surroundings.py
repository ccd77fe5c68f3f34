"""Surroundings: what a call depends on beside its arguments."""

from __future__ import annotations

import torch

from pushforward.linear.differentiated import has_duals
from pushforward.tape.private_functorch import functorch_level
from pushforward.tape.private_torch import (
    in_backward_pass,
    is_autocasting,
    num_dispatch_modes,
    num_function_modes,
)

Surroundings = tuple[bool, torch.dtype, bool]  # grad mode, default dtype, whether autocast is on


def surroundings() -> Surroundings | None:
    """Return what a call depends on; None where somebody around sees, or changes, what it does."""
    if functorch_level() is not None or num_function_modes() or num_dispatch_modes():
        return None
    if torch.is_inference_mode_enabled() or has_duals() or in_backward_pass():
        return None
    return torch.is_grad_enabled(), torch.get_default_dtype(), is_autocasting()
