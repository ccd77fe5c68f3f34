"""Nodes to linear maps: what the rule of each operator makes of its call."""

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
from pushforward.rules.registry import Rule, is_nondifferentiable, listeners, lookup, maps_of
from pushforward.tape import black_boxes, hooks, irregular, probing, ruled, writes
from pushforward.tape.calls import (
    Call,
    Shapes,
    Slot,
    called,
    functional,
    output_numbers,
    recomputed,
)
from pushforward.tape.node_types import MOVEMENTS, RULED, NodeType
from pushforward.tape.overwritten import RestoredNode
from pushforward.tape.private_torch import Node, output_metadata
from pushforward.tape.reader import Edge, Reading
from pushforward.tape.stores import Stores
from pushforward.tape.unsaved import Unsaved, UnsavedError

MISSING: Edge = (-1, 0)

# A linear map for each output of a node that has one.
Maps = dict[int, AbstractLinearMap]
Part = tuple[Edge, AbstractLinearMap, torch.dtype]


def lower(name: str, reading: Reading) -> LinearProgram:
    """Return the linear program of what was read; ``name`` is the transform, for messages."""
    stores = Stores(reading)
    outputs = [stores.at(edge) for edge in reading.outputs]
    needed: dict[int, set[int]] = {}  # by number: which of the node's outputs

    def need(edge: Edge) -> None:
        number, nr = edge
        if number in needed:
            needed[number].add(nr)
        else:
            needed[number] = {nr}

    for edge in outputs:
        if edge[0] >= 0:
            need(edge)
    kept: list[tuple[Edge, list[Part], torch.dtype, str]] = []
    inner = irregular.inner_places(reading)
    for place in range(len(reading.nodes) - 1, -1, -1):
        number = reading.num_inputs + place
        if number not in needed:
            continue
        wanted = sorted(needed[number])
        metadata = output_metadata(reading.nodes[place])
        if stores.versions and (number, 0) in stores.versions:
            for edge, parts_of, dtype in reversed(
                writes.variables(stores, (number, 0), metadata[0].device)
            ):
                kept.append((edge, parts_of, dtype, "copy into a view by rule"))
                for source, _, _ in parts_of:
                    need(source)
            continue
        edges = reading.edges(place)
        if stores.forwarded:
            edges = [stores.at(edge) for edge in edges]
        parts, origin = _parts(name, reading, place, edges, wanted, inner)
        for nr in reversed(wanted):
            kept.append(((number, nr), parts[nr], metadata[nr].dtype, origin))
            for edge, _, _ in parts[nr]:
                need(edge)
    variables: dict[Edge, int] = {}
    equations: list[Equation] = []
    numbers = itertools.count()
    for i in range(reading.num_inputs):
        variables[i, 0] = next(numbers)
    for i in range(reading.num_inputs):
        _add_hooks(reading, (i, 0), variables, equations, numbers)
    for edge, parts_of, dtype, origin in reversed(kept):
        terms = [Term(variables[source], linear_map, like) for source, linear_map, like in parts_of]
        variables[edge] = number = next(numbers)
        equations.append(Equation(number, terms, dtype, origin))
        if reading.hooks:
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
    else:
        joined = reading.joined.get(place)
        by_rule = maps_by_rule(kind, node, edges, reading.saved(place), wanted, joined)
        if by_rule is not None:
            found, origin = by_rule, _origin(kind)
        else:
            node = node.node if isinstance(node, RestoredNode) else node
            found = black_boxes.maps(name, node, edges, wanted, reading.anchors)
            origin = f"{node.name()} by PyTorch"
    for edge, dtype, maps in found:
        for nr, linear_map in maps.items():
            parts[nr].append((edge, linear_map, dtype))
    return parts, origin


@functools.cache
def _origin(kind: NodeType) -> str:
    return f"{kind.op or kind.name} by rule"


