"""Nodes to linear maps: the arguments that each operator had, as far as they were saved, and what its rule makes of them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import RuleError, UnsupportedError
from pushforward.linear.kinds.mask import Mask
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.program import Equation, LinearProgram, Term
from pushforward.rules.registry import Rule, is_nondifferentiable, lookup, maps_of
from pushforward.tape import black_boxes, hooks, irregular, probing, ruled, writes
from pushforward.tape.node_types import MOVEMENTS, RULED, NodeType, signed
from pushforward.tape.overwritten import RestoredNode
from pushforward.tape.private_torch import Node, output_metadata
from pushforward.tape.reader import Edge, Reading
from pushforward.tape.stores import Stores
from pushforward.tape.unsaved import Unknown, Unsaved, UnsavedError, unsaved, unsaved_like

MISSING: Edge = (-1, 0)

# A linear map for each output of a node that has one.
Maps = dict[int, AbstractLinearMap]
Part = tuple[Edge, AbstractLinearMap, torch.dtype]
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


def lower(name: str, reading: Reading) -> LinearProgram:
    """Return the linear program of what was read; ``name`` is the transform, for messages."""
    stores = Stores(reading)
    outputs = [stores.at(edge) for edge in reading.outputs]
    needed: set[Edge] = {edge for edge in outputs if edge[0] >= 0}
    kept: list[tuple[Edge, list[Part], torch.dtype, str]] = []
    inner = irregular.inner_places(reading)
    for place in range(len(reading.nodes) - 1, -1, -1):
        number = reading.num_inputs + place
        wanted = [
            nr for nr in range(len(output_metadata(reading.nodes[place]))) if (number, nr) in needed
        ]
        if not wanted:
            continue
        if (number, 0) in stores.versions:
            device = output_metadata(reading.nodes[place])[0].device
            for edge, parts_of, dtype in reversed(writes.variables(stores, (number, 0), device)):
                kept.append((edge, parts_of, dtype, "copy into a view by rule"))
                needed.update(source for source, _, _ in parts_of)
            continue
        edges = [stores.at(edge) for edge in reading.edges(place)]
        parts, origin = _parts(name, reading, place, edges, wanted, inner)
        for nr in reversed(wanted):
            dtype = output_metadata(reading.nodes[place])[nr].dtype
            kept.append(((number, nr), parts[nr], dtype, origin))
            needed.update(edge for edge, _, _ in parts[nr])
    variables: dict[Edge, int] = {}
    equations: list[Equation] = []
    numbers = itertools.count()
    for i in range(reading.num_inputs):
        variables[i, 0] = next(numbers)
    for i in range(reading.num_inputs):
        _add_hooks(reading, (i, 0), variables, equations, numbers)
    for edge, parts_of, dtype, origin in reversed(kept):
        terms = [Term(variables[source], linear_map, like) for source, linear_map, like in parts_of]
        variables[edge] = next(numbers)
        equations.append(Equation(variables[edge], terms, dtype, origin))
        _add_hooks(reading, edge, variables, equations, numbers)
    found = [variables.get(edge) if edge[0] >= 0 else None for edge in outputs]
    return LinearProgram(list(range(reading.num_inputs)), equations, found)


def _add_hooks(
    reading: Reading,
    edge: Edge,
    variables: dict[Edge, int],
    equations: list[Equation],
    numbers: Iterator[int],
) -> None:
    """Let what depends on a variable take it through its hooks; cotangents meet the first hook first."""
    for hook in reversed(reading.hooks.get(edge, ())):
        dtype = output_metadata(hook.node)[hook.output_nr].dtype
        terms = [Term(variables[edge], hooks.hooked(hook), dtype)]
        variables[edge] = next(numbers)
        equations.append(Equation(variables[edge], terms, dtype, "hook"))


def _parts(
    name: str,
    reading: Reading,
    place: int,
    edges: Sequence[Edge],
    wanted: Sequence[int],
    inner: set[int],
) -> tuple[dict[int, list[Part]], str]:
    """Return for each wanted output of a node the maps of the inputs that it depends on, and who gave them."""
    node, kind = reading.nodes[place], reading.types[place]
    parts: dict[int, list[Part]] = {nr: [] for nr in wanted}
    if inner and irregular.is_end(reading, place, inner):
        found = irregular.maps(reading, place, inner, wanted)
        origin = "sparse or nested tensors by PyTorch"
    elif (
        by_rule := maps_by_rule(
            kind, node, edges, reading.saved(place), wanted, reading.joined.get(place)
        )
    ) is None:
        node = node.node if isinstance(node, RestoredNode) else node
        found = black_boxes.maps(name, node, edges, wanted, reading.anchors)
        origin = f"{node.name()} by PyTorch"
    else:
        found, origin = by_rule, f"{kind.op or node.name()} by rule"
    for edge, dtype, maps in found:
        for nr in wanted:
            if nr in maps:
                parts[nr].append((edge, maps[nr], dtype))
    return parts, origin


def _by_rule_of_user(
    node: Node, edges: Sequence[Edge], saved: Sequence[Tensor]
) -> list[tuple[Edge, torch.dtype, Maps]]:
    tensors, out = ruled.arguments_and_output(node, saved)
    args, kwargs = node.call.arguments(tensors)
    found: list[tuple[Edge, torch.dtype, Maps]] = []
    for index, (edge, key, x) in enumerate(zip(edges, node.call.keys(), tensors, strict=True)):
        if edge[0] >= 0:
            slots = [Slot(key[0], key[1], edge, x, index)]
            call = Call(node.call.operator, args, kwargs, out, slots)
            found += _applied(node.call.rule(key), call, RULED)
    return found


def maps_by_rule(
    kind: NodeType,
    node: Node,
    edges: Sequence[Edge],
    saved: list[Any],
    wanted: Sequence[int] | None = None,
    joined: Shapes | None = None,
) -> list[tuple[Edge, torch.dtype, Maps]] | None:
    """Return (edge, dtype, maps) for each active input of a node; None where no rule of ours can say.

    The maps are those of the outputs ``wanted``, or of all. ``joined`` are the shapes of what was joined, if constants
    are among it.
    """
    if kind.name in MOVEMENTS:
        return probing.moved_maps(node, edges, saved)
    if kind is RULED:
        return _by_rule_of_user(node, edges, saved[0])
    if kind.op is None:
        return None
    op = functional(kind.op)
    if is_nondifferentiable(op):
        return []
    rule = lookup(kind.op) or lookup(op)
    if rule is None:
        return None
    call = called(kind, node, edges, saved, like=rule.like, joined=joined)
    if any(rule.partial(slot.key) is None for slot in call.slots):
        return None
    try:
        return _applied(rule, call, kind, wanted)
    except UnsavedError:
        return None


def _applied(
    rule: Rule, call: Call, kind: NodeType, wanted: Sequence[int] | None = None
) -> list[tuple[Edge, torch.dtype, Maps]]:
    computed: dict[int | str, Any] = {}
    numbers = output_numbers(kind, call)
    result = []
    for slot in call.slots:
        if slot.key not in computed:
            try:
                computed[slot.key] = maps_of(
                    rule, slot.key, call.out, call.args, call.kwargs, slot.primal
                )
            except UnsavedError:
                call = recomputed(call)
                computed[slot.key] = maps_of(
                    rule, slot.key, call.out, call.args, call.kwargs, slot.primal
                )
        maps = computed[slot.key]
        maps = maps if slot.place is None else maps[slot.place]
        each = maps if isinstance(maps, (tuple, list)) else (maps,)
        fitted = {
            nr: _fitted(linear_map, call.op, slot.primal, out)
            for nr, linear_map, out in zip(numbers, each, call.outs, strict=False)
            if nr is not None and linear_map is not None and (wanted is None or nr in wanted)
        }
        result.append((slot.edge, slot.primal.dtype, fitted))
    return result


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


def _fitted(linear_map: AbstractLinearMap, op: Any, x: Tensor, out: Any) -> AbstractLinearMap:
    """Check the map's shapes. Elementwise ones broadcast, also where their rule did not think of it."""
    out_shape = tuple(out.shape)
    coef = linear_map.coef if isinstance(linear_map, Scale) else None
    if isinstance(coef, Tensor) and coef.layout is not torch.strided:
        raise UnsupportedError(
            f"{op}: a tensor that depends on the inputs meets a constant of layout {coef.layout}: expected a dense "
            "one, as elementwise operators of sparse constants are not followed. Use .to_dense(), or torch.sparse.mm."
        )
    if isinstance(coef, Unsaved):
        raise UnsavedError(str(op))
    if linear_map.out_shape != out_shape and isinstance(linear_map, (Scale, Mask)):
        linear_map = dataclasses.replace(linear_map, out_shape=out_shape)
    if linear_map.out_shape != out_shape or linear_map.in_shape != tuple(x.shape):
        raise RuleError(
            f"the rule of {op} gave {linear_map!r}: expected a map {out_shape} ← {tuple(x.shape)}. "
            "Correct the rule (docs/how-to/add-a-rule.md)."
        )
    return linear_map
