"""Hooks that the function registers on tensors: reverse mode calls them for every cotangent, forward mode passes by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.block import Block
from pushforward.linear.kinds.general import General
from pushforward.tape.custom_functions import is_called_by_engine
from pushforward.tape.private_distributed import is_housekeeping
from pushforward.tape.private_functorch import batch_axis, unwrapped, with_functorch
from pushforward.tape.private_torch import Node, output_metadata
from pushforward.tape.reader import Reading

Call = Callable[[Tensor], Tensor | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Hook:
    """A hook on one output of a node."""

    node: Node
    output_nr: int
    call: Call
    handle: Any

    @property
    def is_registered(self) -> bool:
        """Whether nobody removed it."""
        return self.handle.id in (self.handle.hooks_dict_ref() or ())


def register(
    func: Callable[[Tensor, Call], Any], tensor: Tensor, call: Call
) -> tuple[Any, Hook | None]:
    """Register by ``func``; return the handle, and what was registered if the tensor has a derivative."""
    while not tensor.requires_grad and (axis := batch_axis(tensor)) is not None:
        tensor, call = (
            unwrapped(tensor),
            _per_member(call, axis),
        )  # the tape shows the tensor inside
    handle = func(tensor, call)
    if tensor.grad_fn is None or is_housekeeping(call):
        return handle, None
    return handle, Hook(tensor.grad_fn, tensor.output_nr, call, handle)


def _per_member(call: Call, axis: int) -> Call:
    """Return a hook on the members of a batch, as a hook on the batch."""

    def called(cotangent: Tensor) -> Tensor:
        with with_functorch():
            result: Tensor = torch.func.vmap(
                lambda member: _called(call, member), axis, axis, randomness="same"
            )(cotangent)
        return result

    return called


@dataclasses.dataclass(slots=True, repr=False)
class Hooked(General):
    """The identity, but for what a hook makes of cotangents."""

    def push(self, block: Block) -> Block:
        """Return the block."""
        return block


def hooked(hook: Hook) -> Hooked:
    """Return the map of a hook."""
    shape = tuple(output_metadata(hook.node)[hook.output_nr].shape)
    return Hooked(shape, shape, _same, lambda cotangents: _pulled(hook.call, cotangents))


def _same(tangents: Tensor) -> Tensor:
    return tangents


def _pulled(call: Call, cotangents: Tensor) -> Tensor:
    """Call a hook on cotangents, seeds first, one by one as it expects them."""
    found = [_called(call, cotangent) for cotangent in cotangents]
    return torch.stack(found) if found else cotangents


def _called(call: Call, cotangent: Tensor) -> Tensor:
    result = call(cotangent)
    return cotangent if result is None else result


def note(reading: Reading, hooks: Sequence[Hook]) -> None:
    """Add to what was read the hooks that are still registered."""
    for hook in hooks:
        number = reading.numbers.get(hook.node, -1)
        if number >= 0 and hook.is_registered:
            reading.calls_back = True
            if not is_called_by_engine(hook.node):  # the engine calls them itself
                reading.hooks.setdefault((number, hook.output_nr), []).append(hook)
