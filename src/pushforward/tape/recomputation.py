"""Reading graphs with checkpoints: what was not saved is computed again when it is asked for.

``torch.utils.checkpoint`` computes all of a region again for each tensor that is asked for, but for those that one
backward pass asks for. So such graphs are read inside one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pushforward.tape.private_functorch import without_functorch
from pushforward.tape.private_torch import (
    has_saving_hooks,
    num_function_modes,
    pop_function_mode,
    push_function_mode,
    run_backward,
)

T = TypeVar("T")


class RecomputingError(BaseException):
    """Something is computed while a graph is read. No `Exception`, which a checkpoint might handle."""


class _Alarm(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Stop at the first function that is called with hooks on what is saved: a checkpoint has them."""
        if has_saving_hooks():
            raise RecomputingError
        return func(*args, **(kwargs or {}))


_ALARM = _Alarm()


def read_at_once(read: Callable[[], T]) -> T:
    """Return ``read()``.

    Raises:
        RecomputingError: Something is to be computed again for it.
    """
    with torch._C._EnableTorchFunction():
        push_function_mode(_ALARM)
        try:
            return read()
        finally:
            if num_function_modes():  # an interrupt may have lost it
                pop_function_mode()


def in_pass_of_its_own(function: Callable[[], T]) -> T:
    """Return ``function()``, called in a backward pass of its own.

    Nodes that are called inside one that is for certain inputs give nothing for others; in this they give all.
    """
    found: list[T] = []
    is_enabled = torch.is_grad_enabled()

    def hook(cotangent: Tensor) -> None:
        with torch.set_grad_enabled(is_enabled):
            found.append(function())

    with torch.enable_grad(), without_functorch():
        end = torch.zeros((), requires_grad=True).clone()
        one = torch.ones(())
    end.register_hook(hook)
    run_backward(end, one)
    return found[0]
