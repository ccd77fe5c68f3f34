"""Errors in what we call of the user's, a custom function's backward and jvp, and plans that are evicted meanwhile."""

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.func as tf
from ambient import process_state, thread_state
from at_once import at_once
from torch import Tensor

from pushforward import (
    clear_plans,
    grad,
    grad_and_value,
    hessian,
    hvp,
    jacfwd,
    jacobian,
    jacrev,
    jvp,
    linearize,
    value_and_jacobian,
    vjp,
    vmap,
)
from pushforward.errors import MissingRuleError
from pushforward.planning.plans import PLANS
from pushforward.tape.depth import run_depth

X = torch.linspace(0.1, 1, 3)
XS = torch.stack([X, 2 * X])


def state() -> dict[str, object]:
    generator = {"runs": run_depth(), "generator": torch.get_rng_state().tolist()}
    return thread_state() | process_state() | generator


class Storm(Exception):
    pass


class Interrupt(BaseException):
    pass


class Plan:
    """Raises an error at one moment."""

    moment, count = 0, 0
    error: type[BaseException] = Storm

    def pass_by(self) -> None:
        self.count += 1
        if self.count == self.moment:
            raise self.error("of the user's")


PLAN = Plan()


class Cube(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        PLAN.pass_by()
        (x,) = ctx.saved_tensors
        return 3 * x**2 * cotangents[0]


class CubeWithJvp(Cube):
    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        PLAN.pass_by()
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangents[0]


Function = Callable[[Tensor], Tensor]


def _sum(f: Function) -> Function:
    return lambda x: f(x).sum()


# Each for our library or torch.func.
TRANSFORMS: dict[str, tuple[Callable[[Function], Any], Callable[[Function], Any]]] = {
    "jacfwd": (lambda f: jacfwd(f)(X), lambda f: tf.jacfwd(f)(X)),
    "jacrev": (lambda f: jacrev(f)(X), lambda f: tf.jacrev(f)(X)),
    "jacobian": (lambda f: jacobian(f)(X), lambda f: tf.jacrev(f)(X)),
    "jvp": (lambda f: jvp(f, (X,), (X,))[1], lambda f: tf.jvp(f, (X,), (X,))[1]),
    "vjp": (lambda f: vjp(f, X)[1](X)[0], lambda f: tf.vjp(f, X)[1](X)[0]),
    "linearize": (lambda f: linearize(f, X)[1](X), lambda f: tf.jvp(f, (X,), (X,))[1]),
    "grad": (lambda f: grad(_sum(f))(X), lambda f: tf.grad(_sum(f))(X)),
    "hessian": (lambda f: hessian(_sum(f))(X), lambda f: tf.hessian(_sum(f))(X)),
    "vmap": (lambda f: vmap(jacrev(f))(XS), lambda f: tf.vmap(tf.jacrev(f))(XS)),
    "nested": (lambda f: jacrev(jacfwd(f))(X), lambda f: tf.jacrev(tf.jacfwd(f))(X)),
}


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    clear_plans()
    PLAN.moment = 0
    before = state()
    yield
    PLAN.moment = 0
    assert state() == before


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("function", [Cube, CubeWithJvp])
def test_errors_in_a_backward_and_a_jvp_come_out_at_each_stage_of_a_plan(
    function: type[Cube], name: str
) -> None:
    ours, theirs = TRANSFORMS[name]
    expected = theirs(lambda x: x.sin() ** 3)

    def f(x: Tensor) -> Tensor:
        y: Tensor = function.apply(x.sin())
        return y

    for error in (Storm, RuntimeError, Interrupt):
        for seen in (0, 1, 3):
            for moment in range(1, 20):
                clear_plans()
                for _ in range(seen):
                    ours(f)
                raised = _call_with_an_error(lambda: ours(f), error, moment)
                is_reached, PLAN.moment = PLAN.count >= moment, 0
                for _ in range(3):
                    torch.testing.assert_close(ours(f), expected)
                if not is_reached:
                    assert raised is None
                    break
                if error is Interrupt:
                    assert isinstance(raised, Interrupt)
                elif (
                    raised is not None
                ):  # a probe whether it can be differentiated takes an error for a no
                    assert isinstance(raised, (error, MissingRuleError))


def _call_with_an_error(
    call: Callable[[], Any], error: type[BaseException], moment: int
) -> BaseException | None:
    """Return what comes out; all is as before."""
    before = state()
    PLAN.error, PLAN.moment, PLAN.count = error, moment, 0
    raised = None
    try:
        call()
    except (error, MissingRuleError) as found:
        raised = found
    assert state() == before
    return raised


def test_plans_may_be_evicted_while_other_threads_read_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PLANS, "limit", 3)
    points = [torch.linspace(0.1, 1, 2 + size) for size in range(3)]

    def smooth(x: Tensor) -> Tensor:
        return (x.sin() * x).cumsum(0)

    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "jacfwd": jacfwd(smooth),
        "jacrev": jacrev(smooth),
        "jacobian": jacobian(smooth),
        "hessian": hessian(_sum(smooth)),
        "vjp": lambda x: vjp(smooth, x)[1](x)[0],
        "vmap": lambda x: vmap(grad(_sum(smooth)))(torch.stack([x, x])),
    }
    expected = {name: [call(x) for x in points] for name, call in calls.items()}
    for found, x in zip(expected["jacfwd"], points, strict=True):
        torch.testing.assert_close(found, tf.jacrev(smooth)(x))
    problems: list[object] = []

    def run(seed: int) -> None:
        choose = random.Random(seed)
        try:
            for number in range(12):
                name, place = choose.choice(list(calls)), choose.randrange(3)
                if not torch.allclose(calls[name](points[place]), expected[name][place], atol=1e-4):
                    problems.append((name, place))
                if number % 4 == seed % 4:
                    clear_plans()
        except BaseException as error:
            problems.append(error)

    at_once(run, 8, interval=1e-5)
    assert not problems
    assert len(PLANS) <= 3


def _twice(x: Tensor) -> dict[str, Tensor]:
    return {"sum": x.sin().sum(), "all": x * 2}


@pytest.mark.parametrize(
    "call",
    [
        lambda: jacfwd(_twice)(X),
        lambda: jacrev(_twice)(X),
        lambda: jacobian(_twice)(X),
        lambda: value_and_jacobian(_twice)(X),
        lambda: grad_and_value(lambda x: x.sin().sum())(X),
        lambda: jacrev(lambda x: (x.sin(), x.cos()), has_aux=True)(X),
        lambda: jvp(_twice, (X,), (X,)),
        lambda: vjp(_twice, X)[0],
        lambda: linearize(_twice, X)[0],
        lambda: hvp(lambda x: x.sin().sum(), (X,), (X,)),
        lambda: vmap(hessian(lambda x: x.sin().sum()))(XS),
    ],
)
def test_results_of_all_transforms_are_pickled_and_copied(call: Callable[[], Any]) -> None:
    for _ in range(4):
        found = call()
        for other in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found), copy.copy(found)):
            torch.testing.assert_close(other, found)
