"""Watching a function whose batch was taken apart: what it asks autograd about wrappers that do not know.

Autograd records below the wrappers of ``vmap``. Whether a value has a derivative is answered from what they wrap. What
needs more than an answer, such as a backward pass, a hook, or a slope that ties share, ends the run: it is done again
in a level of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.tape.hooks import hand_out
from pushforward.tape.in_place import TWINS
from pushforward.tape.private_functorch import batch_axis_at, level_of, unwrapped, without_functorch
from pushforward.tape.ties import is_whole
from pushforward.tape.trust import AskedError
from pushforward.tape.watching import QUESTIONS, Watcher


class BatchWatcher(Watcher):
    """A watcher that also answers for autograd."""

    def __init__(self, name: str, level: int, has_repeated: bool) -> None:
        """Serve the transform ``name``; ``has_repeated`` tells whether inputs got a batch that had none.

        What is computed of those alone has a batch, too. Where that is refused, the run ends, or what is the same for
        all is written once.
        """
        super().__init__(name, level)
        self._has_repeated = has_repeated

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
                return hand_out(self, func, (_below_batches(args[0]),), {})
        elif func in _NEEDING_A_LEVEL or is_whole(func, args, kwargs):
            raise AskedError(self)
        try:
            return super().__torch_function__(func, types, args, kwargs)
        except RuntimeError as error:
            if not self._has_repeated:
                raise
            target = _written(func, args, kwargs or {})
            if target is None and _SAME_DRAWS not in str(error):
                raise
            value = None if target is None else _same_for_all(target, func, args, kwargs or {})
            if value is None:
                raise AskedError(self) from error
            super().__torch_function__(Tensor.copy_, types, (target, value))
            return target


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the tensor without a batch that ``func`` writes to."""
    target = kwargs.get("out")
    if target is None and args and (func in TWINS or func is Tensor.__setitem__):
        target = args[0]
    if not isinstance(target, Tensor) or batch_axis_at(target, level_of(target)) is not None:
        return None
    return target


def _same_for_all(
    target: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | None:
    """Return what ``func`` is to write to ``target``, if that is the same for all of the batch, and a constant."""
    if "out" in kwargs:
        value = func(*args, **{name: v for name, v in kwargs.items() if name != "out"})
    elif func is Tensor.copy_:
        value = args[1]
    elif TWINS.get(func) is not None:
        value = TWINS[func](*args, **kwargs)
    else:
        return None
    axis = batch_axis_at(value, level_of(value))
    if axis is None or value.shape != target.shape:
        return None
    with without_functorch():
        each: Tensor = unwrapped(value).movedim(axis, 0)
        first = each[0]
        is_same = not each.requires_grad and torch.equal(each, first.expand_as(each))
    return first if is_same else None


def _below_batches(tensor: Tensor) -> Tensor:
    while batch_axis_at(tensor, level_of(tensor)) is not None:
        tensor = unwrapped(tensor)
    return tensor


_SAME_DRAWS = "support same randomness with a batched tensor"

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
