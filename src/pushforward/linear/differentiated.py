"""Whether what is computed now may be differentiated by PyTorch itself."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def is_differentiated_again() -> bool:
    """Tell whether somebody may differentiate what is computed now: by autograd, or by dual numbers."""
    return torch.is_grad_enabled() or has_duals()


def has_duals() -> bool:
    """Tell whether tensors may have tangents of PyTorch's."""
    return forward_ad._current_level >= 0
