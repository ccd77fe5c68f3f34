"""Surroundings: what a call depends on beside its arguments."""

from __future__ import annotations

import torch
from torch import get_default_dtype, is_grad_enabled, is_inference_mode_enabled

from pushforward.linear.differentiated import has_duals
from pushforward.tape.batch import Batch, lone_batch
from pushforward.tape.private_functorch import functorch_level
from pushforward.tape.private_torch import (
    has_saving_hooks,
    in_backward_pass,
    is_autocasting,
    num_dispatch_modes,
    num_function_modes,
)

# Grad mode, default dtype, whether autocast is on, and the one ``vmap`` that is on.
Surroundings = tuple[bool, torch.dtype, bool, Batch | None]


def surroundings(*, may_be_batched: bool = False) -> Surroundings | None:
    """Return what a call depends on; None where somebody around sees, or changes, what it does."""
    batch: Batch | None = None
    if functorch_level() is not None:
        batch = lone_batch() if may_be_batched else None
        if batch is None or batch.can_draw:
            return None
    if is_watched():
        return None
    return is_grad_enabled(), get_default_dtype(), is_autocasting(), batch


def is_watched() -> bool:
    """Tell whether somebody around sees, or changes, what a call does, other than a transform of ``torch.func``."""
    return bool(
        num_function_modes()
        or num_dispatch_modes()
        or has_saving_hooks()
        or is_inference_mode_enabled()
        or has_duals()
        or in_backward_pass()
    )
