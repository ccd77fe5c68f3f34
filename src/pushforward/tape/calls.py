"""Calls of operators, as far as their nodes remember them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.tape.node_types import NodeType, signed
from pushforward.tape.private_torch import Node, output_metadata
from pushforward.tape.reader import Edge
from pushforward.tape.unsaved import Unknown, Unsaved, UnsavedError, unsaved, unsaved_like

Shapes = Sequence[tuple[int, ...]]


@dataclasses.dataclass(slots=True)
class Slot:
    """One input of a node that has a derivative."""

    key: int | str  # the argument's position, or its name where it is keyword-only
    place: int | None  # in the argument, where that is a list
    edge: Edge
    primal: Any  # the tensor as saved, or a stand-in
    index: int = 0  # among the node's edges


@dataclasses.dataclass(slots=True)
class Call:
    """An operator's call, as far as its node remembers it."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    slots: list[Slot]

    @property
    def outs(self) -> Sequence[Any]:
        """The outputs."""
        return self.out if isinstance(self.out, (tuple, list)) else (self.out,)


def recomputed(call: Call) -> Call:
    """Evaluate an operator again whose output a rule needs and autograd did not save."""
    for value in (*call.args, *call.kwargs.values()):
        items = value if isinstance(value, (tuple, list)) else (value,)
        if any(isinstance(item, (Unsaved, Unknown)) for item in items):
            raise UnsavedError(f"{call.op}: an argument and the output")
    if call.op._schema.is_mutable or torch.Tag.nondeterministic_seeded in call.op.tags:
        raise UnsavedError(f"{call.op}: the output")
    return dataclasses.replace(call, out=call.op(*call.args, **call.kwargs))


@functools.cache
def functional(op: Any) -> Any:
    """Return the functional form of an in-place operator: it has the same arguments and the same derivative."""
    if not op._schema.is_mutable:
        return op
    packet = getattr(torch.ops.aten, op.overloadpacket.__name__.removesuffix("_"), None)
    if packet is None:
        return op
    mine = [(a.name, str(a.type)) for a in op._schema.arguments]
    for name in packet.overloads():
        twin = getattr(packet, name)
        if not twin._schema.is_mutable and mine == [
            (a.name, str(a.type)) for a in twin._schema.arguments
        ]:
            return twin
    return op


def called(
    kind: NodeType,
    node: Node,
    edges: Sequence[Edge],
    saved: list[Any],
    *,
    like: int | None = None,
    joined: Shapes | None = None,
) -> Call:
    """Put the call of a node's operator together; the output is like the argument at ``like``."""
    tensors = dict(zip(kind.tensor_names, saved, strict=True))
    metadata = output_metadata(node)
    outs = _outputs(kind, tensors, metadata)
    values = {n: signed(getattr(node, f"_saved_{n}")) for n in kind.value_names}
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    slots: list[Slot] = []
    remaining = list(zip(range(len(edges)), edges, node.next_functions, strict=True))
    for position, argument in enumerate(_parameters(kind)):
        name = argument.name
        key = name if argument.kwarg_only else position
        if argument.has_edges:
            count = len(remaining) - (len(kind.edge_names) - 1) if argument.is_list else 1
            mine, remaining = remaining[:count], remaining[count:]
            value = _differentiated(
                name, key, argument.is_list, mine, tensors, values, outs[0], slots
            )
            if joined is not None:
                value = _joined(value, joined, outs[0])
            if type(value) is Unknown and name in tensors and argument.is_optional:
                value = None  # such arguments are saved whenever they are given
            elif type(value) is Unknown and position == like:
                value = unsaved_like(metadata[0])
        elif name in tensors and (tensors[name] is not None or argument.is_optional):
            value = tensors[name]
        elif name in values:
            value = values[name]
        else:
            value = _unsaved_argument(name, outs[0], metadata)
        if argument.kwarg_only:
            kwargs[name] = value
        else:
            args.append(value)
    out = tuple(outs) if _has_many_outputs(kind) else outs[0]
    return Call(functional(kind.op), tuple(args), kwargs, out, slots)


@dataclasses.dataclass(frozen=True, slots=True)
class _Parameter:
    """What a schema says of an argument."""

    name: str
    kwarg_only: bool
    has_edges: bool
    is_list: bool
    is_optional: bool


@functools.cache
def _parameters(kind: NodeType) -> tuple[_Parameter, ...]:
    return tuple(
        _Parameter(
            a.name,
            a.kwarg_only,
            a.name in kind.edge_names,
            "List[" in str(a.type),
            str(a.type).startswith("Optional["),
        )
        for a in kind.op._schema.arguments
    )


@functools.cache
def _gives_list(kind: NodeType) -> bool:
    returns = kind.op._schema.returns
    return len(returns) == 1 and "List[" in str(returns[0].type)


@functools.cache
def _has_many_outputs(kind: NodeType) -> bool:
    return len(kind.op._schema.returns) != 1 or _gives_list(kind)


def output_numbers(kind: NodeType, call: Call) -> list[int | None]:
    """Return for each output of the operator its number among the node's outputs."""
    if kind.differentiable is None:
        return list(range(len(call.outs)))
    count = iter(range(len(call.outs)))
    return [next(count) if flag else None for flag in kind.differentiable]


def _outputs(kind: NodeType, tensors: dict[str, Any], metadata: Any) -> list[Any]:
    if _gives_list(kind):
        return [unsaved_like(m) for m in metadata]
    flags = kind.differentiable or (True,) * len(kind.op._schema.returns)
    outs: list[Any] = []
    number = 0
    for flag in flags:
        outs.append(unsaved_like(metadata[number]) if flag and number < len(metadata) else None)
        number += flag
    for name, place in kind.outputs.items():
        if tensors.get(name) is not None and place < len(outs):
            outs[place] = tensors[name]
    return outs


def _differentiated(
    name: str,
    key: int | str,
    is_list: bool,
    mine: list[tuple[int, Edge, Any]],
    tensors: dict[str, Any],
    values: dict[str, Any],
    out: Any,
    slots: list[Slot],
) -> Any:
    """Return an argument that has edges, and note those of them that are active."""
    found = []
    given = tensors.get(name)
    for place, (index, edge, (target, nr)) in enumerate(mine):
        primal = given[place] if is_list and given is not None else given
        if primal is None and target is not None:
            primal = unsaved_like(output_metadata(target)[nr])
        if primal is None and f"{name}_sym_sizes" in values and isinstance(out, Tensor):
            primal = unsaved(values[f"{name}_sym_sizes"], out.dtype, out.device)
        found.append(primal)
        if edge[0] >= 0:
            slots.append(Slot(key, place if is_list else None, edge, primal, index))
    if is_list:
        return [Unknown(name) if item is None else item for item in found]
    if found and found[0] is not None:
        return found[0]
    return Unknown(name)


def _joined(members: list[Any], shapes: Sequence[tuple[int, ...]], out: Tensor) -> list[Any]:
    """Fill in the constants among tensors that were joined."""
    return [
        unsaved(shape, out.dtype, out.device) if isinstance(member, Unknown) else member
        for member, shape in zip(members, shapes, strict=True)
    ]


_SHAPES = ("size", "shape", "sizes", "input_size", "input_sizes")  # of the output


def _unsaved_argument(name: str, out: Any, metadata: Any) -> Any:
    """Return what can be told of an argument that was not saved."""
    if isinstance(out, Tensor):
        if name in _SHAPES:
            return list(out.shape)
        if name == "dtype":
            return out.dtype
    if name == "output_mask":
        return [True] * len(metadata)
    return Unknown(name)
