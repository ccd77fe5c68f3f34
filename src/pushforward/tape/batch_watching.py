"""Watching a function whose batch was taken apart: what it asks autograd about wrappers that do not know.

Autograd records below the wrappers of ``vmap``. Whether a value has a derivative is answered from what they wrap. What
needs more than an answer, such as a backward pass or a hook, ends the run: it is done again in a level of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.tape.private_torch import (
    batch_axis_at,
    level_of,
    unwrapped,
    without_functorch,
)
from pushforward.tape.trust import AskedError
from pushforward.tape.watching import QUESTIONS, Watcher


class BatchWatcher(Watcher):
    """A watcher that also answers for autograd."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call, unless there is something to see."""
        if func in QUESTIONS:
            self.has_acted = True
            with without_functorch():
                return func(_below_batches(args[0]))
        elif func in _NEEDING_A_LEVEL:
            raise AskedError
        return super().__torch_function__(func, types, args, kwargs)


def _below_batches(tensor: Tensor) -> Tensor:
    while batch_axis_at(tensor, level_of(tensor)) is not None:
        tensor = unwrapped(tensor)
    return tensor


_NEEDING_A_LEVEL: set[Any] = {
    torch.autograd.grad,
    torch.autograd.backward,
    Tensor.backward,
    Tensor.register_hook,
    Tensor.register_post_accumulate_grad_hook,
    Tensor.requires_grad_,
    Tensor.requires_grad.__set__,  # type: ignore[attr-defined]
    Tensor.retain_grad,
    getattr(Tensor, "grad").__get__,  # noqa: B009  a property, whatever its type says
    Tensor.retains_grad.__get__,  # type: ignore[attr-defined]
}