def _by_rule_of_user(
    node: Node, edges: Sequence[Edge], saved: Sequence[Tensor], wanted: Sequence[int] | None
) -> list[tuple[Edge, torch.dtype, Maps]]:
    tensors, out = ruled.arguments_and_output(node, saved)
    args, kwargs = node.call.arguments(tensors)
    found: list[tuple[Edge, torch.dtype, Maps]] = []
    for index, (edge, key, x) in enumerate(zip(edges, node.call.keys(), tensors, strict=True)):
        if edge[0] >= 0:
            slots = [Slot(key[0], key[1], edge, x, index)]
            call = Call(node.call.operator, args, kwargs, out, slots)
            found += _applied(node.call.rule(key), call, RULED, wanted)
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
        return _by_rule_of_user(node, edges, saved[0], wanted)
    if kind.op is None:
        return None
    rule, is_constant = _rule_of(kind)
    if is_constant:
        return []
    if rule is None:
        return None
    call = called(kind, node, edges, saved, like=rule.like, joined=joined)
    for slot in call.slots:
        if slot.key not in rule.partials:
            return None
    try:
        return _applied(rule, call, kind, wanted)
    except UnsavedError:
        return None


@functools.cache
def _rule_of(kind: NodeType) -> tuple[Rule | None, bool]:
    """Return the rule of a type of nodes, and whether it has no derivative."""
    op = functional(kind.op)
    return lookup(kind.op) or lookup(op), is_nondifferentiable(op)


listeners.append(lambda _: _rule_of.cache_clear())


def _applied(
    rule: Rule, call: Call, kind: NodeType, wanted: Sequence[int] | None = None
) -> list[tuple[Edge, torch.dtype, Maps]]:
    computed: dict[int | str, Any] = {}
    result: list[tuple[Edge, torch.dtype, Maps]] = []
    first = call.out[0] if isinstance(call.out, tuple) else call.out
    for slot in call.slots:
        key, x = slot.key, slot.primal
        if key not in computed:
            try:
                computed[key] = maps_of(rule, key, call.out, call.args, call.kwargs, x)
            except UnsavedError:
                call = recomputed(call)
                computed[key] = maps_of(rule, key, call.out, call.args, call.kwargs, x)
        maps = computed[key]
        if slot.place is not None:
            maps = maps[slot.place]
        if isinstance(maps, AbstractLinearMap):  # nearly always
            found = {0: _fitted(maps, call.op, x, first)}
        else:
            found = {
                nr: _fitted(linear_map, call.op, x, out)
                for nr, linear_map, out in zip(
                    output_numbers(kind, call), maps or (), call.outs, strict=False
                )
                if nr is not None and linear_map is not None and (wanted is None or nr in wanted)
            }
        result.append((slot.edge, x.dtype, found))
    return result


def _fitted(linear_map: AbstractLinearMap, op: Any, x: Tensor, out: Any) -> AbstractLinearMap:
    """Check the map's shapes. Elementwise ones broadcast, also where their rule did not think of it."""
    out_shape = tuple(out.shape)
    coef = linear_map.coef if type(linear_map) is Scale else None
    if isinstance(coef, Tensor) and coef.layout is not torch.strided:
        raise UnsupportedError(
            f"{op}: a tensor that depends on the inputs meets a constant of layout {coef.layout}: expected a dense "
            "one, as elementwise operators of sparse constants are not followed. Use .to_dense(), or torch.sparse.mm."
        )
    if isinstance(coef, Unsaved):
        raise UnsavedError(str(op))
    if linear_map.out_shape != out_shape and type(linear_map) in (Scale, Mask):
        linear_map = dataclasses.replace(linear_map, out_shape=out_shape)
    if linear_map.out_shape != out_shape or linear_map.in_shape != tuple(x.shape):
        raise RuleError(
            f"the rule of {op} gave {linear_map!r}: expected a map {out_shape} ← {tuple(x.shape)}. "
            "Correct the rule (docs/how-to/add-a-rule.md)."
        )
    return linear_map
