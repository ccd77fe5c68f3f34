"""The graphs of scalar codes, as what `jacobian` records of them."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.linear.elimination import Graph
from pushforward.planning.accumulation import Accumulation
from pushforward.planning.uniform import edges
from pushforward.transforms.arguments import Selected
from pushforward.transforms.record import Tape
from scalar_codes.programs import ScalarCode


def tensors(code: ScalarCode) -> list[Tensor]:
    """Return the point."""
    return [torch.tensor(number, dtype=torch.float64) for number in code.point]


def accumulation(code: ScalarCode) -> Accumulation:
    """Count every product of two edges, and no sums; only the edge to an output is none."""
    graph = _graph(code)
    found = [(tail, head, head < 0) for tail, head, _ in edges(graph)]
    return Accumulation(graph.vertices, found, price_of_sum=0)


def calls(code: ScalarCode) -> Accumulation:
    """Count what `jacobian` does."""
    graph = _graph(code)
    return Accumulation(graph.vertices, edges(graph))


def _graph(code: ScalarCode) -> Graph:
    xs = tuple(tensors(code))
    selected = Selected("jacobian", xs, tuple(range(len(xs))))
    with torch.enable_grad(), Tape("jacobian", code.func, selected, {}) as tape:
        return Graph(tape.program, [tuple(y.shape) for y in tape.outputs])
