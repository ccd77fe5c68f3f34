"""Orders of elimination of scalar codes: multiplications beside published ones, right numbers in every order."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scalar_codes.graphs import accumulation, calls, tensors
from scalar_codes.programs import SCALAR_CODES
from torch import Tensor

from pushforward import explain, jacobian
from pushforward.planning.accumulation import Accumulation
from pushforward.planning.plans import PLANS


@pytest.mark.parametrize("name", SCALAR_CODES)
def test_the_graphs_are_those_of_the_published_counts(name: str) -> None:
    code = SCALAR_CODES[name]
    graph = accumulation(code)
    assert graph.work(graph.vertices) == code.forward
    assert graph.work(graph.vertices[::-1]) == code.reverse


@pytest.mark.parametrize("name", SCALAR_CODES)
def test_multiplications_are_at_most_the_aims(name: str) -> None:
    code = SCALAR_CODES[name]
    graph = accumulation(code)
    order = graph.best()
    assert sorted(order) == graph.vertices
    assert graph.work(order) <= code.aim <= code.learned


@pytest.mark.parametrize("name", SCALAR_CODES)
def test_what_is_searched_is_not_dearer_than_pure_modes(name: str) -> None:
    graph = calls(SCALAR_CODES[name])
    pure = (graph.work(graph.vertices), graph.work(graph.vertices[::-1]))
    assert graph.work(graph.best()) <= min(pure)


@pytest.mark.parametrize("mode", ["cross", "auto", "forward", "reverse"])
@pytest.mark.parametrize("name", SCALAR_CODES)
def test_jacobians_of_scalar_codes(name: str, mode: str) -> None:
    PLANS.clear()
    code = SCALAR_CODES[name]
    xs = tensors(code)
    argnums = tuple(range(len(xs)))
    expected = torch.func.jacrev(code.func, argnums)(*xs)
    compute = jacobian(code.func, argnums, mode=mode)
    for _ in range(4):  # by kernels in the end
        torch.testing.assert_close(compute(*xs), expected)


@pytest.mark.parametrize("name", SCALAR_CODES)
def test_scalar_codes_against_central_differences(name: str) -> None:
    code = SCALAR_CODES[name]
    xs = tensors(code)
    found = jacobian(code.func, tuple(range(len(xs))), mode="cross")(*xs)
    step = 1e-6
    for column, x in enumerate(xs):
        ahead, behind = list(xs), list(xs)
        ahead[column], behind[column] = x + step, x - step
        pairs = zip(code.func(*ahead), code.func(*behind), strict=True)
        for row, (up, down) in enumerate(pairs):
            slope = (up - down) / (2 * step)
            torch.testing.assert_close(found[row][column], slope, rtol=1e-5, atol=1e-5)


def test_numbers_as_arguments_are_searched_together() -> None:
    """Many inputs of one element each are many columns."""
    code = SCALAR_CODES["RobotArm_6DOF"]
    plan = explain(code.func, *tensors(code), argnums=tuple(range(6))).plan
    assert plan.mode == "cross"
    costs = {mode: found.cost.seconds for mode, found in plan.predictions.items()}
    assert costs["cross"] < min(costs["forward"], costs["reverse"])


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_best_order_is_an_order_and_edges_left_do_not_depend_on_it(seed: int) -> None:
    rng = random.Random(seed)
    size, tails, heads = rng.randint(1, 9), 2, 2
    vertices = list(range(tails, tails + size))
    edges = [
        (tail, head, rng.random() < 0.4)
        for head in range(tails, tails + size + heads)
        for tail in range(min(head, tails + size))
        if rng.random() < 0.4
    ]
    graph = Accumulation(vertices, edges, price_of_sum=rng.randint(0, 1))
    best = graph.best()
    assert sorted(best) == vertices
    shuffled = list(vertices)
    rng.shuffle(shuffled)
    assert graph.work(shuffled) == _counted(vertices, edges, shuffled, graph._price_of_sum)


def _counted(
    vertices: list[int], edges: list[tuple[int, int, bool]], order: list[int], price: int
) -> int:
    """Count on a dictionary of edges."""
    units = {(tail, head): is_unit for tail, head, is_unit in edges}
    total = 0
    for vertex in order:
        into = [(t, u) for (t, h), u in units.items() if h == vertex]
        out_of = [(h, u) for (t, h), u in units.items() if t == vertex]
        for tail, first in into:
            for head, second in out_of:
                total += not (first or second)
                total += price * ((tail, head) in units)
                units[tail, head] = (tail, head) not in units and first and second
        units = {edge: u for edge, u in units.items() if vertex not in edge}
    return total


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_random_programs_of_numbers_in_searched_orders(seed: int) -> None:
    rng = random.Random(seed)
    steps = [(rng.choice("+-*s2n"), rng.random(), rng.random()) for _ in range(rng.randint(3, 20))]

    def func(*xs: Tensor) -> tuple[Tensor, ...]:
        known = list(xs)
        for kind, i, j in steps:
            a, b = known[int(i * len(known))], known[int(j * len(known))]
            made = {"+": a + b, "-": a - b, "*": a * b, "s": a.sin(), "2": 2 * a, "n": -a}
            known.append(made[kind])
        return tuple(known[-3:])

    xs = tuple(torch.tensor(math.sin(k + 1), dtype=torch.float64) for k in range(3))
    expected = torch.func.jacrev(func, (0, 1, 2))(*xs)
    compute = jacobian(func, (0, 1, 2), mode="cross")
    for _ in range(3):
        torch.testing.assert_close(compute(*xs), expected)
