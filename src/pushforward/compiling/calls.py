"""Graphs as calls: those of PyTorch's functions instead of operators, which are faster to call from Python."""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pushforward.planning.calls import Call, Ref
from pushforward.planning.kernels import as_they_are, compiled
from pushforward.planning.noting import Noted
from pushforward.planning.simplifying import may_write

aten = torch.ops.aten

Function = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Called = tuple[Any, Sequence[Any], dict[str, Any]]  # function, arguments, keyword arguments

_ALIASES = (aten.detach.default, aten.alias.default, aten.lift_fresh.default)
_BUILTIN = (types.BuiltinFunctionType, types.MethodDescriptorType)


def as_function(graph: fx.GraphModule) -> Function | None:
    """Return a function of the graph's inputs that gives its outputs; None where it has more than operators."""
    refs: dict[fx.Node, Ref] = {}
    examples: dict[Ref, Tensor] = {}
    constants: list[Tensor] = []
    calls: list[Call] = []
    output = graph.graph.output_node()
    returned: set[fx.Node] = set(output.all_input_nodes)
    num_inputs = sum(node.op == "placeholder" for node in graph.graph.nodes)
    num_values = 0

    def call(node: fx.Node, func: Any, args: Any, kwargs: dict[str, Any]) -> Ref:
        found: list[Ref] = []

        def named(n: fx.Node) -> Any:
            found.append(refs[n])
            return refs[n]

        args, kwargs = fx.node.map_arg((tuple(args), kwargs), named)
        ref = Ref(len(calls), False)
        args = tuple(list(a) if isinstance(a, list) else a for a in args)
        calls.append(Call(func, args, dict(kwargs), ref, found))
        if isinstance(node.meta.get("val"), Tensor):
            examples[ref] = _example(node)
        return ref

    for node in graph.graph.nodes:
        if node.op == "placeholder":
            refs[node] = Ref(num_values, True)
            num_values += 1
            examples[refs[node]] = _example(node)
        elif node.op == "get_attr":
            tensor = getattr(graph, node.target)
            if not isinstance(tensor, Tensor):
                return None
            refs[node] = Ref(num_inputs + len(constants), True)
            constants.append(tensor)
            examples[refs[node]] = _example(node)
        elif node.target is operator.getitem:
            whole = refs[node.args[0]]
            refs[node] = Ref(whole.number, whole.is_value, node.args[1])
            examples[refs[node]] = _example(node)
        elif node.op != "output":
            if not isinstance(node.target, torch._ops.OpOverload):
                return None
            if node not in returned and _changes_nothing(node):
                refs[node] = refs[node.args[0]]
            else:
                refs[node] = call(node, *_called(node))
    for node in returned:
        if refs[node].is_value:  # the caller gets another tensor on the same memory
            refs[node] = call(node, Tensor.detach, (node,), {})
    outputs: Any = output.args[0]
    rows = [[refs[node] for node in outputs]]
    noted = Noted(calls, rows, examples)
    replay = as_they_are(noted) if any(map(may_write, calls)) else compiled(noted)
    return lambda inputs: replay([*inputs, *constants])[0]


def _example(node: fx.Node) -> Tensor:
    """Return a tensor without elements that has shape, strides and dtype of a node's."""
    x = node.meta["val"]
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _changes_nothing(node: fx.Node) -> bool:
    """Tell whether the result is the argument, seen as before."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema
    if schema.is_mutable or not any(r.alias_info is not None for r in schema.returns):
        return False
    if node.target in _ALIASES:
        return True
    if len(node.all_input_nodes) != 1 or not isinstance(node.args[0], fx.Node):
        return False
    new, old = node.meta.get("val"), node.args[0].meta.get("val")
    return (
        isinstance(new, Tensor)
        and isinstance(old, Tensor)
        and new.layout is old.layout is torch.strided
        and (new.shape, new.stride(), new.dtype) == (old.shape, old.stride(), old.dtype)
        and new.storage_offset() == old.storage_offset()
        and (new.is_conj(), new.is_neg()) == (old.is_conj(), old.is_neg())
    )


def _called(node: fx.Node) -> Called:
    """Return a function that does what an operator does, and its arguments."""
    op: Any = node.target
    args, kwargs = node.args, dict(node.kwargs)
    special = _SPECIAL.get(op)
    if special is not None:
        return special(node)
    name = op._schema.name.partition("::")[2]
    is_aten = op._schema.name.startswith("aten::")
    if is_aten and not name.startswith("_") and not any(a.is_out for a in op._schema.arguments):
        kwargs.pop("pin_memory", None)
        for owner in (torch, Tensor):
            func = getattr(owner, name, None)
            if isinstance(func, _BUILTIN):
                return func, args, kwargs
    return op, args, dict(node.kwargs)


def _view(node: fx.Node) -> Called:
    return Tensor.reshape, (node.args[0], tuple(node.meta["val"].shape)), {}


def _permute(node: fx.Node) -> Called:
    axes: Any = node.args[1]
    return Tensor.permute, (node.args[0], tuple(axes)), {}


def _slice(node: fx.Node) -> Called:
    given: list[Any] = [*node.args, *(0, 0, None, 1)[len(node.args) - 1 :]]
    x, axis, start, _, step = given
    if step != 1:
        return node.target, node.args, dict(node.kwargs)
    length = x.meta["val"].shape[axis]
    begin = start or 0
    begin = min(max(begin + length if begin < 0 else begin, 0), length)
    return torch.narrow, (x, axis, begin, node.meta["val"].shape[axis]), {}


_SPECIAL: dict[Any, Callable[[fx.Node], Called]] = {
    aten.view.default: _view,
    aten.reshape.default: _view,
    aten._unsafe_view.default: _view,
    aten.permute.default: _permute,
    aten.slice.Tensor: _slice,
}
