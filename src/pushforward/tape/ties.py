"""Reductions of a whole tensor to one of its elements: their slope is shared by all that are equal to it.

Below ``vmap`` they become reductions along axes, which give it to one of them. So their batch is left whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SHARING = {
    getattr(owner, name) for owner in (torch, Tensor) for name in ("max", "median", "nanmedian")
}


def is_whole(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> bool:
    """Tell whether ``func`` reduces a whole tensor so."""
    return func in SHARING and len(args) == 1 and not kwargs


def reduced(watcher: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Reduce, and remember how."""
    watcher.has_ties = watcher.has_ties or is_whole(func, args, kwargs)
    return func(*args, **kwargs)
