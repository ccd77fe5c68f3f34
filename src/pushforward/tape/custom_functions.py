"""Nodes of ``torch.autograd.Function``: how they are called, and what their backward does not let through.

A backward may be marked ``once_differentiable``, detach, or read numbers from its tensors. First derivatives are right
all the same. A second one would be zero where autograd cannot see a dependence; it is made to raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import MissingRuleError
from pushforward.linear.differentiated import is_differentiated_again
from pushforward.tape.private_functorch import is_wrapped, unwrapped, with_functorch
from pushforward.tape.private_torch import (
    BackwardHookFunction,
    CheckpointFunction,
    Node,
    PythonNode,
    output_metadata,
    sequence_number,
)

_BY_ENGINE = (BackwardHookFunction, CheckpointFunction)

Call = Callable[[Node, int, int, Tensor], Tensor | None]


def is_called_by_engine(node: Node) -> bool:
    """Tell whether it takes PyTorch's engine to call a node.

    Of several outputs the engine alone knows whether cotangents that are missing are to be zeros or None; it calls the
    hooks of modules; and it refuses checkpoints that would write to the gradients of parameters.
    """
    return isinstance(node, PythonNode) and (
        len(output_metadata(node)) != 1 or node._forward_cls in _BY_ENGINE
    )


def by_edge(node: Node, pulled: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return what a backward gave for the arguments of the function, for the node's edges: only tensors have any."""
    needed = (found for found, needs in zip(pulled, node.needs_input_grad, strict=False) if needs)
    return [None if target is None else next(needed) for target, _ in node.next_functions]


def what_hides(node: Node, call: Call, out_nr: int, place: int) -> str | None:
    """Return why autograd does not see that what the backward returns depends on the cotangent; None if it does.

    Then it does not see either what else it depends on. Asked only where somebody may differentiate again.
    """
    if not isinstance(node, PythonNode):
        return None
    if not is_differentiated_again():
        return None
    if node._forward_cls is BackwardHookFunction:
        return None  # and its hooks are not to be called for nothing
    out = output_metadata(node)[out_nr]
    with torch._C.DisableTorchFunction(), torch.enable_grad():
        leaf = torch.ones(tuple(out.shape), dtype=out.dtype, device=out.device, requires_grad=True)
        start = leaf.view_as(leaf)
        try:
            result = call(node, out_nr, place, start)
        except Exception as error:  # of that cotangent; first derivatives may be right
            return f"raises {type(error).__name__} ({error}) for a cotangent of ones that requires grad"
        starts = _grad_fns(start)
        if result is None or any(_leads_to(e, s) for e in _grad_fns(result) for s in starts):
            return None
        return "is marked once_differentiable, detaches or reads numbers from tensors"


def _grad_fns(tensor: Tensor) -> list[Node]:
    """Return the nodes of a tensor, in the graphs of all levels of ``torch.func``."""
    found = [tensor.grad_fn]
    while is_wrapped(tensor):
        tensor = unwrapped(tensor)
        found.append(tensor.grad_fn)
    return [node for node in found if node is not None]


def _leads_to(node: Node, start: Node) -> bool:
    """Tell whether ``start`` is reached from a node, by way of nodes made after it."""
    oldest = sequence_number(start)
    stack, seen = [node], {node}
    while stack:
        node = stack.pop()
        if node == start:
            return True
        for target, _ in node.next_functions:
            if target is not None and target not in seen and sequence_number(target) >= oldest:
                seen.add(target)
                stack.append(target)
    return False


def refusal(name: str, node: Node, reason: str) -> str:
    """Return what is to be said where the backward of ``node`` is differentiated."""
    return (
        f"{name}: the backward of {node.name().removesuffix('Backward')} (an autograd.Function) cannot be "
        f"differentiated, as it {reason}: got a second derivative, expected first ones only. Write the backward in "
        "differentiable operators."
    )


def refusing(
    text: str, anchors: Sequence[Tensor], function: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return ``function`` with results that cannot be differentiated by what ``anchors`` depend on: that raises."""

    def refused(seeds: Tensor) -> Tensor:
        apply: Callable[..., Tensor] = Refused.apply
        found = function(seeds).detach()
        with with_functorch():  # which it looks for
            return apply(text, found, seeds, *anchors)

    return refused


class Refused(torch.autograd.Function):
    """The identity in its first tensor; nothing can be differentiated through it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(text: str, value: Tensor, *anchors: Tensor) -> Tensor:
        """Return the value."""
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the message."""
        ctx.text = inputs[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        """Refuse."""
        raise MissingRuleError(ctx.text)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        """Refuse."""
        raise MissingRuleError(ctx.text)
