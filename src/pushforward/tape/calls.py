"""Calls of operators, as far as their nodes remember them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
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
    metadata = output_metadata(node)
    outs = _outputs(kind, saved, metadata)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    slots: list[Slot] = []
    for position, parameter in enumerate(parameters(kind, len(edges))):
        value = None if parameter.saved is None else saved[parameter.saved]
        if parameter.is_list and parameter.num_edges:
            value = _list_of(value, node, edges, parameter, outs[0], joined, slots)
        elif parameter.num_edges:
            place = parameter.first
            edge = edges[place]
            primal = value if value is not None else _primal(node, place, parameter, outs[0])
            if edge[0] >= 0:
                slots.append(Slot(parameter.key, None, edge, primal, place))
            if primal is not None:
                value = primal
            elif not parameter.is_saved_if_given:
                value = unsaved_like(metadata[0]) if position == like else Unknown(parameter.name)
        elif value is None and not parameter.is_saved_if_given:
            if parameter.attribute is not None:
                value = signed(getattr(node, parameter.attribute))
            else:
                value = unsaved_argument(parameter.name, outs[0], metadata)
        if parameter.is_keyword:
            kwargs[parameter.name] = value
        else:
            args.append(value)
    out = tuple(outs) if _has_many_outputs(kind) else outs[0]
    return Call(functional(kind.op), tuple(args), kwargs, out, slots)


def _list_of(
    given: Sequence[Any] | None,
    node: Node,
    edges: Sequence[Edge],
    parameter: _Parameter,
    out: Any,
    joined: Shapes | None,
    slots: list[Slot],
) -> list[Any]:
    """Return an argument that is a list of tensors, and add its slots."""
    members: list[Any] = []
    shapes = joined or itertools.repeat(None)
    for member, shape in zip(range(parameter.num_edges), shapes, strict=False):
        place = parameter.first + member
        primal = None if given is None else given[member]
        if primal is None:
            primal = _primal(node, place, parameter, out)
        if edges[place][0] >= 0:
            slots.append(Slot(parameter.key, member, edges[place], primal, place))
        members.append(_member(primal, shape, parameter.name, out))
    return members


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Parameter:
    """What a schema says of an argument, and where its node has it."""

    name: str
    key: int | str
    is_keyword: bool
    is_list: bool
    first: int  # of its edges
    num_edges: int
    is_saved_if_given: bool
    saved: int | None  # its place among the tensors that the node saves
    attribute: str | None  # of the node, where that saves a value
    sizes: str | None  # the attribute that has its shape


@functools.cache
def parameters(kind: NodeType, num_edges: int) -> tuple[_Parameter, ...]:
    """Return what the schema says of the arguments, for nodes of so many edges."""
    found = []
    first = 0
    for position, a in enumerate(kind.op._schema.arguments):
        is_list = "List[" in str(a.type)
        is_saved = a.name in kind.tensor_names
        count = 0
        if a.name in kind.edge_names:
            count = num_edges - len(kind.edge_names) + 1 if is_list else 1
        found.append(
            _Parameter(
                a.name,
                a.name if a.kwarg_only else position,
                a.kwarg_only,
                is_list,
                first,
                count,
                is_saved and str(a.type).startswith("Optional["),
                kind.tensor_names.index(a.name) if is_saved else None,
                f"_saved_{a.name}" if a.name in kind.value_names else None,
                f"_saved_{a.name}_sym_sizes" if f"{a.name}_sym_sizes" in kind.value_names else None,
            )
        )
        first += count
    return tuple(found)


@functools.cache
def _gives_list(kind: NodeType) -> bool:
    returns = kind.op._schema.returns
    return len(returns) == 1 and "List[" in str(returns[0].type)


@functools.cache
def _has_many_outputs(kind: NodeType) -> bool:
    return len(kind.op._schema.returns) != 1 or _gives_list(kind)


def output_numbers(kind: NodeType, call: Call) -> Sequence[int | None]:
    """Return for each output of the operator its number among the node's outputs."""
    if kind.differentiable is None:
        return range(len(call.outs))
    count = iter(range(len(call.outs)))
    return [next(count) if flag else None for flag in kind.differentiable]


def _outputs(kind: NodeType, saved: list[Any], metadata: Any) -> list[Any]:
    if _gives_list(kind):
        return [unsaved_like(m) for m in metadata]
    flags, places = declared_outputs(kind)
    given = {place: saved[i] for i, place in places if saved[i] is not None}
    outs: list[Any] = []
    number = 0
    for place, flag in enumerate(flags):
        if place in given:
            outs.append(given[place])
        else:
            has_metadata = flag and number < len(metadata)
            outs.append(unsaved_like(metadata[number]) if has_metadata else None)
        number += flag
    return outs


@functools.cache
def declared_outputs(kind: NodeType) -> tuple[tuple[bool, ...], tuple[tuple[int, int], ...]]:
    """Return which outputs have a derivative; and where outputs are among the tensors that a node saves, and which."""
    names = kind.tensor_names
    flags = kind.differentiable or (True,) * len(kind.op._schema.returns)
    return flags, tuple(
        (names.index(name), place) for name, place in kind.outputs.items() if name in names
    )


def _primal(node: Node, place: int, parameter: _Parameter, out: Any) -> Any:
    """Return what stands in for a tensor that a node depends on; None if its shape is not known."""
    target, nr = node.next_functions[place]
    if target is not None:
        return unsaved_like(output_metadata(target)[nr])
    if parameter.sizes is not None and isinstance(out, Tensor):
        return unsaved(tuple(signed(getattr(node, parameter.sizes))), out.dtype, out.device)
    return None


def _member(primal: Any, shape: tuple[int, ...] | None, name: str, out: Any) -> Any:
    """Return one of the tensors of a list; of a constant among them nothing may be known but its shape."""
    if primal is not None:
        return primal
    return Unknown(name) if shape is None else unsaved(shape, out.dtype, out.device)


_SHAPES = ("size", "shape", "sizes", "input_size", "input_sizes")  # of the output


def unsaved_argument(name: str, out: Any, metadata: Any) -> Any:
    """Return what can be told of an argument that was not saved."""
    if isinstance(out, Tensor):
        if name in _SHAPES:
            return list(out.shape)
        if name == "dtype":
            return out.dtype
    if name == "output_mask":
        return [True] * len(metadata)
    return Unknown(name)
