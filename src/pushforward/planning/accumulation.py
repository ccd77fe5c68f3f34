"""Orders of elimination where every product of two edges costs the same: programs of numbers, elementwise programs.

Nothing here knows tensors: a graph is sets of bits, and an order is judged by how many products and sums it takes.

References:
    Griewank and Walther, Evaluating Derivatives (2008), chapters 9 and 10: vertex elimination and the Markowitz rule.
    Kirkpatrick, Gelatt and Vecchi, Optimization by simulated annealing (1983).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

MOVES = 120  # for each vertex
MAX_MOVES = 20_000  # about half a second
HOT, COLD = 1.0, 0.15  # by how many products a move may be worse, at first and in the end
FURTHER = 0.4  # how often a vertex is moved past one more neighbour

# (sources, targets, those by edges of ±1) of each vertex, as bits.
State = tuple[list[int], list[int], list[int], list[int]]
_Eliminate = Callable[[State, int], int]


class Accumulation:
    """The graph of a Jacobian that is to be accumulated.

    Math: the edges that are left after a set of vertices is eliminated do not depend on the order within the set. So
    a vertex that is moved changes the costs of those that it passes, and of no others; and of these only if there is
    an edge between them.
    """

    def __init__(
        self,
        vertices: Sequence[int],
        edges: Iterable[tuple[int, int, bool]],
        *,
        price_of_sum: int = 1,
    ) -> None:
        """Take the graph.

        Args:
            vertices: What can be eliminated.
            edges: (tail, head, whether it is 1 or -1); between the same two at most one.
            price_of_sum: What adding a product to an edge costs, in products.
        """
        edges = list(edges)
        inner = set(vertices)
        heads = sorted({head for _, head, _ in edges} - inner)
        tails = sorted({tail for tail, _, _ in edges} - inner)
        self.vertices = list(vertices)
        self._vertices = [*vertices, *heads, *tails]
        self._count, self._price_of_sum = len(vertices), price_of_sum
        number = {vertex: i for i, vertex in enumerate(self._vertices)}
        size = len(number)
        self._start: State = ([0] * size, [0] * size, [0] * size, [0] * size)
        sources, targets, unit_sources, unit_targets = self._start
        for tail, head, is_unit in edges:
            i, j = number[tail], number[head]
            sources[j] |= 1 << i
            targets[i] |= 1 << j
            if is_unit:
                unit_sources[j] |= 1 << i
                unit_targets[i] |= 1 << j

    def work(self, order: Iterable[int]) -> int:
        """Return how many products (and sums, at their price) an order takes."""
        number = {vertex: i for i, vertex in enumerate(self._vertices)}
        state = _copy(self._start)
        return sum(self._eliminate(state, number[vertex]) for vertex in order)

    def best(self) -> list[int]:
        """Search an order: greedily, then by simulated annealing. It is the same each time."""
        state = _copy(self._start)
        first = list(self._without_choice(state))
        order = self._greedy(state, set(range(self._count)) - set(first))
        annealing = _Annealing(self._eliminate, state, order)
        moves = min(MOVES * len(order), MAX_MOVES) if len(order) > 1 else 0
        return [self._vertices[i] for i in (*first, *annealing.run(moves))]

    def _without_choice(self, state: State) -> Iterator[int]:
        """Eliminate what has one source and one target: later it costs as much or more, and others no less."""
        sources, targets, _, _ = state
        left = set(range(self._count))
        found = True
        while found:
            found = False
            for vertex in sorted(left):
                if sources[vertex].bit_count() == targets[vertex].bit_count() == 1:
                    self._eliminate(state, vertex)
                    left.remove(vertex)
                    found = True
                    yield vertex

    def _greedy(self, state: State, left: set[int]) -> list[int]:
        """Eliminate what takes the fewest products first; among equals the nearest to the outputs."""
        state, left = _copy(state), set(left)
        order = []
        while left:
            vertex = min(left, key=lambda v: (_products(state, v), -v))
            self._eliminate(state, vertex)
            left.remove(vertex)
            order.append(vertex)
        return order

    def _eliminate(self, state: State, vertex: int) -> int:
        """Replace a vertex by the products of its edges, and return what that costs."""
        cost, sums = _products(state, vertex), 0
        sources, targets, unit_sources, unit_targets = state
        into, out_of, bit, count = sources[vertex], targets[vertex], 1 << vertex, self._count
        unit_into, unit_out_of = unit_sources[vertex], unit_targets[vertex]
        rest = into & ((1 << count) - 1)  # what leaves an input is never asked for
        while rest:
            tail = rest.bit_length() - 1
            rest ^= 1 << tail
            old = targets[tail]
            kept = unit_targets[tail] & ~(out_of | bit)
            unit_targets[tail] = kept | unit_out_of & ~old if unit_into >> tail & 1 else kept
            targets[tail] = (old ^ bit) | out_of
        rest = out_of
        while rest:
            head = rest.bit_length() - 1
            rest ^= 1 << head
            old = sources[head]
            kept = unit_sources[head] & ~(into | bit)
            unit_sources[head] = kept | unit_into & ~old if unit_out_of >> head & 1 else kept
            sources[head] = (old ^ bit) | into
            sums += (old & into).bit_count()
        return cost + sums * self._price_of_sum


class _Annealing:
    """An order that changes, with the state before each of its steps, and what the step costs."""

    def __init__(self, eliminate: _Eliminate, state: State, order: list[int]) -> None:
        self._eliminate = eliminate
        self._order = order
        self._states, self._costs = [], []
        state = _copy(state)
        for vertex in order:
            self._states.append(_copy(state))
            self._costs.append(eliminate(state, vertex))

    def run(self, moves: int) -> list[int]:
        """Move one vertex at a time and return the best order there was."""
        draw = random.Random(0).random
        order = self._order
        best, least, total = list(order), 0, 0  # relative to the start
        for move in range(moves):
            temperature = HOT * (COLD / HOT) ** (move / moves)
            place = int(draw() * len(order))
            passed = 1
            while draw() < FURTHER:
                passed += 1
            begin, part = self._moved(place, passed, is_later=draw() < 0.5)
            allowed = -temperature * math.log(1 - draw())
            total += self._take(begin, part, allowed) if len(part) > 1 else 0
            if total < least:
                best, least = list(order), total
        return best

    def _moved(self, place: int, passed: int, *, is_later: bool) -> tuple[int, list[int]]:
        """Move past ``passed`` neighbours; return where the order changes, and the new part of it."""
        order, states = self._order, self._states
        vertex, end = order[place], place
        if is_later:
            near = _near(states[place], vertex)
            while passed and end + 1 < len(order):
                end += 1
                if near >> order[end] & 1:
                    passed -= 1
                    near |= _near(states[end], order[end])
            return place, [*order[place + 1 : end + 1], vertex]
        while passed and end:
            end -= 1
            passed -= _near(states[end], vertex) >> order[end] & 1
        return end, [vertex, *order[end:place]]

    def _take(self, begin: int, part: list[int], allowed: float) -> int:
        """Change the order if that costs at most ``allowed`` more; return how much more."""
        end = begin + len(part)
        old = sum(self._costs[begin:end])
        limit = old + allowed
        state = _copy(self._states[begin])
        new, states, costs = 0, [], []
        for vertex in part:
            states.append(_copy(state))
            costs.append(self._eliminate(state, vertex))
            new += costs[-1]
            if new > limit:
                return 0
        self._order[begin:end] = part
        self._states[begin:end] = states
        self._costs[begin:end] = costs
        return new - old


def _copy(state: State) -> State:
    sources, targets, unit_sources, unit_targets = state
    return sources[:], targets[:], unit_sources[:], unit_targets[:]


def _near(state: State, vertex: int) -> int:
    return state[0][vertex] | state[1][vertex]


def _products(state: State, vertex: int) -> int:
    """Return how many pairs of edges meet of which neither is ±1."""
    sources, targets, unit_sources, unit_targets = state
    into = sources[vertex].bit_count() - unit_sources[vertex].bit_count()
    return into * (targets[vertex].bit_count() - unit_targets[vertex].bit_count())
