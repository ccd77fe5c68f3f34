"""Calls known by heart: the same results, and nothing is overlooked that is not as it was."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pushforward
from pushforward import (
    clear_plans,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacobian,
    jacrev,
    jvp,
    linearize,
    value_and_jacobian,
    vjp,
)
from pushforward.planning.plans import PLANS
from pushforward.tape import randomness, trust
from pushforward.tape.continued import Begun
from pushforward.transforms import heart_code, repeat
from pushforward.transforms.record import Tape

CALLS = 10  # watched twice, read by a script, by heart from then on; nested ones begin later
TRANSFORMS: dict[str, Callable[..., Callable[..., Any]]] = {
    "jacfwd": jacfwd,
    "jacrev": jacrev,
    "jacobian": jacobian,
    "forward": lambda f, *a: jacobian(f, *a, mode="forward"),
    "value_and_jacobian": value_and_jacobian,
    "hessian": hessian,
}

pytestmark = pytest.mark.usefixtures("known")


def repeats_of(f: Callable[..., Any]) -> list[repeat.Repeat]:
    (repeats,) = trust.record_of(f).repeats.values()
    found: list[repeat.Repeat] = repeats
    return found


def reference(f: Callable[..., Tensor], *args: Any) -> Tensor:
    found: Tensor = torch.func.jacrev(f)(*args)
    return found


@pytest.mark.parametrize("name", TRANSFORMS)
def test_other_elements_are_answered_by_heart(name: str, known: list[Any]) -> None:
    def f(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"a": (x * y).sin(), "b": (x.exp() * y).cumsum(0) * y}

    for argnums in (0, (0, 1)):
        ours, theirs = TRANSFORMS[name](f, argnums), getattr(torch.func, name, torch.func.jacrev)
        for _ in range(CALLS):
            x, y = torch.rand(3), torch.rand(3)
            expected = theirs(f, argnums)(x, y)
            found = ours(x, y)
            if name == "value_and_jacobian":
                torch.testing.assert_close(found[0], f(x, y))
                found = found[1]
            torch.testing.assert_close(found, expected)
        assert any(isinstance(k, repeat.Answer) for k in known)
        known.clear()


def test_gradients_and_values(known: list[Any]) -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sin().sum()

    for _ in range(CALLS):
        x, y = torch.rand(3), torch.rand(3)
        torch.testing.assert_close(grad(f)(x, y), torch.func.grad(f)(x, y))
        found = grad_and_value(f, (0, 1))(x, y)
        torch.testing.assert_close(found, torch.func.grad_and_value(f, (0, 1))(x, y))
    assert len(known) >= 2
    assert all(isinstance(k, repeat.Answer) for k in known)


def learnt(f: Callable[..., Any], *args: Any, transform: Any = jacrev) -> Callable[..., Any]:
    derivative: Callable[..., Any] = transform(f)
    for _ in range(CALLS):
        derivative(*args)
    return derivative


OTHERS: dict[str, Any] = {
    "dtype": lambda x: x.double(),
    "shape": lambda x: torch.cat([x, x]),
    "strides": lambda x: torch.stack([x, x], 1)[:, 0],
    "parameter": lambda x: nn.Parameter(x),
    "requires grad": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_argument_is_noticed(name: str) -> None:
    def f(x: Tensor) -> Tensor:
        return x.sin() * x

    x = torch.rand(3)
    derivative = learnt(f, x)
    other = OTHERS[name](x)
    found = derivative(other)
    torch.testing.assert_close(found.detach(), reference(f, other.detach()))
    assert found.requires_grad == other.requires_grad


def test_another_number_of_arguments_is_noticed() -> None:
    def f(*xs: Tensor) -> Tensor:
        return xs[0] * xs[-1] ** 2

    derivative = jacrev(f, -1)
    x, y, z = torch.rand(3, 2).unbind()
    for _ in range(CALLS):
        derivative(x, y)
    torch.testing.assert_close(derivative(x, y, z), torch.diag(2 * x * z))


SURROUNDINGS: dict[str, Any] = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_other_surroundings_are_noticed(name: str) -> None:
    weight = torch.rand(3, 3, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        return (weight @ x).sin()

    x = torch.rand(3)
    derivative = learnt(f, x)
    with SURROUNDINGS[name]():
        found = derivative(x)
        clear_plans()
        expected = jacrev(f)(x)
    assert found.dtype is expected.dtype
    assert found.requires_grad == expected.requires_grad
    torch.testing.assert_close(found, expected)


def test_transforms_and_dual_numbers_around_are_noticed() -> None:
    def f(x: Tensor) -> Tensor:
        return x.sin() * x

    x = torch.rand(4, 3)
    derivative = learnt(f, x[0])
    torch.testing.assert_close(
        torch.func.vmap(derivative)(x), torch.func.vmap(torch.func.jacrev(f))(x)
    )
    twice = torch.func.jacfwd(torch.func.jacrev(f))(x[0])
    torch.testing.assert_close(torch.func.jacfwd(derivative)(x[0]), twice)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x[0], torch.ones(3))
        tangent = torch.autograd.forward_ad.unpack_dual(derivative(dual)).tangent
    torch.testing.assert_close(tangent, twice.sum(-1))


def test_results_can_be_backpropagated_through(known: list[Any]) -> None:
    weight = torch.rand(3, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        return ((weight * x) ** 3).sum()

    for _ in range(CALLS):
        x = torch.rand(3)
        gradient, value = grad_and_value(f)(x)
        (by_gradient,) = torch.autograd.grad(gradient.sum(), weight, retain_graph=True)
        (by_value,) = torch.autograd.grad(value, weight)
        torch.testing.assert_close(by_gradient, 9 * weight.detach() ** 2 * x**2)
        torch.testing.assert_close(by_value, 3 * weight.detach() ** 2 * x**3)
    assert isinstance(known[-1], repeat.Answer)


def test_a_captured_tensor_that_newly_requires_grad_is_noticed() -> None:
    weight = torch.rand(3)
    derivative = learnt(lambda x: weight * x * x, torch.ones(3))
    weight.requires_grad_()
    (found,) = torch.autograd.grad(derivative(torch.ones(3)).sum(), weight)
    torch.testing.assert_close(found, 2 * torch.ones(3))


@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_another_branch_runs_once(transform: Any) -> None:
    calls: list[int] = []

    def f(x: Tensor, which: int) -> Tensor:
        calls.append(which)
        return x.sin() if which else x.exp()

    x = torch.rand(3)
    derivative = transform(f)
    for _ in range(CALLS):
        for which in (0, 1):
            derivative(x, which)
    calls.clear()
    for which in (0, 1, 1, 0, 1):
        torch.testing.assert_close(derivative(x, which), reference(f, x, which))
    assert calls == [0, 0, 1, 1, 1, 1, 0, 0, 1, 1]  # ours and the reference, in turn


@pytest.mark.parametrize("transform", [jacfwd, jacrev, value_and_jacobian])
def test_two_graphs_that_come_in_turn_are_both_known_by_heart(
    transform: Any, known: list[Any]
) -> None:
    def f(x: Tensor, times: int, factor: Tensor) -> Tensor:
        for _ in range(times):
            x = x.sin() * factor
        return x if times < 3 else x.sum()  # of another shape

    factor = torch.rand(3)
    derivative = transform(f)
    for round_ in range(2 * CALLS):
        x, times = torch.rand(3), (1, 4)[round_ % 2]
        with torch.set_grad_enabled(round_ % 5 != 0 or round_ < CALLS):
            found = derivative(x, times, factor)
        found = found[1] if transform is value_and_jacobian else found
        torch.testing.assert_close(found, reference(f, x, times, factor))
    assert sum(isinstance(k, repeat.Answer) for k in known[-8:]) == 8
    for times in (1, 4, 2, 4, 1):  # and a third
        factor.requires_grad_(times == 4)
        found = derivative(x, times, factor)
        found = found[1] if transform is value_and_jacobian else found
        torch.testing.assert_close(found, reference(f, x, times, factor))
        assert found.requires_grad == (times == 4)
        factor.requires_grad_(False)


def test_an_exception_is_raised_once_and_nothing_is_left_behind() -> None:
    calls: list[int] = []

    def f(x: Tensor, error: type[BaseException] | None) -> Tensor:
        calls.append(1)
        if error is not None:
            raise error("no")
        return x.sin()

    x = torch.rand(3)
    derivative = learnt(f, x, None)
    for error in (ValueError, KeyboardInterrupt, ValueError):
        calls.clear()
        with pytest.raises(error, match="no"):
            derivative(x, error)
        assert len(calls) == 1
        assert torch.is_grad_enabled()
    torch.testing.assert_close(derivative(x, None), torch.diag(x.cos()))


@pytest.mark.parametrize("with_another_thread", [False, True])
def test_random_numbers_are_refused_and_put_back(with_another_thread: bool) -> None:
    end = threading.Event()
    if with_another_thread:
        threading.Thread(target=end.wait).start()

    def f(x: Tensor, is_random: bool) -> Tensor:
        return x * (torch.rand(3) if is_random else torch.ones(3))

    x = torch.rand(3)
    derivative = learnt(f, x, False, transform=jacfwd)
    before = torch.get_rng_state()
    try:
        with pytest.raises(RuntimeError, match="random"):
            derivative(x, True)
    finally:
        end.set()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("is_read", [True, False])
def test_random_numbers_are_refused_whether_the_generators_memory_is_read_or_not(
    monkeypatch: pytest.MonkeyPatch, known: list[Any], is_read: bool
) -> None:
    if not is_read:
        for module in (heart_code, randomness):
            monkeypatch.setattr(module, "memory_of_cpu", lambda: None)
    noise: list[int] = []

    def f(x: Tensor) -> Tensor:
        return (x * (torch.rand(3) if noise else torch.ones(3))).sin()

    x = torch.ones(3)
    for _ in range(CALLS):
        found = jacfwd(f)(x)
    assert isinstance(known[-1], repeat.Answer)
    assert torch.equal(found, torch.ones(3).cos().diag())
    noise.append(1)
    before = torch.get_rng_state()
    with pytest.raises(pushforward.RandomnessError):
        jacfwd(f)(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_numbers_go_on_as_in_the_plain_call() -> None:
    def f(x: Tensor) -> Tensor:
        return x * torch.rand(3)

    x = torch.ones(3)
    derivative = jacrev(f)
    for _ in range(CALLS):
        before = torch.get_rng_state()
        expected = torch.diag(torch.rand(3))
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        torch.testing.assert_close(derivative(x), expected)
        assert torch.equal(torch.get_rng_state(), after)


def test_a_new_write_to_an_argument_is_carried_out() -> None:
    def f(x: Tensor, does_write: bool) -> Tensor:
        y = x.sin()
        if does_write:
            x.mul_(2)
        return y

    x = torch.ones(3)
    derivative = learnt(f, x, False)
    torch.testing.assert_close(derivative(x, True), torch.diag(torch.ones(3).cos()))
    torch.testing.assert_close(x, torch.full((3,), 2.0))


def test_results_are_the_callers_own(known: list[Any]) -> None:
    derivative = value_and_jacobian(lambda x: x * 2)
    found = [derivative(torch.ones(3)) for _ in range(CALLS)]
    assert isinstance(known[-1], repeat.Answer)
    found[-1][1].zero_()
    found[-1][0].zero_()
    torch.testing.assert_close(derivative(torch.ones(3))[1], 2 * torch.eye(3))
    torch.testing.assert_close(found[-2][1], 2 * torch.eye(3))


def test_a_function_that_changes_all_the_time_is_left_alone(known: list[Any]) -> None:
    def f(x: Tensor, which: int) -> Tensor:
        return x.sin() if which else x.exp()

    for number in range(60):
        x = torch.rand(3)
        torch.testing.assert_close(jacrev(f)(x, number % 2), reference(f, x, number % 2))
    assert sum(isinstance(k, Begun) for k in known) <= repeat.MAX_MISSES


@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_arguments_of_several_shapes_in_turn_are_all_known_by_heart(
    transform: Any, known: list[Any]
) -> None:
    def f(x: Tensor) -> Tensor:
        return (x.sin() * x).cumsum(0)

    for number in range(60):
        x = torch.rand(2 + number % repeat.MAX_REPEATS)
        known.clear()
        torch.testing.assert_close(transform(f)(x), reference(f, x))
        assert number < 40 or isinstance(known[-1], repeat.Answer)
    assert len(repeats_of(f)) == repeat.MAX_REPEATS


def test_surroundings_in_turn_are_all_known_by_heart(known: list[Any]) -> None:
    def f(x: Tensor) -> Tensor:
        return (x.sin() * x).cumsum(0)

    x = torch.rand(3)
    expected = reference(f, x)
    for number in range(60):
        known.clear()
        if number % 3 == 2:
            found = torch.vmap(jacrev(f))(x[None])[0]
        else:
            with torch.set_grad_enabled(number % 3 == 0):
                found = jacrev(f)(x)
        torch.testing.assert_close(found, expected)
        assert number < 40 or isinstance(known[-1], repeat.Answer)


def test_arguments_of_ever_other_shapes_are_not_written_down_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def f(x: Tensor) -> Tensor:
        return x.sin()

    monkeypatch.setattr(trust, "MAX_MADE", 10**6)
    monkeypatch.setattr(trust, "CALLS_FOR_ONE", 100)
    monkeypatch.setattr(repeat, "MAX_WRITTEN", 12)
    for number in range(320):
        x = torch.rand(1 + number // 4 % 7)
        torch.testing.assert_close(jacrev(f)(x), reference(f, x))
    record = trust.record_of(f)
    assert len(repeats_of(f)) == repeat.MAX_REPEATS
    assert record.num_repeats == repeat.MAX_WRITTEN + record.calls // trust.CALLS_FOR_ONE > 12


def test_a_function_that_changes_no_more_is_known_by_heart(known: list[Any]) -> None:
    def f(x: Tensor, times: int) -> Tensor:
        for _ in range(times):
            x = x.sin()
        return x

    x = torch.rand(3)
    for number in range(300):
        jacrev(f)(x, number % 7)
    for _ in range(3 * trust.CALLS_FOR_ONE):
        found = jacrev(f)(x, 9)
    torch.testing.assert_close(found, reference(f, x, 9))
    assert isinstance(known[-1], repeat.Answer)


# ----- Recordings: of transforms that take tangents or cotangents -----

PRODUCTS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "vjp": lambda f, x, v: (lambda y, pull: (y, pull(v(y))[0]))(*vjp(f, x)),
    "linearize": lambda f, x, v: (lambda y, push: (y, push(v(x))))(*linearize(f, x)),
    "jvp": lambda f, x, v: jvp(f, (x,), (v(x),)),
    "pulled batch": lambda f, x, v: (
        lambda y, pull: (y, pull.batched(torch.stack([v(y), v(y)]))[0].sum(0) / 2)
    )(*vjp(f, x)),
    "pushed batch": lambda f, x, v: (
        lambda y, push: (y, push.batched(torch.stack([v(x), v(x)])).sum(0) / 2)
    )(*linearize(f, x)),
}
THEIRS: dict[str, Callable[..., tuple[Any, Any]]] = {
    **dict.fromkeys(
        ("vjp", "pulled batch"),
        lambda f, x, v: (lambda y, pull: (y, pull(v(y))[0]))(*torch.func.vjp(f, x)),
    ),
    **dict.fromkeys(
        ("linearize", "jvp", "pushed batch"), lambda f, x, v: torch.func.jvp(f, (x,), (v(x),))
    ),
}


def ramp(like: Tensor) -> Tensor:
    return torch.linspace(0.5, 1.5, like.numel(), dtype=like.dtype).reshape(like.shape)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("is_trained", [False, True])
def test_recordings_are_known_by_heart(name: str, is_trained: bool, known: list[Any]) -> None:
    weight = torch.rand(3, 3, requires_grad=is_trained)

    def f(x: Tensor) -> Tensor:
        return (weight @ x).tanh() * x.exp()

    for number in range(CALLS):
        x = torch.rand(3)
        with torch.set_grad_enabled(number % 4 != 3):
            value, product = PRODUCTS[name](f, x, ramp)
            expected_value, expected = THEIRS[name](f, x, ramp)
        torch.testing.assert_close(value, expected_value)
        torch.testing.assert_close(product, expected)
        assert value.requires_grad == product.requires_grad == (is_trained and number % 4 != 3)
        if value.requires_grad:
            found = torch.autograd.grad(value.sum() + product.sum(), weight)
            reference = torch.autograd.grad(expected_value.sum() + expected.sum(), weight)
            torch.testing.assert_close(found, reference)
    assert any(isinstance(k, Tape) for k in known[-3:])


def test_a_pullback_known_by_heart_may_be_used_anywhere() -> None:
    weight = torch.rand(3, 3, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        return (weight @ x).tanh() * x.exp()

    for _ in range(CALLS):
        pull = vjp(f, torch.rand(3))[1]
        pull(torch.ones(3))
    x, v = torch.rand(3), torch.rand(3)
    _, pull = vjp(f, x)
    jac = torch.func.jacrev(f)(x)
    for _ in range(2):
        torch.testing.assert_close(pull(v)[0], v @ jac)
        with torch.no_grad():
            found = pull(v)[0]
        assert not found.requires_grad
        torch.testing.assert_close(found, v @ jac)
        vs = torch.rand(4, 3)
        torch.testing.assert_close(torch.func.vmap(pull)(vs)[0], vs @ jac)
        torch.testing.assert_close(pull.batched(vs)[0], vs @ jac)
        torch.testing.assert_close(torch.func.jacrev(lambda v: pull(v)[0])(v), jac.T)
        torch.testing.assert_close(jacfwd(lambda v: pull(v)[0])(v), jac.T)
        w = v.clone().requires_grad_()
        (found,) = torch.autograd.grad(pull(w)[0].sum(), w, retain_graph=True)
        torch.testing.assert_close(found, jac.sum(1))
        with torch.inference_mode():
            torch.testing.assert_close(pull(v)[0], v @ jac)
        (found,) = torch.autograd.grad(pull(v)[0].sum(), weight, retain_graph=True)
        (expected,) = torch.autograd.grad((v @ torch.func.jacrev(f)(x)).sum(), weight)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(pull(v[:, None].expand(3, 2)[:, 0])[0], v @ jac)
        torch.testing.assert_close(pull(v.double())[0], v @ jac)
    with pytest.raises(ValueError, match="shape"):
        pull(torch.rand(4))
    with pytest.raises(TypeError, match="structure"):
        pull((v,))


def test_what_is_overwritten_after_a_recording_known_by_heart_is_noticed() -> None:
    scale = torch.rand(3)

    def f(x: Tensor) -> Tensor:
        return (x * scale).sin()

    x = torch.rand(3)
    for _ in range(CALLS):
        _, pull = vjp(f, x)
        pull(torch.ones(3))
    expected = scale * (x * scale).cos()
    x.zero_()  # the recording has a copy
    torch.testing.assert_close(pull(torch.ones(3))[0], expected)
    scale.add_(1)
    with pytest.raises(RuntimeError, match="written to"):
        pull(torch.ones(3))


@pytest.mark.parametrize("transform", [vjp, linearize])
def test_a_recording_known_by_heart_ends_with_its_pullback(
    transform: Any, known: list[Any]
) -> None:
    def f(x: Tensor) -> Tensor:
        return x.sin() * x

    for _ in range(CALLS):
        value, product = transform(f, torch.rand(3))
        product(torch.ones(3))
    assert isinstance(known[-1], Tape)
    known.clear()
    gc.collect()
    gc.disable()
    try:
        ends = [weakref.ref(product._tape), *map(weakref.ref, product._tape.reading.tensors)]
        assert len(ends) > 2
        del product, value
        assert all(end() is None for end in ends)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", PRODUCTS)
def test_another_graph_is_recorded_in_the_same_call(name: str) -> None:
    calls: list[int] = []

    def f(x: Tensor) -> Tensor:
        calls.append(1)
        return x.sin() * x if x[0] > 0 else x.sin()

    for _ in range(CALLS):
        PRODUCTS[name](f, torch.ones(3), ramp)
    calls.clear()
    x = -torch.rand(3)
    value, product = PRODUCTS[name](f, x, ramp)
    assert len(calls) == 1
    torch.testing.assert_close(value, x.sin())
    torch.testing.assert_close(product, ramp(x) * x.cos())


def test_a_recording_known_by_heart_raises_what_the_function_raises() -> None:
    def f(x: Tensor) -> Tensor:
        if x[0] < 0:
            raise ValueError("no")
        return x.sin()

    for _ in range(CALLS):
        vjp(f, torch.ones(3))
    with pytest.raises(ValueError, match="no"):
        vjp(f, -torch.ones(3))
    assert torch.is_grad_enabled()
    torch.testing.assert_close(vjp(f, torch.ones(3))[1](torch.ones(3))[0], torch.ones(3).cos())


def test_keyword_arguments_and_several_primals() -> None:
    def f(x: Tensor, y: Tensor, *, power: int) -> dict[str, Tensor]:
        return {"a": x * y**power, "b": y.sin()}

    for number in range(CALLS):
        x, y = torch.rand(3), torch.rand(3)
        power = 2 + number // 6
        value, pull = vjp(f, x, y, power=power)
        expected, pull_expected = torch.func.vjp(lambda x, y, p=power: f(x, y, power=p), x, y)
        torch.testing.assert_close(value, expected)
        v = {"a": torch.rand(3), "b": torch.rand(3)}
        torch.testing.assert_close(pull(v), pull_expected(v))


TREES: dict[str, Callable[..., Any]] = {
    "grad": lambda lib, f, tree, y: lib.grad(lambda t, y: f(t, y)["a"].sum(), (0, 1))(tree, y),
    "grad of one": lambda lib, f, tree, y: lib.grad(lambda t, y: f(t, y)["a"].sum())(tree, y),
    "jacrev": lambda lib, f, tree, y: lib.jacrev(f)(tree, y),
    "jacfwd": lambda lib, f, tree, y: lib.jacfwd(f, argnums=(1, 0))(tree, y),
    "vjp": lambda lib, f, tree, y: lib.vjp(f, tree, y)[1](f(tree, y)),
    "jvp": lambda lib, f, tree, y: lib.jvp(f, (tree, y), (tree, y)),
}


@pytest.mark.parametrize("name", TREES)
def test_trees_of_tensors_are_known_by_heart(name: str, known: list[Any]) -> None:
    def f(tree: Any, y: Tensor) -> dict[str, Tensor]:
        out = tree["w"] @ y + tree["b"][0]
        return {"a": out.tanh(), "b": tree["b"][1] * y}

    def tree() -> Any:
        return {"w": torch.rand(3, 3), "b": [torch.rand(3), torch.rand(3)]}

    for _ in range(CALLS):
        given = tree(), torch.rand(3)
        torch.testing.assert_close(
            TREES[name](pushforward, f, *given), TREES[name](torch.func, f, *given)
        )
    assert known[-1] is not None
    known.clear()
    others = [tree() for _ in range(4)]
    others[0]["b"].append(torch.rand(3))  # is not used
    others[1]["w"] = torch.rand(1, 3)
    others[2]["w"] = torch.nn.Parameter(others[2]["w"])
    others[3] = {"b": others[3]["b"], "w": others[3]["w"]}
    for other in others:
        y = torch.rand(3)
        torch.testing.assert_close(
            TREES[name](pushforward, f, other, y), TREES[name](torch.func, f, other, y)
        )


@pytest.mark.parametrize("argnums", [0, 1, (0, 1), (1, 0)])
def test_operators_are_recorded_by_heart(argnums: Any, known: list[Any]) -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return (x * y.sum()).sin()

    for _ in range(CALLS):
        x, y = torch.rand(3), torch.rand(2)
        blocks = torch.func.jacrev(f, argnums)(x, y)
        expected = blocks if isinstance(argnums, int) else torch.cat(blocks, 1)
        operator = pushforward.jacobian_operator(f, x, y, argnums=argnums)
        torch.testing.assert_close(operator.value, f(x, y))
        columns = torch.rand(expected.shape[1], 4)
        torch.testing.assert_close(operator @ columns, expected @ columns)
        torch.testing.assert_close(operator @ columns[:, 0], expected @ columns[:, 0])
        torch.testing.assert_close(operator.T @ torch.ones(3), expected.T @ torch.ones(3))
        torch.testing.assert_close(operator.to_dense(), expected)
        torch.testing.assert_close(operator.to_csr().to_dense(), expected)
    assert isinstance(known[-1], Tape)


def test_an_error_of_kernels_is_raised_as_it_is(known: list[Any]) -> None:
    def f(x: Tensor) -> Tensor:
        return x.sin() * x

    def fail(values: list[Any]) -> Any:
        raise MemoryError("full")

    x = torch.rand(3)
    derivative = learnt(f, x)
    (answered,) = {id(k): k for k in PLANS.of_kind("kernels") if k.replay is not None}.values()
    replay, answered.replay = answered.replay, fail
    with pytest.raises(MemoryError, match="full"):
        derivative(x)
    assert torch.is_grad_enabled()
    answered.replay = replay
    torch.testing.assert_close(derivative(x), reference(f, x))


def test_the_graph_is_let_go_of_before_the_kernels_run(known: list[Any]) -> None:
    alive: list[bool] = []
    held: list[weakref.ref[Tensor]] = []

    def f(x: Tensor) -> Tensor:
        y = x.sin()
        held[:] = [weakref.ref(y)]
        return y * y

    x = torch.rand(3)
    derivative = learnt(f, x)
    (answered,) = {id(k): k for k in PLANS.of_kind("kernels") if k.replay is not None}.values()
    replay = answered.replay

    def noting(values: list[Any]) -> Any:
        rows = replay(values)
        alive.append(held[0]() is not None)  # what was saved
        values.clear()
        alive.append(held[0]() is not None)
        return rows

    answered.replay = noting
    torch.testing.assert_close(derivative(x), reference(f, x))
    assert alive == [True, False]
    assert isinstance(known[-1], repeat.Answer)
