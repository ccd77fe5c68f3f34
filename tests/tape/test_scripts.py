"""Graphs that come again are read by scripts: the same as the reader reads, and nothing else passes for them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import pushforward
from pushforward import jacfwd, jacrev, jvp, vjp
from pushforward.tape import scripts, trust

F64 = torch.float64
CALLS = trust.WATCHED_FIRST + 3  # the last of them is read by a script


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    pushforward.clear_plans()
    yield
    pushforward.clear_plans()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that tells of each script that was tried whether it fitted."""
    tried: list[bool] = []
    original = scripts.Script.read

    def counting(self: scripts.Script, *rest: Any) -> Any:
        found = original(self, *rest)
        tried.append(found is not None)
        return found

    monkeypatch.setattr(scripts.Script, "read", counting)
    return tried


WEIGHT = torch.randn(3, 3, dtype=F64, requires_grad=True)


def written(x: Tensor, place: Any, value: Any = None) -> Tensor:
    """Write by index and through views, which has to be watched at every call."""
    y = x.new_zeros(4)
    y[place] = x.sum() if value is None else value(x)
    y[2:] += x[:2].sin()
    y[1:3].mul_(x[1])
    return y * y.sum()


def kept(x: Tensor, is_overwritten: bool) -> Tensor:
    """Overwrite what a node saved, or not."""
    y = x.exp()
    z = y * x
    (y if is_overwritten else y.clone()).add_(1)
    return z + y


def recomputed(x: Tensor, is_checkpointed: bool) -> Tensor:
    def inner(x: Tensor) -> Tensor:
        return (x.sin() * x).cos()

    return checkpoint(inner, x, use_reentrant=False) * x if is_checkpointed else inner(x) * x


def hooked(x: Tensor, factor: float) -> Tensor:
    """A hook changes what goes back."""
    y = x.sin()
    y.register_hook(lambda y_bar: y_bar * factor)
    return y * x


