"""The search of an order of elimination, and what is predicted of an order.

References:
    Griewank and Walther, Evaluating Derivatives (2008), chapters 9 and 10: vertex elimination and the Markowitz rule.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any

import torch

from pushforward.linear.axes import Shape
from pushforward.linear.block import Block
from pushforward.linear.elimination import Graph, Item, multiply
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.program import LinearProgram
from pushforward.planning.costs import Cost, push_cost
from pushforward.planning.uniform import Uniform, common_shape

LOCAL_SEARCH_MOVES = 12  # for each vertex
MAX_ELIMINATIONS = 5000  # of vertices, in a local search: longer programs get fewer moves
STRIDED_COPY = 3  # how much slower it is to write the transpose of what is read


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """What one order is expected to need."""

    cost: Cost
    peak_bytes: int  # blocks alive at once
    # Shadows: forward of each variable, reverse of each cotangent
    blocks: dict[int, tuple[Block, ...]]
    order: tuple[int, ...] = ()  # of elimination, where it is cross-country


class Search:
    """Finds an order of elimination. Products that were predicted before are remembered."""

    def __init__(
        self, program: LinearProgram, output_shapes: list[Shape], starts: list[Block]
    ) -> None:
        """Take a shadow of the program, and the blocks with which its sweeps start."""
        self._graph = Graph(program, output_shapes)
        self._known: dict[Any, tuple[Item, Cost]] = {}
        dtype = starts[0].values.dtype
        self._like = torch.empty((), dtype=dtype, device="meta")
        shape = common_shape(self._graph)
        self.uniform = None if shape is None else Uniform(self._graph, shape, self._like)

    def pure(self, prediction: Prediction, *, is_forward: bool) -> Prediction:
        """Return a prediction of a pure mode, measured as orders are."""
        if self.uniform is None:
            return prediction
        order = self.uniform.vertices if is_forward else self.uniform.vertices[::-1]
        return dataclasses.replace(prediction, cost=self.uniform.cost(order))

    def best(self) -> Prediction:
        """Search greedily, then by moving one vertex at a time."""
        if self.uniform is not None:
            order = self.uniform.best()
            return Prediction(self.uniform.cost(order), self._peak(order), {}, tuple(order))
        order, least = self._greedy()
        random_moves = random.Random(0)
        moves = min(LOCAL_SEARCH_MOVES * len(order), MAX_ELIMINATIONS // max(len(order), 1))
        for _ in range(moves if len(order) > 1 else 0):
            moved = list(order)
            moved.insert(
                random_moves.randrange(len(order)), moved.pop(random_moves.randrange(len(order)))
            )
            if moved == order:
                continue
            cost = self._evaluate(moved, least)
            if cost is not None:
                order, least = moved, cost
        return Prediction(least, self._peak(order), {}, tuple(order))

    def _greedy(self) -> tuple[list[int], Cost]:
        """Eliminate the cheapest vertex first; among equals that of least degree, nearest to the outputs."""
        graph, order = self._graph.copy(), []
        remaining = graph.vertices
        price: dict[int, tuple[float, int, int]] = {}
        while remaining:
            for vertex in remaining:
                if vertex not in price:
                    seconds = sum(
                        self._product(first, second)[1].seconds
                        for _, _, first, second in graph.pairs(vertex)
                    )
                    price[vertex] = (seconds, graph.degree(vertex), -vertex)
            chosen = min(remaining, key=price.__getitem__)
            touched = {*graph.into.get(chosen, ()), *graph.out_of.get(chosen, ())}
            graph.eliminate(chosen, lambda a, b: self._product(a, b)[0])
            order.append(chosen)
            remaining.remove(chosen)
            for vertex in touched:
                price.pop(vertex, None)
        cost = self._evaluate(order, None)
        assert cost is not None
        return order, cost

    def _evaluate(self, order: list[int], bound: Cost | None) -> Cost | None:
        """Predict the cost of an order; None as soon as it is not below ``bound``."""
        graph, total = self._graph.copy(), Cost()
        limit = math.inf if bound is None else bound.seconds
        for vertex in order:
            for _, _, first, second in graph.pairs(vertex):
                total = total + self._product(first, second)[1]
            if total.seconds >= limit:
                return None
            graph.eliminate(vertex, lambda a, b: self._product(a, b)[0])
        for heads in graph.into.values():
            for items in heads.values():
                blocks = tuple(b for b in items if isinstance(b, Block))
                total = total + assembly_cost(blocks, forward=True)
        return None if total.seconds >= limit else total

    def _peak(self, order: list[int]) -> int:
        """Return how many bytes of blocks are alive at once."""
        graph, peak = self._graph.copy(), 0
        for vertex in order:
            graph.eliminate(vertex, lambda a, b: self._product(a, b)[0])
            peak = max(peak, held_bytes(_blocks_of(graph)))
        return peak

    def _product(self, first: Item, second: Item) -> tuple[Item, Cost]:
        key = (_key(first), _key(second))
        found = self._known.get(key)
        if found is None:
            total = Cost()

            def apply(linear_map: AbstractLinearMap, block: Block, forward: bool) -> Block:
                nonlocal total
                result, cost = push_cost(linear_map, block, forward)
                total = total + cost
                return result

            product = multiply(first, second, self._like, apply)
            found = self._known[key] = product, total
        return found


def _key(item: Item) -> Any:
    if isinstance(item, AbstractLinearMap):
        return id(item)
    return item.shape, item.seed_shape, item.tied, tuple(item.values.shape)


def assembly_cost(blocks: Sequence[Block], *, forward: bool) -> Cost:
    """Predict writing the dense Jacobian; what is laid out like it already costs nothing."""
    total = 0
    for block in blocks:
        rows = block if not forward else block.flipped()
        size = math.prod(block.shape) * math.prod(block.seed_shape) * block.values.element_size()
        if any(axis is not None for axis in block.tied):
            is_moved = forward and block.num_free > 0
            total += size * (1 + 2 * STRIDED_COPY if is_moved else 1)
        elif not rows.values.is_contiguous():
            total += 2 * size * STRIDED_COPY
    return Cost(len(blocks), 0, total)


def _blocks_of(graph: Graph) -> dict[int, tuple[Block, ...]]:
    return {
        head: tuple(b for items in tails.values() for b in items if isinstance(b, Block))
        for head, tails in graph.into.items()
    }


def held_bytes(alive: dict[int, tuple[Block, ...]]) -> int:
    """Return how much memory blocks take."""
    return sum(
        b.values.numel() * b.values.element_size() for blocks in alive.values() for b in blocks
    )
