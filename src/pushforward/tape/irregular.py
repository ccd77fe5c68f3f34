"""Sparse and nested tensors that depend on the inputs: blocks are of dense ones, so what lies between is called whole.

A region is what leads from dense variables through such tensors to the next dense variable. Cotangents go back through
its nodes one by one, in whatever layout these give; tangents go by the rows of the Jacobian.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from pushforward.errors import UnsupportedError
from pushforward.linear.differentiated import is_differentiated_again
from pushforward.linear.kinds.general import General
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.program import in_dtype
from pushforward.linear.transposition import LinearFunction
from pushforward.tape.black_boxes import by_rows, call
from pushforward.tape.custom_functions import refusing
from pushforward.tape.private_torch import Node, output_metadata
from pushforward.tape.reader import Edge, Reading

_TO_SPARSE = {
    *("SparseCooTensorWithDimsAndTensorsBackward0", "SparseCompressedTensorBackward0"),
    *("ToSparseBackward0", "ToSparseBackward1", "ToSparseCsrBackward0", "ToSparseCscBackward0"),
}
# Nodes whose output is sparse though no input is, and those whose output is dense though an input is sparse.
_MAKERS = _TO_SPARSE | {
    *("ToSparseBsrBackward0", "ToSparseBscBackward0", "SparseMaskBackward0"),
    *("SparseSampledAddmmBackward0",),
}
_ENDS = {"ToDenseBackward0", "ValuesBackward0"}

# These only move elements; of others PyTorch's second derivatives lack terms.
_KEPT_SPARSE = {"CoalesceBackward0", "TBackward0", "TransposeBackward0", "CloneBackward0"}
_MOVING = _TO_SPARSE | _ENDS | _KEPT_SPARSE
_UNSAFE = (
    "pushforward: second derivatives of operators on real sparse tensors: PyTorch's lack terms, expected first ones "
    "only. Use .to_dense() before, or make the sparse tensor inside the function."
)

# For every node of a region, for every edge: the number of a node of the region, whose output; or that the edge is the
# one that is asked for.
Plan = tuple[tuple[tuple[int, int] | None, ...], ...]
_ASKED = (-1, 0)


def inner_places(reading: Reading, metadata: Sequence[Sequence[Any]]) -> set[int]:
    """Return the places of the nodes whose outputs are, or may be, sparse or nested, from their metadata."""
    found = {place for place, outs in enumerate(metadata) for each in outs if each.is_nested_tensor}
    if not found and _MAKERS.isdisjoint([kind.name for kind in reading.types]):
        return found  # nearly always
    for place, kind in enumerate(reading.types):
        name = kind.name
        if name in _MAKERS:
            found.add(place)
        elif found and name not in _ENDS and not _leaves_nested(reading, place, found):
            sources = (number - reading.num_inputs for number, _ in reading.edges(place))
            if any(source in found for source in sources):
                found.add(place)
    return found


def _leaves_nested(reading: Reading, place: int, inner: set[int]) -> bool:
    """Tell whether a node has a nested input; that its output is none is known."""
    for number, _ in reading.edges(place):
        source = number - reading.num_inputs
        if source in inner:
            metadata = output_metadata(reading.nodes[source])
            if any(each.is_nested_tensor for each in metadata):
                return True
    return False


def is_end(reading: Reading, place: int, inner: set[int]) -> bool:
    """Tell whether a region ends in a node: it is of one, or takes what is sparse or nested."""
    return place in inner or any(n - reading.num_inputs in inner for n, _ in reading.edges(place))


def maps(
    reading: Reading, place: int, inner: set[int], wanted: Sequence[int]
) -> list[tuple[Edge, torch.dtype, dict[int, AbstractLinearMap]]]:
    """Return (edge, dtype, maps by output) for each dense variable that the region which ends in a node starts from."""
    places = _region(reading, place, inner)
    nodes = [reading.nodes[p] for p in places]
    unsafe = is_differentiated_again() and _has_wrong_second_derivatives(nodes)
    result = []
    for edge, x in _starts(reading, places, inner).items():
        plan = _plan(reading, places, edge)
        found: dict[int, AbstractLinearMap] = {}
        for nr in wanted:
            out = output_metadata(nodes[-1])[nr]
            layout = _layout(reading, (place + reading.num_inputs, nr))
            arguments = (nodes, plan, nr, layout, tuple(x.shape), x.dtype)
            pull: LinearFunction = functools.partial(_pulled, *arguments)
            push: LinearFunction = functools.partial(
                _pushed, tuple(out.shape), out.dtype, *arguments
            )
            if unsafe:
                push = refusing(_UNSAFE, reading.anchors, push)
                pull = refusing(_UNSAFE, reading.anchors, pull)
            found[nr] = General(tuple(x.shape), tuple(out.shape), push, pull)
        result.append((edge, x.dtype, found))
    return result


def _has_wrong_second_derivatives(nodes: Sequence[Node]) -> bool:
    is_nested = any(m.is_nested_tensor for node in nodes for m in output_metadata(node))
    return not is_nested and any(node.name() not in _MOVING for node in nodes)


def _region(reading: Reading, end: int, inner: set[int]) -> list[int]:
    """Return the places of a region's nodes, in order."""
    found, stack = {end}, [end]
    while stack:
        for number, _ in reading.edges(stack.pop()):
            source = number - reading.num_inputs
            if source in inner and source not in found:
                found.add(source)
                stack.append(source)
    return sorted(found)


