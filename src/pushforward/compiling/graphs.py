"""Graphs as they come from the tracer, made ready: captured tensors are inputs, what nobody uses is left out."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

# It gives nothing, but may raise; some versions of PyTorch take it for dead code.
fx.node.has_side_effect(aten._linalg_check_errors.default)

MAX_CONSTANT_BYTES = 2**20  # of a tensor that is kept instead of being made at each call
MAX_READ_BYTES = 2**15  # of one that loops read: more would fill the first cache
MAX_READ_UNIT = 16  # elements of a unit matrix that loops read

_MADE = {  # by numbers and positions
    *(aten.arange, aten.full, aten.full_like, aten.new_full, aten.new_ones, aten.new_zeros),
    *(aten.ones, aten.ones_like, aten.scalar_tensor, aten.zeros, aten.zeros_like),
    *(aten._to_copy, aten.clone, aten.tril, aten.triu),
}


def prepared(graph: fx.GraphModule) -> None:
    """Leave out what nobody uses, and make numbers tensors of their own dtype."""
    _name_numbers(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def used(graph: fx.GraphModule, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return those of ``tensors`` that a graph has as its own."""
    found = {id(t) for t in _own(graph).values()}
    return list({id(t): t for t in tensors if id(t) in found}.values())


def make_inputs(graph: fx.GraphModule, tensors: Sequence[Tensor], start: int | None = None) -> None:
    """Take tensors that a graph has as its own from inputs: new ones behind the others, or those from ``start`` on."""
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    if start is None:
        start, inner = len(placeholders), graph.graph
        first = next(n for n in inner.nodes if n.op != "placeholder")
        with inner.inserting_before(first):
            for number, tensor in enumerate(tensors, start):
                placeholders.append(inner.placeholder(f"captured_{number}"))
                placeholders[-1].meta["val"] = tensor
    inputs = {id(t): placeholders[start + i] for i, t in enumerate(tensors)}
    for node, tensor in _own(graph).items():
        if id(tensor) in inputs:
            node.replace_all_uses_with(inputs[id(tensor)])
            graph.graph.erase_node(node)
    left = {n.target for n in graph.graph.nodes if n.op == "get_attr"}
    for name in {**graph._parameters, **graph._buffers}.keys() - left:
        delattr(graph, name)
    graph.recompile()


def _own(graph: fx.GraphModule) -> dict[fx.Node, Tensor]:
    nodes = [n for n in graph.graph.nodes if n.op == "get_attr"]
    found = {n: getattr(graph, n.target) for n in nodes}
    return {n: t for n, t in found.items() if isinstance(t, Tensor)}


def _name_numbers(graph: fx.GraphModule) -> None:
    """Make tensors of numbers in their own dtype at once: a compiler would round them to the default dtype first."""
    for node in graph.graph.nodes:
        if node.target is aten._to_copy.default and isinstance(node.args[0], (int, float, complex)):
            given = {k: v for k, v in node.kwargs.items() if k in ("dtype", "device")}
            node.target = aten.scalar_tensor.default
            node.kwargs = given


def is_random(graph: fx.GraphModule) -> bool:
    """Tell whether a graph draws random numbers."""
    return any(torch.Tag.nondeterministic_seeded in _tags(n) for n in graph.graph.nodes)


def _tags(node: fx.Node) -> Sequence[Any]:
    return getattr(node.target, "tags", ())


def is_mutable(node: fx.Node) -> bool:
    """Tell whether an operator writes to an argument."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def writes_to_inputs(graph: fx.GraphModule) -> bool:
    """Tell whether a graph may write to its inputs."""
    shared = aliases(graph)
    inputs = {n for n in graph.graph.nodes if n.op in ("placeholder", "get_attr")}
    return any(
        not inputs.isdisjoint(shared[argument])
        for node in graph.graph.nodes
        if is_mutable(node)
        for argument in _written(node)
    )


def _written(node: fx.Node) -> list[fx.Node]:
    """Return the arguments that an operator writes to."""
    assert isinstance(node.target, torch._ops.OpOverload)
    found: list[fx.Node] = []
    for place, declared in enumerate(node.target._schema.arguments):
        if declared.alias_info is not None and declared.alias_info.is_write:
            given: Any = node.kwargs.get(declared.name)
            if given is None and place < len(node.args):
                given = node.args[place]
            found += given if isinstance(given, (list, tuple)) else [given]
    return [n for n in found if isinstance(n, fx.Node)]


def aliases(graph: fx.GraphModule) -> dict[fx.Node, set[fx.Node]]:
    """Return for each node the nodes in whose memory it may lie, itself among them."""
    found: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.graph.nodes:
        found[node] = {node}
        if _is_view(node):
            for argument in node.all_input_nodes:
                found[node] |= found[argument]
    return found


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.op in ("call_function", "call_method", "call_module")
    return any(r.alias_info is not None for r in node.target._schema.returns)


def fold_constants(graph: fx.GraphModule, are_loops: bool = False) -> None:
    """Compute once what depends on no input: units, positions, tensors of numbers.

    Where graphs become loops (``are_loops``), what these compute faster than they would read it is left to them.
    """
    returned = set(graph.graph.output_node().all_input_nodes)
    shared = aliases(graph)
    kept = set().union(*(shared[n] for n in returned))  # the caller may write to what it gets
    for node in graph.graph.nodes:
        if is_mutable(node):
            kept |= set().union(*(shared[n] for n in _written(node)))
    values: dict[fx.Node, Any] = {}
    fast: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if are_loops and _is_fast(node) and fast.issuperset(node.all_input_nodes):
            fast.add(node)
        if node in kept or not shared[node].isdisjoint(kept):
            continue
        if node.op == "get_attr" and isinstance(getattr(graph, node.target), Tensor):
            values[node] = getattr(graph, node.target)
        elif is_pure(node) and all(n in values for n in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            result = node.target(*args, **kwargs)
            if _is_small(result):
                values[node] = result
    for number, (node, value) in enumerate(values.items()):
        is_used = any(user not in values for user in node.users)
        if node.op == "get_attr" or not is_used or not isinstance(value, Tensor):
            continue
        if are_loops and (node in fast or value.nbytes > MAX_READ_BYTES or _is_uniform(value)):
            continue
        name = f"_folded_{number}"
        graph.register_buffer(name, value)
        with graph.graph.inserting_before(node):
            new = graph.graph.get_attr(name)
        new.meta["val"] = value
        node.replace_all_uses_with(new)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _is_fast(node: fx.Node) -> bool:
    """Tell whether a loop computes an element in a few instructions: of positions and numbers."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem
    packet = node.target.overloadpacket
    if packet is aten.eye:  # whose comparisons take longer along axes shorter than a vector
        return bool(node.meta["val"].numel() > MAX_READ_UNIT)
    return packet in _MADE or torch.Tag.pointwise in node.target.tags or _is_view(node)


def _is_uniform(x: Tensor) -> bool:
    return x.numel() < 2 or bool((x == x.flatten()[0]).all())


def is_pure(node: fx.Node) -> bool:
    """Tell whether a node's result depends on its arguments only."""
    if node.target is operator.getitem:
        return True
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and not is_mutable(node)
        and torch.Tag.nondeterministic_seeded not in node.target.tags
        and "empty" not in node.target.name()
    )


def _is_small(result: Any) -> bool:
    parts = result if isinstance(result, (tuple, list)) else [result]
    return all(
        isinstance(p, Tensor) and p.untyped_storage().nbytes() <= MAX_CONSTANT_BYTES for p in parts
    )
