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

from pushforward.tape.private_torch import pop_function_mode, push_function_mode

T = TypeVar("T")


class _RecomputingError(BaseException):
    """Something is computed while a graph is read. No `Exception`, which a checkpoint might handle."""


class _Alarm(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Stop at the first function."""
        raise _RecomputingError


_ALARM = _Alarm()


def read_once(read: Callable[[], T]) -> tuple[T, bool]:
    """Return ``read()``, and whether something was computed again for it."""
    with torch._C._EnableTorchFunction():
        push_function_mode(_ALARM)
        try:
            return read(), False
        except _RecomputingError:
            pass
        finally:
            pop_function_mode()
    return _in_backward_pass(read), True


def _in_backward_pass(read: Callable[[], T]) -> T:
    found: list[T] = []
    origin = torch.zeros((), requires_grad=True)
    end = origin.clone()

    def hook(cotangent: Tensor) -> None:
        found.append(read())

    end.register_hook(hook)
    torch.autograd.grad(end, origin, create_graph=True)
    return found[0]
