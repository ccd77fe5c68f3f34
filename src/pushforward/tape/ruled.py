"""Operators with a rule of the user's: their calls are recorded whole, as one node that keeps arguments and outputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import ArgumentTypeError, MissingRuleError, message
from pushforward.linear.block import Block, seeds
from pushforward.linear.block_sum import to_dense, to_rows
from pushforward.linear.differentiated import has_duals
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.program import pull_blocks, push_blocks
from pushforward.rules.following import follow_by
from pushforward.rules.registry import Rule, is_nondifferentiable, lookup, maps_of
from pushforward.tape.private_functorch import functorch_level
from pushforward.trees import TreeSpec, flatten, is_differentiable, unflatten

Key = tuple[int | str, int | None]  # an argument, and the place in it where it is a list


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call but for its tensors."""

    operator: Any  # what the rule is declared for
    func: Callable[..., Any]
    leaves: list[Any]  # of (args, kwargs); None for tensors
    places: list[int]  # of the tensors among the leaves
    spec: TreeSpec

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return args and kwargs with these tensors."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = unflatten(leaves, self.spec)
        return args, kwargs

    def keys(self) -> list[Key]:
        """Return which argument each tensor is."""
        numbers = unflatten(list(range(len(self.leaves))), self.spec)
        found: dict[int, Key] = {}
        for key, value in (*enumerate(numbers[0]), *numbers[1].items()):
            if isinstance(value, (list, tuple)):
                found |= {number: (key, place) for place, number in enumerate(value)}
            else:
                found[value] = (key, None)
        return [found[place] for place in self.places]

    def signature(self) -> tuple[Any, ...]:
        """Return all but the tensors; what cannot be compared is like nothing else."""
        try:
            hash(tuple(self.leaves))
        except TypeError:
            return (self.operator, object())
        return (self.operator, *map(repr, self.leaves), self.spec)

    def rule(self, key: Key) -> Rule:
        """Return the rule.

        Raises:
            MissingRuleError: There is none for this argument.
        """
        found = lookup(self.operator)
        if found is None or found.partial(key[0]) is None:
            name = getattr(self.operator, "__name__", str(self.operator))
            raise MissingRuleError(
                f"pushforward: no rule for {name}, argument {key[0]}: expected its linear maps. Declare them with "
                "pushforward.rule or pushforward.elementwise (docs/how-to/add-a-rule.md)."
            )
        return found


