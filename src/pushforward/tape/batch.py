"""Under one ``vmap`` of ``torch.func``: tensors are taken apart, so that plain autograd records physical operators.

The tape then shows the batch as one more axis, first of all, which every block keeps; sweeps run on plain tensors, out
of sight of ``torch.func``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import UnsupportedError
from pushforward.tape.private_functorch import (
    add_batch_axis,
    batch_axis_at,
    functorch_level,
    functorch_stack,
    unwrapped,
    vmap_settings,
    without_functorch,
)


@dataclasses.dataclass(slots=True)  # not frozen, which takes a microsecond more
class Batch:
    """The one level of ``torch.func`` that is on: a ``vmap``."""

    level: int
    size: int
    can_draw: bool  # random numbers

    def physical(self, tensor: Tensor, place: int = 0) -> Tensor:
        """Return the tensor with the batch as its axis at ``place``; one that is the same for all is repeated."""
        axis = batch_axis_at(tensor, self.level)
        if axis == place:  # nearly always
            inner: Tensor = unwrapped(tensor)
            return inner
        with without_functorch():
            if axis is None:
                return _repeated(tensor, self.size, place)
            batched: Tensor = unwrapped(tensor)
            return batched.movedim(axis, place)

    def shared(self, tensors: Sequence[Tensor]) -> frozenset[int]:
        """Return the places of tensors that are the same for all."""
        axes = [batch_axis_at(x, self.level) for x in tensors]
        return frozenset([i for i, axis in enumerate(axes) if axis is None])

    def physical_but(self, shared: frozenset[int], tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return all tensors as `physical` does, but those at places that are shared."""
        return [x if i in shared else self.physical(x) for i, x in enumerate(tensors)]

    def wrapped_but(self, shared: frozenset[int], tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return all tensors as `wrapped` does, but those at places that are shared."""
        return [x if i in shared else self.wrapped(x) for i, x in enumerate(tensors)]

    def wrapped(self, physical: Tensor, place: int = 0) -> Tensor:
        """Return a tensor whose axis at ``place`` is the batch as the function under ``vmap`` sees it."""
        tensor: Tensor = add_batch_axis(physical, place, self.level)
        return tensor

    def is_alone(self, name: str) -> bool:
        """Tell whether the ``vmap`` is still all of ``torch.func`` that is on.

        Raises:
            UnsupportedError: It is over. Another of the same size on the same level cannot be told from it.
        """
        stack = functorch_stack()
        settings = None if stack is None else vmap_settings(stack[0])
        if stack is None or settings is None or settings[0] != self.size:
            raise UnsupportedError(
                f"{name}: a derivative that was made inside a vmap: got a call after that vmap has ended, expected one "
                "inside it. Return what you need from the function under vmap, or make the derivative outside."
            )
        return len(stack) == 1

    def taken_out(self, tensor: Tensor, place: int) -> Tensor:
        """Do as `physical` where other transforms of ``torch.func`` are on inside the ``vmap``, which see it."""
        return _moved(tensor, self._anchor(tensor), place, True)

    def put_in(self, tensor: Tensor, place: int) -> Tensor:
        """Do as `wrapped` where other transforms of ``torch.func`` are on inside the ``vmap``, which see it."""
        return _moved(tensor, self._anchor(tensor), place, False)

    def _anchor(self, like: Tensor) -> Tensor:
        """Return a tensor that makes ``vmap`` look at a function, whatever else that is given."""
        with without_functorch():
            physical = torch.empty(self.size, device=like.device)
        return self.wrapped(physical)


def _repeated(tensor: Tensor, size: int, place: int) -> Tensor:
    return tensor.unsqueeze(place).expand((*tensor.shape[:place], size, *tensor.shape[place:]))


class _Move(torch.autograd.Function):
    """Takes the batch of a ``vmap``, the lowest transform of all, out into an axis, or puts the axis in."""

    @staticmethod
    def forward(tensor: Tensor, anchor: Tensor, place: int, is_out: bool) -> Tensor:
        raise AssertionError  # ``vmap`` answers

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.anchor, ctx.place, ctx.is_out = inputs

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return _moved(cotangent, ctx.anchor, ctx.place, not ctx.is_out), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _moved(tangent, ctx.anchor, ctx.place, ctx.is_out)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, tensor: Tensor, anchor: Tensor, place: int, is_out: bool
    ) -> tuple[Tensor, int | None]:
        axis = in_dims[0]
        if functorch_level() is not None:  # that of another one, above
            return _moved(tensor.movedim(axis, 0), anchor, place + 1, is_out), 0
        # Copies, as functions that return views have to be differentiated by functions that do.
        if not is_out:
            return tensor.clone(), place
        if axis is None:
            return _repeated(tensor, info.batch_size, place).clone(), None
        return tensor.movedim(axis, place).clone(), None


def _moved(tensor: Tensor, anchor: Tensor, place: int, is_out: bool) -> Tensor:
    apply: Callable[..., Tensor] = _Move.apply
    return apply(tensor, anchor, place, is_out)


def current_batch(
    inputs: Sequence[Tensor], repeats: bool, may_share: bool
) -> tuple[Batch | None, frozenset[int]]:
    """Return the ``vmap`` that is on, if it is all of ``torch.func`` that is, and the places of inputs without it.

    None if there are such, unless it ``may_share`` them, as parameters are in gradients per sample, which stay as they
    are; or ``repeats`` them along the batch (no place is returned then), and all that is computed with them: one
    convolution with the weights of each sample in place of one for all.
    """
    batch, none = lone_batch(), frozenset[int]()
    if batch is None or repeats:
        return batch, none
    shared = batch.shared(inputs)
    return (batch, shared) if may_share or not shared else (None, none)


def lone_batch() -> Batch | None:
    """Return the ``vmap`` that is on, if it is all of ``torch.func`` that is."""
    stack = functorch_stack()
    if stack is None or len(stack) != 1:
        return None
    interpreter = stack[0]
    settings = vmap_settings(interpreter)
    return None if settings is None else Batch(interpreter.level(), *settings)
