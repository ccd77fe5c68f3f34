"""Plans: never dearer than the better pure mode, kept by structure, right for every order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pushforward import explain, hessian, jacfwd, jacobian, jacrev
from pushforward.planning import orders, replay
from pushforward.planning.plans import PLANS

Net = Callable[[Tensor], Tensor]


def _net(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.Tanh()]
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.fixture(autouse=True)
def _no_plans() -> None:
    PLANS.clear()


def _branches(x: Tensor) -> Tensor:
    y = x.sin()
    return torch.stack([(y * x).sum(), y.prod(), (x.exp() @ y)])


FUNCTIONS: dict[str, tuple[Net, Tensor]] = {
    "narrow end": (_net(60, 30, 30, 3), torch.randn(60)),
    "wide end": (_net(3, 30, 30, 60), torch.randn(3)),
    "bottleneck": (_net(400, 200, 2, 200, 400), torch.randn(400)),
    "batch": (_net(12, 8, 4), torch.randn(5, 12)),
    "elementwise": (lambda x: x.sin() * x.cos(), torch.randn(9)),
    "branches": (_branches, torch.randn(6)),
    "several uses": (lambda x: x.cumsum(0) * x[0] + x.mean(), torch.randn(7)),
    "scalar": (lambda x: (x * x).sum(), torch.randn(8)),
    "two views": (lambda x: x.reshape(2, 3).t(), torch.randn(6)),
    "constant": (lambda x: torch.ones(2), torch.randn(3)),
    "input": (lambda x: x, torch.randn(3)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_plan_is_never_dearer_than_the_better_pure_mode(name: str) -> None:
    func, x = FUNCTIONS[name]
    plan = explain(func, x).plan
    chosen = plan.predictions[plan.mode].cost.seconds
    assert chosen <= min(plan.predictions[mode].cost.seconds for mode in ("forward", "reverse"))
    assert chosen <= orders.CLEARLY * min(p.cost.seconds for p in plan.predictions.values())
    assert {"forward", "reverse"} <= set(plan.predictions)


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse", "cross"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_mode_gives_the_jacobian(name: str, mode: str) -> None:
    func, x = FUNCTIONS[name]
    expected = torch.func.jacrev(func)(x)
    for _ in range(2):  # the second time by a plan that was kept
        torch.testing.assert_close(jacobian(func, mode=mode)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", [jacfwd, jacrev, hessian])
@pytest.mark.parametrize("middle", [jacfwd, jacrev])
def test_cross_country_of_derivatives(inner: Any, middle: Any) -> None:
    """Their programs reshape, permute and add up blocks whose seeds are grouped differently."""

    def func(x: Tensor) -> Tensor:
        return (x.sin() * x.flip(0).exp()).sum() + (x @ x) ** 2

    x = torch.randn(2, dtype=torch.float64)
    derivative = middle(inner(func))
    expected = torch.func.jacfwd(derivative)(x)
    torch.testing.assert_close(jacobian(derivative, mode="cross")(x), expected)


@pytest.mark.parametrize(
    ("name", "mode"), [("narrow end", "reverse"), ("wide end", "forward"), ("bottleneck", "cross")]
)
def test_the_obvious_choices(name: str, mode: str) -> None:
    func, x = FUNCTIONS[name]
    assert explain(func, x).plan.mode == mode


def test_a_repeated_call_does_not_plan_again(monkeypatch: pytest.MonkeyPatch) -> None:
    func, x = FUNCTIONS["narrow end"]
    made = []
    planner = orders.Planner
    monkeypatch.setattr(orders, "Planner", lambda *a: made.append(1) or planner(*a))
    for _ in range(3):
        jacobian(func)(x)
    assert made == [1]
    jacobian(func)(x + 1)
    assert made == [1], "the same structure at another point"


def test_another_branch_is_planned_anew() -> None:
    def func(x: Tensor) -> Tensor:
        return x.sin() if x.sum() > 0 else torch.outer(x, x).sum(1)

    x = torch.ones(4)
    for point in (x, -x, x, -x):
        torch.testing.assert_close(jacobian(func)(point), torch.func.jacrev(func)(point))
    assert len(PLANS.of_kind(orders.ORDERS)) == 2


def test_a_search_waits_until_the_calls_have_cost_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "FIRST_WRITTEN", 3)  # what is written down asks for no plan
    func, x = _net(20, 10, 2, 10, 20), torch.randn(20)
    for _ in range(2):
        jacobian(func)(x)
    (plan,) = PLANS.of_kind(orders.ORDERS)
    assert not plan.is_searched
    num_vertices = len(plan.predictions[plan.mode].blocks)  # with the input
    seconds = plan.predictions[plan.mode].cost.seconds
    plan.seen = int(num_vertices * orders.SECONDS_PER_SEARCHED_VERTEX / seconds)
    jacobian(func)(x)
    assert plan.is_searched
    assert "cross" in plan.predictions
    torch.testing.assert_close(jacobian(func)(x), torch.func.jacrev(func)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("sizes", "mode"), [((20, 5, 2), "reverse"), ((2, 5, 20), "forward")])
def test_a_short_program_that_is_seen_once_is_not_planned(
    sizes: tuple[int, ...], mode: str
) -> None:
    func, x = _net(*sizes), torch.randn(sizes[0])
    jacobian(func)(x)
    (plan,) = PLANS.of_kind(orders.ORDERS)
    assert plan.mode == mode
    assert not plan.predictions
    jacobian(func)(x)
    (plan,) = PLANS.of_kind(orders.ORDERS)
    assert plan.mode == mode
    assert plan.predictions


def test_a_long_program_is_planned_at_once() -> None:
    weight = torch.randn(200, 200)
    jacobian(lambda x: (weight @ torch.sin(weight @ x.view(200, 200))).flatten()[:50])(
        torch.randn(40000)
    )
    (plan,) = PLANS.of_kind(orders.ORDERS)
    assert plan.predictions


def test_the_number_of_plans_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PLANS, "limit", 3)
    for size in range(1, 7):
        jacobian(torch.sin)(torch.ones(size))
    assert len(PLANS) == 3
