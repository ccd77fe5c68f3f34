"""Programs in which every product of two edges costs the same: all maps multiply elementwise, in one shape."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.elimination import Graph, Item
from pushforward.linear.kinds.pointwise import Pointwise
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scale import Scale, number
from pushforward.planning.accumulation import Accumulation
from pushforward.planning.costs import Cost


class Uniform:
    """Such a program's graph, and what orders of elimination cost in it."""

    def __init__(self, graph: Graph, shape: Shape, like: Tensor) -> None:
        """Take a graph of which `common_shape` is ``shape``."""
        self.vertices = graph.vertices
        self._accumulation = Accumulation(self.vertices, edges(graph))
        self._size = math.prod(shape) * like.element_size()

    def cost(self, order: Iterable[int]) -> Cost:
        """Predict an order: every product and every sum is one call that reads and writes as much as any other."""
        calls = self._accumulation.work(order)
        return Cost(calls, 0, 2 * calls * self._size)

    def best(self) -> list[int]:
        """Search an order."""
        return self._accumulation.best()


def common_shape(graph: Graph) -> Shape | None:
    """Return the shape of everything in a uniform program, None if it is not one."""
    items = [i for tails in graph.into.values() for edge in tails.values() for i in edge]
    shapes = {shape for item in items for shape in _shapes(item)}
    return next(iter(shapes)) if len(shapes) == 1 else None


def _shapes(item: Item) -> tuple[Shape | None, ...]:
    if isinstance(item, (Scale, Pointwise, Reshape)):
        return item.in_shape, item.out_shape
    return None, ()


def edges(graph: Graph) -> list[tuple[int, int, bool]]:
    """Return (tail, head, whether it is 1 or -1)."""
    return [
        (tail, head, len(items) == 1 and _is_unit(items[0]))
        for head, tails in graph.into.items()
        for tail, items in tails.items()
    ]


def _is_unit(item: Item) -> bool:
    return isinstance(item, Reshape) or number(item) in (1, -1)