# Functions of a point and of something that may change from call to call, with two values of that.
CHANGES: dict[str, tuple[Callable[..., Any], Any, Any]] = {
    "nothing": (lambda x, _: (x.sin() * x).sum(), 0, 1),
    "an exponent": (lambda x, n: x**n, 2, 3),
    "a sign of zero": (lambda x, n: torch.nn.functional.leaky_relu(x - 1, n), 0.0, -0.0),
    "an axis": (lambda x, d: torch.outer(x, x).sum(d), 0, 1),
    "a negative axis": (lambda x, d: torch.outer(x, x).cumsum(d), -1, -2),
    "a shape": (lambda x, s: x.repeat(2).view(s), (2, 3), (3, 2)),
    "an expanded shape": (lambda x, n: x.expand(n, 3).sum(1), 2, 4),
    "a constant's shape": (lambda x, c: x * c, torch.ones(3), torch.ones(2, 3)),
    "a constant's dtype": (lambda x, c: x * c, torch.ones(3), torch.ones(3, dtype=F64)),
    "a constant's strides": (lambda x, c: c @ x, torch.randn(3, 3, dtype=F64), torch.randn(3, 3, dtype=F64).T),
    "an index": (lambda x, i: x[i], torch.tensor([0, 2]), torch.tensor([1, 1])),
    "the number of indices": (lambda x, i: x[i], torch.tensor([0, 2]), torch.tensor([1])),
    "a mask": (lambda x, m: x[m], torch.tensor([True, False, True]), torch.tensor([False, True, False])),
    "a slice": (lambda x, i: x[i:] * 2, 0, 1),
    "an operator": (lambda x, f: f(x), torch.sin, torch.cos),
    "an operand": (lambda x, is_other: x.sin() * (x if is_other else x.exp()), True, False),
    "an output of several": (lambda x, i: x.view(3, 1).unbind()[i], 0, 2),
    "which of two equal": (lambda x, i: (x.sin(), x.cos())[i] * x.sin(), 0, 1),
    "what is joined": (lambda x, n: torch.cat([torch.ones(n), x, torch.ones(3 - n)]), 0, 2),
    "a parameter": (lambda x, is_used: WEIGHT @ x if is_used else WEIGHT.detach() @ x, True, False),
    "a branch of a parameter": (lambda x, n: (WEIGHT**n) @ x, 2, 3),
    "an unused output": (lambda x, i: (x * 2, x.detach() * 3)[i], 0, 1),
    "the number of outputs": (lambda x, n: (x.sin(),) * n, 1, 2),
    "where it writes": (written, 0, 3),
    "where a view lies": (lambda x, i: written(x, slice(i, i + 2)), 0, 1),
    "a view's steps": (lambda x, n: written(x, slice(0, n, n // 2)), 2, 4),
    "what it writes": (lambda x, f: written(x, 0, f), Tensor.sum, Tensor.prod),
    "that it writes a constant": (lambda x, f: written(x, 0, f), Tensor.sum, lambda x: 3.0),
    "that it writes": (lambda x, is_on: written(x, 0) if is_on else written(x, 0).clone(), True, False),
    "what it overwrites": (kept, False, True),
    "a checkpoint": (recomputed, True, False),
    "the number of edges": (lambda x, n: torch.stack([x] * n), 2, 3),
    # Between operators, with outputs of one shape and dtype: some nodes say nothing of that.
    "a shape between": (lambda x, s: (x.repeat(4).view(s).cumsum(0) * 2).tanh().view(12), (3, 4), (4, 3)),
    "a shape before": (lambda x, s: x.repeat(4).view(s).tanh().sum(0).sum(), (3, 4), (4, 3)),
    "a shape between negations": (lambda x, s: -(-x.repeat(4).view(s)).softmax(0).view(12), (3, 4), (4, 3)),
    "a shape that is multiplied": (
        lambda x, s: (torch.ones(2, s[0], dtype=F64) @ x.repeat(4).view(s)).sum(), (3, 4), (4, 3)
    ),
    "a dtype between": (lambda x, d: x.to(d).exp().to(F64) * 2, torch.float32, torch.bfloat16),
    "a dtype that is multiplied": (
        lambda x, d: (x.to(d) @ torch.ones(3, 2, dtype=d)).view(2, 1).view(2).to(F64), torch.float32, torch.bfloat16
    ),
    "a dtype of constants": (
        lambda x, d: (x.to(d).view(1, 3) @ torch.ones(3, 2).to(d)).view(2).tanh().to(F64), torch.float32, torch.float16
    ),
    "a constant that broadcasts": (lambda x, c: (x + c).tanh().sum(), torch.zeros(3), torch.zeros(2, 3)),
    "a constant that broadcasts and is not seen": (lambda x, c: (x + c).sum(), torch.zeros(3), torch.zeros(2, 3)),
    "a bias that broadcasts": (
        lambda x, n: torch.nn.functional.linear(x, WEIGHT.detach(), torch.ones(3, dtype=F64) * n).sigmoid().sum(), 1, 2
    ),
}  # fmt: skip


def differentiated(func: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: torch.autograd.functional.jacobian(func, x)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_a_change_is_noticed(name: str, transform: Any) -> None:
    func, first, second = CHANGES[name]
    # Each of the two refuses what the other does not: overwriting, and writing to slices.
    reference = torch.func.jacfwd if func is kept else differentiated
    x = torch.rand(3, dtype=F64)
    for given in (*[first] * CALLS, *[second] * CALLS, first, second):
        torch.testing.assert_close(
            transform(lambda x, given=given: func(x, given))(x),
            reference(lambda x, given=given: func(x, given))(x),
        )


@pytest.mark.parametrize("change", [lambda x: x[:2], lambda x: x.float(), lambda x: x[::2]])
def test_a_change_of_the_input_is_noticed(change: Callable[[Tensor], Tensor]) -> None:
    def func(x: Tensor) -> Tensor:
        return (x.sin() * x.sum()).exp()

    x = torch.rand(4, dtype=F64)
    for point in (*[x] * CALLS, *[change(x)] * CALLS, x):
        torch.testing.assert_close(jacfwd(func)(point), torch.func.jacfwd(func)(point))


def test_a_script_reads_what_the_reader_reads(read: list[bool]) -> None:
    def func(x: Tensor) -> Tensor:
        hidden = torch.tanh(WEIGHT @ x)
        return torch.cat([hidden, x.sort().values[1:]]).softmax(0) * x.sum()

    for _ in range(CALLS):
        x = torch.rand(3, dtype=F64)
        got = jacrev(func)(x)
        torch.testing.assert_close(got, torch.func.jacrev(func)(x))
        (slope,) = torch.autograd.grad(got.square().sum(), WEIGHT)
        (expected,) = torch.autograd.grad(torch.func.jacrev(func)(x).square().sum(), WEIGHT)
        torch.testing.assert_close(slope, expected)
    assert read[-1]


def test_two_graphs_in_turn_have_a_script_each(read: list[bool]) -> None:
    def func(x: Tensor) -> Tensor:
        return x.sin() * 2 if x.sum() > 0 else x.cos() * 2

    x = torch.ones(2)
    for _ in range(2 * CALLS):
        for point in (x, -x):
            torch.testing.assert_close(jacfwd(func)(point), torch.func.jacfwd(func)(point))
    assert read[-2:].count(True) >= 1


def test_a_deep_graph_has_a_script(read: list[bool]) -> None:
    def func(x: Tensor) -> Tensor:
        for _ in range(500):
            x = x * 1.001 + x.sin() * 0.001
        return x

    x = torch.rand(2, dtype=F64)
    for _ in range(CALLS):
        torch.testing.assert_close(jacfwd(func)(x), torch.func.jacfwd(func)(x))
    assert read[-1]


def test_scripts_nest() -> None:
    def func(x: Tensor) -> Tensor:
        return (x.sin() * x).sum()

    x = torch.rand(3, dtype=F64)
    for _ in range(2 * CALLS):
        torch.testing.assert_close(
            jacfwd(jacrev(jacfwd(func)))(x),
            torch.func.jacfwd(torch.func.jacrev(torch.func.jacfwd(func)))(x),
        )
        torch.testing.assert_close(
            torch.func.vmap(jacfwd(jacrev(func)))(x[:, None] * x),
            torch.func.vmap(torch.func.hessian(func))(x[:, None] * x),
        )


@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_watched_functions_have_scripts(read: list[bool], transform: Any) -> None:
    """Their writes are seen at every call, and their graphs are read by scripts all the same."""
    reference = getattr(torch.func, transform.__name__)

    def func(x: Tensor) -> Tensor:
        return written(x, 0)

    for _ in range(CALLS):
        x = torch.rand(3, dtype=F64)
        torch.testing.assert_close(transform(func)(x), reference(func)(x))
    assert read[-2:] == [True, True]
    for _ in range(CALLS):
        points = torch.rand(4, 3, dtype=F64)
        torch.testing.assert_close(
            torch.vmap(transform(func))(points), torch.stack([reference(func)(p) for p in points])
        )
    assert read[-2:] == [True, True]


def test_scripts_of_watched_functions_honour_hooks() -> None:
    """What autograd does is the reference: forward mode knows no hooks."""
    for factor in (*[2.0] * CALLS, *[3.0] * CALLS):
        x = torch.rand(3, dtype=F64)

        def func(x: Tensor, factor: float = factor) -> Tensor:
            return hooked(x, factor)

        expected = torch.autograd.functional.vjp(func, x, torch.ones(3, dtype=F64))[1]
        torch.testing.assert_close(vjp(func, x)[1](torch.ones(3, dtype=F64))[0], expected)


def test_captured_tensors_that_are_written_to_keep_their_values_and_no_history() -> None:
    buffer = torch.zeros(3, dtype=F64)

    def func(x: Tensor) -> Tensor:
        buffer.copy_(x * 2)
        return (buffer * x).sin()

    for _ in range(CALLS):
        x = torch.rand(3, dtype=F64)
        _, pushed = jvp(func, (x,), (torch.ones(3, dtype=F64),))
        torch.testing.assert_close(pushed, 4 * x * (2 * x * x).cos())
        torch.testing.assert_close(buffer, 2 * x)
        assert not buffer.requires_grad


def test_many_graphs_in_turn_do_not_make_scripts_for_ever(monkeypatch: Any) -> None:
    made: list[bool] = []
    original = scripts._Writer.code

    def counting(self: Any, ends: Any) -> Any:
        made.append(True)
        return original(self, ends)

    monkeypatch.setattr(scripts._Writer, "code", counting)
    x = torch.rand(2, dtype=F64)
    for i in range(100):

        def func(x: Tensor, n: int = i % 5) -> Tensor:
            return x.sin() ** (n + 2)

        torch.testing.assert_close(jacfwd(func)(x), torch.func.jacfwd(func)(x))
    assert len(made) <= trust.MAX_MADE + 100 // trust.CALLS_FOR_ONE


def test_zeros_without_memory_that_come_later_are_seen() -> None:
    """Dual numbers inside leave them where something does not depend on the direction."""

    def func(x: Tensor, is_zero: bool) -> Tensor:
        y = x.new_zeros(3)
        y[0] = x.sum()  # is watched at every call
        if is_zero:
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(torch.ones(3, dtype=F64), torch.ones(3, dtype=F64))
                factor = forward_ad.unpack_dual(dual * torch.zeros(3, dtype=F64)).tangent
                factor = torch._efficientzerotensor(3, dtype=F64) if factor is None else factor
        else:
            factor = torch.full((3,), 2.0, dtype=F64)
        return (y + x) * factor * x.exp()

    x = torch.rand(3, dtype=F64)
    for is_zero in (*[False] * CALLS, *[True] * CALLS, False, True):
        torch.testing.assert_close(
            jacrev(lambda x, z=is_zero: func(x, z))(x),
            torch.autograd.functional.jacobian(lambda x, z=is_zero: func(x, z), x),
        )


FIRST_ORDER: dict[str, Callable[..., Any]] = {
    "grad": lambda f, x: pushforward.grad(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "jacrev": lambda f, x: jacrev(f)(x),
    "value": lambda f, x: pushforward.value_and_jacobian(f)(x)[0],
    "vjp": lambda f, x: vjp(f, x)[1](torch.ones((), dtype=F64))[0],
    "jvp": lambda f, x: jvp(f, (x,), (x,))[1],
}
NESTED: dict[str, Callable[..., Any]] = {
    "hessian": lambda f, x: pushforward.hessian(f)(x),
    "sparse hessian": lambda f, x: pushforward.hessian(f, output="csr")(x),
    "jacfwd of": lambda f, x: jacfwd(lambda x: f(x))(x),
    "autograd through": lambda f, x: f(x.clone().requires_grad_()),
}


@pytest.mark.parametrize("outer", NESTED)
@pytest.mark.parametrize("inner", FIRST_ORDER)
def test_what_was_followed_once_is_not_followed_for_ever(inner: str, outer: str) -> None:
    """A graph is read by the same script for inputs that autograd follows, as within a transform, and for others."""

    def func(x: Tensor) -> Tensor:
        return (x**3).sum()

    def first(x: Tensor) -> Any:
        return FIRST_ORDER[inner](func, x)

    x = torch.rand(3, dtype=F64)
    expected = first(x)
    pushforward.clear_plans()
    for num_calls in (3, 1, CALLS):
        for _ in range(num_calls):
            NESTED[outer](first if "hessian" not in outer else func, x)
        found = [first(x) for _ in range(num_calls)]
        assert not any(t.requires_grad for t in found)
        for result in found:
            torch.testing.assert_close(result, expected)
        followed = first(x.clone().requires_grad_())
        assert followed.requires_grad


def sample_loss(weight: Tensor, x: Tensor, label: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy((weight @ x.tanh())[None], label[None])


def per_sample(library: Any, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """In a level of ``torch.func``, where weights are that are not to be shared."""
    trust.record_of(function).mixes = True
    return torch.func.vmap(library.grad(function), in_dims=(None, 0, 0))


def test_a_level_of_torch_func_has_scripts(read: list[bool]) -> None:
    for _ in range(CALLS):
        given = torch.randn(3, 4, dtype=F64), torch.randn(5, 4, dtype=F64), torch.arange(5) % 3
        actual = per_sample(pushforward, sample_loss)(*given)
        torch.testing.assert_close(actual, per_sample(torch.func, sample_loss)(*given))
    assert read[-1]


def test_a_script_of_a_level_serves_no_call_outside(read: list[bool]) -> None:
    given = torch.randn(3, 4, dtype=F64), torch.randn(5, 4, dtype=F64), torch.arange(5) % 3
    outside = given[0], given[1][0], given[2][0]
    for _ in range(CALLS):
        torch.testing.assert_close(
            per_sample(pushforward, sample_loss)(*given),
            per_sample(torch.func, sample_loss)(*given),
        )
        actual = pushforward.grad(sample_loss)(*outside)
        torch.testing.assert_close(actual, torch.func.grad(sample_loss)(*outside))
    kinds = {script.is_in_level for script in trust.record_of(sample_loss).scripts}
    assert kinds == {True, False}


def test_a_script_of_a_level_notices_that_two_tensors_are_not_one_any_more() -> None:
    held: dict[str, Tensor] = {}

    def function(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (weight * held["a"] * x).sin().sum() + (weight * held["b"] * y).cos().sum()

    first, second = torch.randn(4, dtype=F64), torch.randn(4, dtype=F64)
    for a, b in [(first, first)] * CALLS + [(first, second), (second, first)] * 2:
        held |= {"a": a, "b": b}
        given = torch.randn(4, dtype=F64), torch.randn(5, 4, dtype=F64), torch.randn(5, dtype=F64)
        torch.testing.assert_close(
            per_sample(pushforward, function)(*given), per_sample(torch.func, function)(*given)
        )