def call_ruled(
    operator: Any, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call ``func`` on values, and let autograd record the call as one node."""
    leaves, spec = flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [leaves[i] for i in places]
    is_followed = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if not is_followed and functorch_level() is None and not has_duals():
        return func(*args, **kwargs)
    rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    call = Call(operator, func, rest, places, spec)
    tensors = [t.clone() if t.is_inference() else t for t in tensors]  # what a node may save
    if is_nondifferentiable(operator):
        detached, named = call.arguments([t.detach() for t in tensors])
        return func(*detached, **named)
    apply: Callable[..., Any] = Ruled.apply
    return apply(call, *tensors)


follow_by(call_ruled)


class Ruled(torch.autograd.Function):
    """One call of an operator with a rule."""

    @staticmethod
    def forward(call: Call, *tensors: Tensor) -> Any:
        """Call the operator on values."""
        args, kwargs = call.arguments([t.detach() for t in tensors])
        out = call.func(*args, **kwargs)
        return tuple(out) if isinstance(out, list) else out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep everything."""
        outs = output if isinstance(output, tuple) else (output,)
        ctx.call, ctx.is_single = inputs[0], not isinstance(output, tuple)
        ctx.others = [None if isinstance(out, Tensor) else out for out in outs]
        ctx.mark_non_differentiable(
            *[o for o in outs if isinstance(o, Tensor) and not is_differentiable(o)]
        )
        saved = (*inputs[1:], *[out for out in outs if isinstance(out, Tensor)])
        ctx.versions = [0 if tensor.is_inference() else tensor._version for tensor in saved]
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        """Pull cotangents through the maps of the rule."""
        tensors, out = arguments_and_output(ctx, ctx.saved_tensors)
        outs = (out,) if ctx.is_single else out
        found: list[Tensor | None] = [None]
        for x, key, is_needed in zip(
            tensors, ctx.call.keys(), ctx.needs_input_grad[1:], strict=True
        ):
            if not is_needed:
                found.append(None)
                continue
            blocks: list[Block] = []
            for linear_map, y_bar, y in zip(
                _maps(ctx.call, key, tensors, out, x), cotangents, outs, strict=True
            ):
                if linear_map is not None and y_bar is not None and is_differentiable(y):
                    blocks += pull_blocks((seeds(y_bar, (), 0),), linear_map, x.dtype)
            found.append(to_rows(tuple(blocks), tuple(x.shape), (), like=x))
        return tuple(found)

    @staticmethod
    def jvp(ctx: Any, call: None, *tangents: Tensor | None) -> Any:
        """Push tangents through the maps of the rule."""
        tensors, out = arguments_and_output(ctx, ctx.saved_tensors)
        outs = (out,) if ctx.is_single else out
        pushed: list[list[Block]] = [[] for _ in outs]
        for x, key, x_dot in zip(tensors, ctx.call.keys(), tangents, strict=True):
            if x_dot is None:
                continue
            for blocks, linear_map, y in zip(
                pushed, _maps(ctx.call, key, tensors, out, x), outs, strict=True
            ):
                if linear_map is not None and is_differentiable(y):
                    blocks += push_blocks((seeds(x_dot, (), 0),), linear_map, y.dtype)
        found = [
            to_dense(tuple(blocks), tuple(y.shape), (), like=y) if is_differentiable(y) else None
            for blocks, y in zip(pushed, outs, strict=True)
        ]
        return found[0] if ctx.is_single else tuple(found)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *tensors: Tensor) -> Any:
        """Call the operator for each member of the batch: nothing is known of it but its values."""
        apply: Callable[..., Any] = Ruled.apply
        results = []
        for number in range(info.batch_size):
            member = [
                t if axis is None else t.select(axis, number)
                for t, axis in zip(tensors, in_dims[1:], strict=True)
            ]
            results.append(apply(call, *member))
        if not isinstance(results[0], tuple):
            return torch.stack(results), 0
        outs = list(zip(*results, strict=True))
        is_tensor = [isinstance(each[0], Tensor) for each in outs]
        joined = [
            torch.stack(each) if flag else each[0]
            for each, flag in zip(outs, is_tensor, strict=True)
        ]
        return tuple(joined), tuple(0 if flag else None for flag in is_tensor)


def arguments_and_output(node: Any, saved: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
    """Return the tensors among a node's arguments, and the operator's output, from what it saved."""
    count = len(node.call.places)
    rest = iter(saved[count:])
    outs = tuple(next(rest) if other is None else other for other in node.others)
    return list(saved[:count]), outs[0] if node.is_single else outs


def _maps(
    call: Call, key: Key, tensors: Sequence[Tensor], out: Any, x: Tensor
) -> Sequence[AbstractLinearMap | None]:
    """Return the maps of one argument, for each output."""
    args, kwargs = call.arguments(tensors)
    maps = maps_of(call.rule(key), key[0], out, args, kwargs, x)
    if key[1] is not None:
        maps = maps[key[1]]
    return maps if isinstance(maps, (tuple, list)) else (maps,)


def primitive(func: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of tensors a primitive: it is not looked into, its derivative is its rule's.

    Args:
        func: Takes tensors (and anything else) and returns a tensor or a tuple of tensors. It may leave PyTorch, for
            NumPy or a compiled library: it is only called on values, under ``torch.func.vmap`` once for every member.

    Returns:
        The function, to be given a rule with `pushforward.rule` or `pushforward.elementwise`. Autograd and the
        transforms of ``torch.func`` follow the rule, too.

    Raises:
        TypeError: It cannot be called.
        NotImplementedError: When it is differentiated without a rule.

    Example:
        >>> from pushforward import elementwise, jacfwd
        >>> square = primitive(lambda x: x * x)
        >>> elementwise(square, lambda x: 2 * x)
        >>> jacfwd(square)(torch.tensor([1.0, 3.0]))
        tensor([[2., 0.],
                [0., 6.]])
    """
    if not callable(func):
        got = f"{type(func).__name__} {func!r:.60}"
        way_out = "Write @primitive above a def."
        raise ArgumentTypeError(message("primitive", "func", got, "a function", way_out))

    @functools.wraps(func)
    def call(*args: Any, **kwargs: Any) -> Any:
        return call_ruled(call, func, args, kwargs)

    return call