def _starts(reading: Reading, places: Sequence[int], inner: set[int]) -> dict[Edge, Any]:
    """Return the edges by which a region is entered, with what is known of their tensors."""
    found: dict[Edge, Any] = {}
    for place in places:
        targets = reading.nodes[place].next_functions
        for edge, (target, nr) in zip(reading.edges(place), targets, strict=True):
            if edge[0] >= 0 and edge[0] - reading.num_inputs not in inner:
                found[edge] = output_metadata(target)[nr]
    return found


def _plan(reading: Reading, places: Sequence[int], asked: Edge) -> Plan:
    numbers = {place + reading.num_inputs: i for i, place in enumerate(places)}

    def step(edge: Edge) -> tuple[int, int] | None:
        if edge == asked:
            return _ASKED
        return (numbers[edge[0]], edge[1]) if edge[0] in numbers else None

    return tuple(tuple(step(edge) for edge in reading.edges(place)) for place in places)


def _layout(reading: Reading, edge: Edge) -> torch.layout:
    """Return the layout of what the function returns from there; what others take is dense."""
    for output, tensor in zip(reading.outputs, reading.anchors, strict=False):
        if output == edge:
            return tensor.layout
    return torch.strided


def _pulled(
    nodes: Sequence[Node],
    plan: Plan,
    nr: int,
    layout: torch.layout,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    cotangents: Tensor,
) -> Tensor:
    """Pull cotangents of an output of the last node, seeds first, to the input that the plan asks for."""
    if has_torch_function((cotangents,)):
        result: Tensor = handle_torch_function(
            _pulled, (cotangents,), nodes, plan, nr, layout, shape, dtype, cotangents
        )
        return result
    found = [_pulled_one(nodes, plan, nr, layout, shape, dtype, c) for c in cotangents]
    if not found:
        return torch.zeros((0, *shape), dtype=dtype, device=cotangents.device)
    return torch.stack(found)


def _pulled_one(
    nodes: Sequence[Node],
    plan: Plan,
    nr: int,
    layout: torch.layout,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    cotangent: Tensor,
) -> Tensor:
    last = len(nodes) - 1
    waiting: dict[tuple[int, int], Tensor] = {(last, nr): _in_layout(cotangent, layout)}
    arrived: list[Tensor] = []
    for number in range(last, -1, -1):
        node, metadata = nodes[number], output_metadata(nodes[number])
        arriving = [waiting.pop((number, i), None) for i in range(len(metadata))]
        if all(each is None for each in arriving):
            continue
        for step, found in zip(plan[number], _called(node, arriving), strict=True):
            if step is None or found is None:
                continue
            if step == _ASKED:
                arrived.append(_dense(found, shape, dtype))
            else:
                before = waiting.get(step)
                waiting[step] = found if before is None else _added(before, found)
    if not arrived:
        return torch.zeros(shape, dtype=dtype, device=cotangent.device)
    return functools.reduce(torch.add, arrived)


def _called(node: Node, arriving: Sequence[Tensor | None]) -> Iterable[Tensor | None]:
    try:
        return call(node, arriving)
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedError(
            f"pushforward: {node.name()} of a sparse or nested tensor that depends on the inputs: PyTorch has no "
            f"derivative of it ({str(error).splitlines()[0]}), expected a dense tensor. Use .to_dense() before."
        ) from error


def _in_layout(cotangent: Tensor, layout: torch.layout) -> Tensor:
    return cotangent if layout is torch.strided else cotangent.to_sparse(layout=layout)


def _added(a: Tensor, b: Tensor) -> Tensor:
    if a.layout is not b.layout and not (a.is_nested or b.is_nested):
        a, b = a.to_dense(), b.to_dense()
    return a + b


def _dense(cotangent: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return what arrived at a dense tensor as a dense one."""
    if cotangent.is_nested:
        cotangent = cotangent.values()
    elif cotangent.layout is not torch.strided:
        cotangent = cotangent.to_dense()
    if cotangent.shape != shape:
        cotangent = cotangent.sum_to_size(shape)
    return in_dtype(cotangent, dtype)


def _pushed(out_shape: tuple[int, ...], out_dtype: torch.dtype, *arguments: Any) -> Tensor:
    *rest, tangents = arguments
    pull = functools.partial(_pulled, *rest)
    return by_rows(pull, out_shape, out_dtype, tangents)
