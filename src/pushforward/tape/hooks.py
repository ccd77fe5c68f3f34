"""Hooks that the function registers on tensors: reverse mode calls them for every cotangent, forward mode passes by."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from pushforward.linear.block import Block
from pushforward.linear.kinds.general import General
from pushforward.tape.custom_functions import is_called_by_engine
from pushforward.tape.private_distributed import is_housekeeping
from pushforward.tape.private_functorch import batch_axis, unwrapped, with_functorch
from pushforward.tape.private_torch import (
    Node,
    in_backward_pass,
    output_metadata,
    sequence_number,
)
from pushforward.tape.reader import Reading
from pushforward.tape.recomputation import in_pass_of_its_own

_UNHELD = next(sys.getrefcount(n) for n in [object()])  # references to what is in a list alone

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
    func: Callable[[Tensor, Call], Any], tensor: Tensor, call: Call, oldest: int
) -> tuple[Any, Hook | None]:
    """Register by ``func``; return the handle, and what was registered if the tensor has a derivative.

    Runs around that whose oldest node is ``oldest`` do not see hooks on what it made: as in ``torch.func``, their
    cotangents pass by.
    """
    while not tensor.requires_grad and (axis := batch_axis(tensor)) is not None:
        # The tape shows the tensor inside.
        tensor, call = unwrapped(tensor), _per_member(call, axis)
    with torch._C.DisableTorchFunction():
        node, output_nr = tensor.grad_fn, tensor.output_nr
        is_own = node is not None and sequence_number(node) >= oldest
    with torch._C.DisableTorchFunction() if is_own else contextlib.nullcontext():
        handle = func(tensor, call)
    if node is None or is_housekeeping(call):
        return handle, None
    return handle, Hook(node, output_nr, call, handle)


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
    if getattr(call, "__globals__", None) is vars(torch.autograd.graph) and not in_backward_pass():
        # A part of a hook on several tensors, which asks for the backward pass that it is called in.
        found = [in_pass_of_its_own(functools.partial(_called, call, c)) for c in cotangents]
    else:
        found = [_called(call, cotangent) for cotangent in cotangents]
    return torch.stack(found) if found else cotangents


def _called(call: Call, cotangent: Tensor) -> Tensor:
    result = call(cotangent)
    return cotangent if result is None else result


def hand_out(watcher: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Answer a question about the derivative of a tensor: its node may get hooks, which nobody can look up later."""
    with torch._C.DisableTorchFunction():
        answer = func(*args, **kwargs)
    if answer is None or isinstance(answer, bool):
        return func(*args, **kwargs)
    if RemovableHandle.next_id == watcher.num_hooks:
        # None has hooks: those that nobody holds will get none.
        watcher.nodes = [n for n in watcher.nodes if sys.getrefcount(n) > _UNHELD]
    if all(n is not answer for n in watcher.nodes):
        watcher.nodes.append(answer)
    is_own = sequence_number(answer) >= watcher.oldest  # and of no run around, see `register`
    return answer if is_own else func(*args, **kwargs)


def note_nodes(reading: Reading, nodes: Sequence[Node]) -> None:
    """Note which of the nodes that were read may have hooks of their own, beside those that the engine calls anyway."""
    others = [node for node in nodes if not is_called_by_engine(node)]
    places = {reading.numbers.get(node, -1) - reading.num_inputs for node in others}
    reading.hooked = {place for place in places if place >= 0}
    reading.calls_back = reading.calls_back or bool(reading.hooked)


def note(reading: Reading, hooks: Sequence[Hook]) -> None:
    """Add to what was read the hooks that are still registered."""
    for hook in hooks:
        number = reading.numbers.get(hook.node, -1)
        if number >= 0 and hook.is_registered:
            reading.calls_back = True
            is_by_engine = (
                is_called_by_engine(hook.node) or number - reading.num_inputs in reading.hooked
            )
            if not is_by_engine:  # the engine calls them itself
                reading.hooks.setdefault((number, hook.output_nr), []).append(hook)
