"""Nodes to linear maps: what the rule of each operator makes of its call."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.block_sum import Blocks
from pushforward.linear.kinds.general import General
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.program import Equation, LinearProgram, Look, Term, pulled
from pushforward.linear.transposition import LinearFunction
from pushforward.rules.registry import Rule, maps_of
from pushforward.tape import (
    black_boxes,
    distributed_tensors,
    hooks,
    irregular,
    probing,
    ruled,
    writes,
)
from pushforward.tape.calls import (
    Call,
    Shapes,
    Slot,
    called,
    output_numbers,
    recomputed,
)
from pushforward.tape.node_types import BOUNDARY, MOVEMENTS, RULED, NodeType
from pushforward.tape.overwritten import RestoredNode
from pushforward.tape.prepared import (
    ACTIVE,
    CONSTANT,
    NOTHING,
    Memo,
    fitted,
    origin_of,
    prepared,
    rule_of,
)
from pushforward.tape.private_functorch import functorch_level, with_functorch
from pushforward.tape.private_torch import Node, output_metadata
from pushforward.tape.reader import Edge, Reading
from pushforward.tape.stores import Stores
from pushforward.tape.unsaved import Unsaved, UnsavedError, unsaved_like

FEW = 64  # equations: a tenth of the time less than one by one
SMALL = 2**14  # numbers: larger maps are made one by one, so that few live at once

# A linear map for each output of a node that has one.
Maps = dict[int, AbstractLinearMap]
Part = tuple[Edge, AbstractLinearMap, torch.dtype]


def lower(name: str, reading: Reading) -> LinearProgram:
    """Return the linear program of what was read; ``name`` is the transform, for messages."""
    stores = Stores(reading)
    variables: dict[Edge, int] = {}
    equations: list[Equation] = []
    numbers = itertools.count()
    for i in range(reading.num_inputs):
        variables[i, 0] = next(numbers)
    for i in range(reading.num_inputs):
        _add_hooks(reading, (i, 0), variables, equations, numbers)
    for equation in reversed(list(_backwards(name, reading, stores))):
        edge = equation.variable
        for term in equation.terms:
            term.variable = variables[term.variable]
        variables[edge] = equation.variable = next(numbers)
        equation.place = edge[0] - reading.num_inputs
        equations.append(equation)
        if reading.hooks:
            _add_hooks(reading, edge, variables, equations, numbers)
    outputs = [variables.get(stores.at(edge)) for edge in reading.outputs]
    return LinearProgram(list(range(reading.num_inputs)), equations, outputs)


def pull(
    name: str, reading: Reading, cotangents: Sequence[Blocks], look: Look | None = None
) -> list[Blocks]:
    """Pull cotangent blocks through what was read, with the maps of a few nodes at a time.

    Without hooks, whose variables only a program has. ``look`` is that of `program.pulled`.
    """
    stores = Stores(reading)
    inputs = [(i, 0) for i in range(reading.num_inputs)]
    ends = [stores.at(edge) for edge in reading.outputs]
    outputs = [edge if edge[0] >= 0 else None for edge in ends]
    equations = _backwards(name, reading, stores)
    if all(t.numel() <= SMALL for t in reading.all_saved()):
        equations = _few(equations)
    return pulled(equations, inputs, outputs, cotangents, look)


def _few(equations: Iterator[Equation]) -> Iterator[Equation]:
    """Make a few equations at a time: one by one, the processor has the code no longer at hand each time."""
    while made := list(itertools.islice(equations, FEW)):
        made.reverse()
        while made:
            yield made.pop()


def _backwards(name: str, reading: Reading, stores: Stores) -> Iterator[Equation]:
    """Make the equations of all that the outputs depend on, the last one first; variables are edges."""
    needed = {stores.at(edge) for edge in reading.outputs}
    all_metadata = list(map(output_metadata, reading.nodes))
    all_edges = reading.all_edges
    inner = irregular.inner_places(reading, all_metadata)
    prepare = _Preparation(reading, all_metadata)
    for place in range(len(reading.nodes) - 1, -1, -1):
        number = reading.num_inputs + place
        first: Edge = (number, 0)
        metadata = all_metadata[place]
        if len(metadata) == 1:
            wanted = [0] if first in needed else []
        else:
            wanted = [nr for nr in range(len(metadata)) if (number, nr) in needed]
        if not wanted:
            continue
        equations: list[Equation] | None = None
        edges = all_edges[place]
        if stores.versions and first in stores.versions:
            made = writes.variables(stores, first, metadata[0].device)
            equations = [
                _equation(edge, parts, dtype, "copy into a view by rule")
                for edge, parts, dtype in reversed(made)
            ]
        else:
            if stores.forwarded:
                edges = [stores.at(edge) for edge in edges]
            is_usual = len(metadata) == 1 and not inner and place not in reading.joined
            if is_usual and place not in reading.hooked:
                equations = prepare.equation(place, edges)
            if equations is None:
                parts, origin = _parts(name, reading, place, edges, wanted, inner)
                equations = [
                    _equation((number, nr), parts[nr], metadata[nr].dtype, origin)
                    for nr in reversed(wanted)
                ]
        for equation in equations:
            for term in equation.terms:
                needed.add(term.variable)
            yield equation


def _equation(edge: Edge, parts: Sequence[Part], dtype: torch.dtype, origin: str) -> Equation:
    return Equation(edge, [Term(source, each, like) for source, each, like in parts], dtype, origin)


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


class _Preparation:
    """What nodes with one output are made equations of, where the same is known of all of their type."""

    def __init__(self, reading: Reading, metadata: Sequence[Sequence[Any]]) -> None:
        """Take the nodes of a reading, and the metadata of their outputs."""
        self._reading, self._metadata = reading, metadata
        self._edges, self._ends = reading.all_edges, [*reading.starts[1:], len(reading.tensors)]
        self._stand_ins: dict[Edge, Unsaved] = {}
        self._memo: Memo = {}

    def equation(self, place: int, edges: Sequence[Edge]) -> list[Equation] | None:
        """Return the equation of a node's output; None where that has to be looked into."""
        reading, stand_ins = self._reading, self._stand_ins
        node, kind = reading.nodes[place], reading.types[place]
        if kind.op is None:
            return None
        saved = reading.tensors[reading.starts[place] : self._ends[place]]
        states: list[int] = []
        sources: list[Unsaved | None] = []
        for index, edge in enumerate(self._edges[place]):
            source = stand_ins.get(edge)
            if source is None:
                source = self._source(node, index, edge)
            sources.append(source)
            states.append(
                ACTIVE if edges[index][0] >= 0 else NOTHING if source is None else CONSTANT
            )
        given = tuple([s is not None for s in saved]) if saved else ()
        ready = prepared(kind, tuple(states), given)
        if ready is None:
            return None
        own = (reading.num_inputs + place, 0)
        out = stand_ins.get(own)
        if out is None:
            out = stand_ins[own] = unsaved_like(self._metadata[place][0])
        terms = ready.terms(node, saved, sources, out, edges, self._memo)
        return None if terms is None else [Equation(own, terms, out.dtype, ready.origin)]

    def _source(self, node: Node, index: int, edge: Edge) -> Unsaved | None:
        """Return a stand-in for an input of a node, None for one that leads nowhere."""
        number, nr = edge
        place = number - self._reading.num_inputs
        if place >= 0:
            found = self._stand_ins[edge] = unsaved_like(self._metadata[place][nr])
            return found
        target, nr = node.next_functions[index]
        return None if target is None else unsaved_like(output_metadata(target)[nr])


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
    elif kind is BOUNDARY:
        found = distributed_tensors.maps(node, edges, wanted)
        origin = f"{node.name()} by rule"
    else:
        joined = reading.joined.get(place)
        is_hooked = place in reading.hooked
        by_rule = None
        if not is_hooked:
            by_rule = maps_by_rule(kind, node, edges, reading.saved(place), wanted, joined)
        if by_rule is not None:
            found, origin = by_rule, origin_of(kind)
        else:
            node = node.node if isinstance(node, RestoredNode) else node
            found = black_boxes.maps(name, node, edges, wanted, reading.anchors, is_hooked)
            origin = f"{node.name()} by PyTorch"
    for edge, dtype, maps in found:
        for nr, linear_map in maps.items():
            parts[nr].append((edge, linear_map, dtype))
    return parts, origin


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
            with with_functorch():  # a formula may call an autograd.Function, which looks for it
                found += _applied(node.call.rule(key), call, RULED, wanted)
    if functorch_level() is None:
        return found
    return [
        (edge, dtype, {nr: _seeing_functorch(each) for nr, each in maps.items()})
        for edge, dtype, maps in found
    ]


def _seeing_functorch(linear_map: AbstractLinearMap) -> AbstractLinearMap:
    """Return a map whose functions may call an ``autograd.Function``, too."""
    if type(linear_map) is not General:
        return linear_map

    def seeing(function: LinearFunction) -> LinearFunction:
        def called(seeds: Tensor) -> Tensor:
            with with_functorch():
                return function(seeds)

        return called

    return dataclasses.replace(
        linear_map,
        push_seeds=seeing(linear_map.push_seeds),
        pull_seeds=seeing(linear_map.pull_seeds),
    )


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
    rule, is_constant = rule_of(kind)
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
            found = {0: fitted(maps, call.op, x, first)}
        else:
            found = {
                nr: fitted(linear_map, call.op, x, out)
                for nr, linear_map, out in zip(
                    output_numbers(kind, call), maps or (), call.outs, strict=False
                )
                if nr is not None and linear_map is not None and (wanted is None or nr in wanted)
            }
        result.append((slot.edge, x.dtype, found))
    return result
