"""Interleaved writes as one: the values of sparse matrices, of which each term writes every sixth, say.

Each write by strides visits all of the memory: a matrix larger than the caches would be fetched and stored once for
each entry of a row. Writes of neighbours are one loop along the memory, which picks the entry by its place.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from pushforward.sparse.placing import meets_itself

aten = torch.ops.aten

MIN_ELEMENTS = 2**12  # of a write


class Write(NamedTuple):
    """A value that is copied to where a strided view of a tensor is."""

    number: int  # in the order of the writes
    view: fx.Node
    copy: fx.Node
    value: fx.Node
    lengths: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def end(self) -> int:
        """Return the place behind the last element."""
        steps = zip(self.strides, self.lengths, strict=True)
        return self.offset + sum(s * (n - 1) for s, n in steps) + 1


def join_interleaved(graph: fx.GraphModule) -> None:
    """Write neighbours into new tensors together."""
    for base in list(graph.graph.nodes):
        if base.target is aten.empty.memory_format:
            for group in _groups(_writes(graph, base)):
                _join(graph, base, group)
    graph.recompile()


def _writes(graph: fx.GraphModule, base: fx.Node) -> list[Write]:
    """Return the writes to strided views of a tensor, up to where it is used otherwise."""
    found: list[Write] = []
    for user in [n for n in graph.graph.nodes if n in base.users]:
        copy = next(iter(user.users), None)
        if (
            user.target is not aten.as_strided.default
            or len(user.args) != 4
            or copy is None
            or copy.target is not aten.copy_.default
            or copy.args[0] is not user
            or len(user.users) > 1
            or copy.users
        ):
            break
        _, lengths, strides, offset = user.args
        value: Any = copy.args[1]
        found.append(Write(len(found), user, copy, value, (*lengths,), (*strides,), offset))
    return found


def _groups(writes: Sequence[Write]) -> list[list[Write]]:
    """Return writes of neighbours that may all come where the last of them does."""
    alike = defaultdict(list)
    for write in writes:
        if math.prod(write.lengths) >= MIN_ELEMENTS and _is_like(write.value, write.view):
            alike[write.lengths, write.strides].append(write)
    groups: list[list[Write]] = []
    for members in alike.values():
        for write in sorted(members, key=lambda w: w.offset):
            is_next = groups and groups[-1][-1][4:6] == write[4:6]
            if is_next and groups[-1][-1].offset + 1 == write.offset:
                groups[-1].append(write)
            else:
                groups.append([write])
    return [g for g in groups if len(g) > 1 and _is_free(g, writes)]


def _is_like(value: fx.Node, view: fx.Node) -> bool:
    x, y = value.meta.get("val"), view.meta.get("val")
    return (
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and x.dtype == y.dtype
        and x.device == y.device
    )


def _is_free(group: Sequence[Write], writes: Sequence[Write]) -> bool:
    """Tell whether no element is written twice by the group, nor by others between its first and its last."""
    first = group[0]
    if meets_itself((1, *first.strides), (len(group), *first.lengths)):
        return False
    numbers = {w.number for w in group}
    start, end = first.offset, group[-1].end
    between = [w for w in writes[min(numbers) : max(numbers)] if w.number not in numbers]
    return all(w.end <= start or end <= w.offset for w in between)


def _join(graph: fx.GraphModule, base: fx.Node, group: Sequence[Write]) -> None:
    first, last = group[0], max(group, key=lambda w: w.number)
    call = graph.graph.call_function
    numbers = defaultdict(list)  # of the entries of each value, in the order of the places
    for number, write in enumerate(group):
        numbers[write.value.target, write.value.args].append(number)
    most = max(numbers.values(), key=len)
    with graph.graph.inserting_before(last.copy):
        place = call(aten.arange.default, (len(group),), {"device": base.meta["val"].device})
        value = call(aten.unsqueeze.default, (group[most[0]].value, -1))
        for number, write in enumerate(group):
            if number not in most:
                is_here = call(aten.eq.Scalar, (place, number))
                entry = call(aten.unsqueeze.default, (write.value, -1))
                value = call(aten.where.self, (is_here, entry, value))
        lengths, strides = (*first.lengths, len(group)), (*first.strides, 1)
        view = call(aten.as_strided.default, (base, lengths, strides, first.offset))
        call(aten.copy_.default, (view, value))
    for write in group:
        graph.graph.erase_node(write.copy)
        graph.graph.erase_node(write.view)
