"""Which way to run a program: forward, reverse, or cross-country, whichever the cost model says is cheapest.

References:
    Griewank and Walther, Evaluating Derivatives (2008), chapters 9 and 10: vertex elimination and the Markowitz rule.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pushforward.linear.block import Block
from pushforward.linear.block_sum import add_blocks
from pushforward.linear.program import LinearProgram
from pushforward.planning.costs import Cost, dense_cost, push_cost, shadow_tensor
from pushforward.planning.memory import shadow_program
from pushforward.planning.plans import PLANS
from pushforward.planning.search import Prediction, Search, assembly_cost, held_bytes
from pushforward.planning.shapes import of_shadows

Mode = Literal["forward", "reverse", "cross"]

# A program longer than this is not searched. A search takes 1 to 10 ms for each vertex.
MAX_SEARCHED = 200
SECONDS_PER_SEARCHED_VERTEX = 5e-3
CLEARLY = 1.1  # the gain that makes up for what the model does not see
SECONDS_PER_PREDICTED_VERTEX = 1e-4  # of what a prediction takes, without a search


@dataclasses.dataclass(slots=True)
class Plan:
    """The chosen order, and the predictions that it was chosen by."""

    mode: Mode
    predictions: dict[Mode, Prediction]  # none, of a program seen once
    seen: int = 0  # calls that came by
    is_searched: bool = False

    @property
    def order(self) -> tuple[int, ...]:
        """Return the order of elimination, empty unless the mode is cross-country."""
        return self.predictions[self.mode].order

    def is_due(self, program: LinearProgram) -> bool:
        """Tell whether the calls have cost as much as a search for a better order will."""
        if self.is_searched or not self.predictions:
            return False
        return self.seen >= self._calls_before_search(program)

    def lifetime(self, program: LinearProgram, answered: int) -> float:
        """Count ``answered`` calls that did not ask for the plan, and return how many more need not ask."""
        self.seen += answered
        if not self.predictions:
            return 1
        if self.is_searched or self.is_due(program):  # if due, the next to ask will search
            return math.inf
        return self._calls_before_search(program) - self.seen

    def _calls_before_search(self, program: LinearProgram) -> float:
        search = len(program.equations) * SECONDS_PER_SEARCHED_VERTEX
        seconds = self.predictions[self.mode].cost.seconds
        return search / seconds if seconds else math.inf  # of maps that are nothing at all

    def choose(self) -> None:
        """Take the cheapest order: the first of equals, and cross-country only where it is clearly cheaper."""

        def seconds(mode: Mode) -> float:
            return self.predictions[mode].cost.seconds * (CLEARLY if mode == "cross" else 1)

        self.mode = min(self.predictions, key=seconds)


class Planner:
    """Plans one recorded program."""

    def __init__(
        self, program: LinearProgram, starts: Sequence[Block], ends: Sequence[Block]
    ) -> None:
        """Make the program's shadow.

        Args:
            program: What was recorded.
            starts: The block of each input with which forward mode starts.
            ends: The block of each output with which reverse mode starts.
        """
        self.program = shadow_program(program)

        def make() -> Search:
            self.starts = [b.with_values(shadow_tensor(b.values)) for b in starts]
            self.ends = [b.with_values(shadow_tensor(b.values)) for b in ends]
            return Search(self.program, [b.shape for b in self.ends], self.starts)

        self._search = of_shadows(make)

    def pure(self, mode: Literal["forward", "reverse"]) -> Prediction:
        """Predict forward or reverse mode."""

        def predict() -> Prediction:
            found = self._forward() if mode == "forward" else self._reverse()
            return self._search.pure(found, is_forward=mode == "forward")

        return of_shadows(predict)

    def _forward(self) -> Prediction:
        program, cost = self.program, Cost()
        alive: dict[int, tuple[Block, ...]] = {
            v: (b,) for v, b in zip(program.inputs, self.starts, strict=True)
        }
        blocks: dict[int, tuple[Block, ...]] = dict(alive)
        last = {t.variable: i for i, e in enumerate(program.equations) for t in e.terms}
        peak = 0
        for position, equation in enumerate(program.equations):
            pushed: list[Block] = []
            for term in equation.terms:
                for block in alive.get(term.variable, ()):
                    result, step = push_cost(term.linear_map, block, forward=True)
                    pushed.append(result)
                    cost = cost + step
            alive[equation.variable] = blocks[equation.variable] = add_blocks(pushed)
            peak = max(peak, held_bytes(alive))
            for term in equation.terms:
                if last[term.variable] == position and term.variable not in program.outputs:
                    alive.pop(term.variable, None)
        for variable in program.outputs:
            if variable is not None:
                cost = cost + assembly_cost(blocks.get(variable, ()), forward=True)
        return Prediction(cost, peak, blocks)

    def _reverse(self) -> Prediction:
        program, cost = self.program, Cost()
        waiting: dict[int, tuple[Block, ...]] = {}
        for variable, block in zip(program.outputs, self.ends, strict=True):
            if variable is not None:
                waiting[variable] = (*waiting.get(variable, ()), block)
        blocks: dict[int, tuple[Block, ...]] = {}
        peak = 0
        for equation in reversed(program.equations):
            arrived = waiting.pop(equation.variable, ())
            blocks[equation.variable] = add_blocks(arrived)
            for term in equation.terms:
                for block in blocks[equation.variable]:
                    result, step = push_cost(term.linear_map, block, forward=False)
                    cost = cost + step
                    waiting[term.variable] = (*waiting.get(term.variable, ()), result)
            peak = max(peak, held_bytes(waiting))
        for variable in program.inputs:
            blocks[variable] = add_blocks(waiting.get(variable, ()))
            cost = cost + assembly_cost(blocks[variable], forward=False)
        return Prediction(cost, peak, blocks)

    @property
    def is_promising(self) -> bool:
        """Tell whether an order of elimination can be searched, and can be better than a pure mode.

        It cannot where there is one column or one row.
        """
        is_wide = all(
            sum(math.prod(b.shape) for b in blocks) > 1 for blocks in (self.starts, self.ends)
        )
        return (
            is_wide and 2 <= len(self.program.equations) <= MAX_SEARCHED and can_cross(self.program)
        )

    def cross(self) -> Prediction:
        """Search an order of elimination: greedily, then by moving one vertex at a time."""
        return of_shadows(self._search.best)


ORDERS = "orders"  # what plans are stored as


def can_cross(program: LinearProgram) -> bool:
    """Tell whether the program can be eliminated: every number in it has the same real dtype."""
    dtypes = {e.dtype for e in program.equations}
    for equation in program.equations:
        for term in equation.terms:
            dtypes.add(term.in_dtype)
    return len(dtypes) == 1 and not next(iter(dtypes)).is_complex


Starts = Callable[[], Sequence[Block]]


def plan(
    program: LinearProgram,
    signature: Any,
    starts: Starts,
    ends: Starts,
    modes: tuple[Mode, ...] = ("forward", "reverse", "cross"),
    search_now: bool = False,
) -> Plan:
    """Return the plan for a program; one with the same structure is planned once.

    Math: what costs more than it can save is put off. A program that is run for the first time goes forward or in
    reverse as it has fewer inputs or outputs, if that takes less time than to predict which is better. The search for a
    cross-country order waits until the calls of this structure are expected to have cost as much as the search does.

    Args:
        program: What was recorded.
        signature: What the starting blocks depend on: hashable.
        starts: Gives the block of each input with which forward mode starts; called where there is no plan yet.
        ends: Likewise for the outputs, and reverse mode.
        modes: The orders to choose from.
        search_now: Whether to search at once.
    """
    key = (modes, signature, structure(program))
    found: Plan | None = PLANS.find(ORDERS, key)
    if found is None and len(modes) > 1 and not search_now:
        found = _by_counts(program, starts(), ends())
        if found is not None:
            PLANS.keep(ORDERS, key, found)
            return found
    if found is None or not found.predictions:
        found = _planned(Planner(program, starts(), ends()), modes)
        PLANS.keep(ORDERS, key, found)
    found.seen += 1
    if found.is_due(program) or (search_now and not found.is_searched):
        found.predictions["cross"] = Planner(program, starts(), ends()).cross()
        found.choose()
        found.is_searched = True
    return found


def _by_counts(
    program: LinearProgram, starts: Sequence[Block], ends: Sequence[Block]
) -> Plan | None:
    """Return a plan without predictions; None if the program may take longer than to make some."""
    num_columns, num_rows = (sum(math.prod(b.shape) for b in blocks) for blocks in (starts, ends))
    bound = Cost()
    for equation in program.equations:
        for term in equation.terms:
            bound = bound + dense_cost(term.linear_map, min(num_columns, num_rows))
    if bound.seconds > len(program.equations) * SECONDS_PER_PREDICTED_VERTEX:
        return None
    return Plan("forward" if num_columns <= num_rows else "reverse", {}, seen=1)


def _planned(planner: Planner, modes: tuple[Mode, ...]) -> Plan:
    predictions: dict[Mode, Prediction] = {}
    if "forward" in modes:
        predictions["forward"] = planner.pure("forward")
    if "reverse" in modes:
        predictions["reverse"] = planner.pure("reverse")
    if modes == ("cross",):
        predictions["cross"] = planner.cross()
    result = Plan(modes[0], predictions)
    result.is_searched = "cross" not in modes or "cross" in predictions or not planner.is_promising
    result.choose()
    return result


def structure(program: LinearProgram) -> tuple[Any, ...]:
    """Return what a plan is kept under: the graph, and the kind and output shape of each map.

    An order is right for every program with the same graph; maps of the same kind and shapes cost nearly the same.
    """
    equations: list[tuple[Any, ...]] = []
    for equation in program.equations:
        terms = equation.terms
        if len(terms) == 1:
            linear_map = terms[0].linear_map
            equations.append(
                (equation.variable, terms[0].variable, type(linear_map), linear_map.out_shape)
            )
        else:
            parts = [(t.variable, type(t.linear_map), t.linear_map.out_shape) for t in terms]
            equations.append((equation.variable, *parts))
    return tuple(program.inputs), tuple(program.outputs), tuple(equations)
