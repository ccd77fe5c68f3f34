"""Graphs that come again are read by scripts: the same as the reader reads, and nothing else passes for them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import pushforward
from pushforward import jacfwd, jacrev
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
    "the number of edges": (lambda x, n: torch.stack([x] * n), 2, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_a_change_is_noticed(name: str, transform: Any) -> None:
    func, first, second = CHANGES[name]
    reference = getattr(torch.func, transform.__name__)
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
