"""Jacobians of few entries whose calls are known by heart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pushforward as pf
from pushforward.transforms import repeat

CALLS = 12
SIZE = 300

pytestmark = pytest.mark.usefixtures("known")


def point() -> Tensor:
    return torch.rand(SIZE, dtype=torch.float64)


def _line(u: Tensor) -> Tensor:
    p = torch.nn.functional.pad(u, (1, 1))
    return p[2:] + p[:-2] - 2 * u + u**3


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "line": _line,
    "rolled": lambda u: u.roll(1) * u - u.roll(-2).sin(),
    "two outputs": lambda u: {"a": u[1:] * u[:-1], "b": (u[2:] - u[:-2]).exp()},
    "another shape": lambda u: (u[1:] * u[:-1]).reshape(13, 23),
}


@pytest.mark.parametrize("transform", [pf.jacfwd, pf.jacobian, pf.hessian])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_elements_are_answered(name: str, transform: Any, known: list[Any]) -> None:
    f = FUNCTIONS[name]
    if transform is pf.hessian:
        if name == "two outputs":
            return
        theirs = torch.func.hessian(lambda u: f(u).sum())
        ours = transform(lambda u: f(u).sum())
    else:
        ours, theirs = transform(f), torch.func.jacrev(f)
    for _ in range(CALLS):
        u = point()
        torch.testing.assert_close(ours(u), theirs(u))
    assert any(isinstance(each, repeat.Answer) for each in known)


def test_results_are_the_callers_own_and_can_be_gone_back_to(known: list[Any]) -> None:
    ours, theirs = pf.jacfwd(_line), torch.func.jacrev(_line)
    for number in range(3 * CALLS):
        u = point().requires_grad_(number % 4 == 3)
        with torch.set_grad_enabled(number % 5 != 4):
            found, expected = ours(u), theirs(u)
            torch.testing.assert_close(found, expected)
            assert found.requires_grad is (u.requires_grad and number % 5 != 4)
            if found.requires_grad:
                given = (found.square().sum(), expected.square().sum())
                torch.testing.assert_close(*(torch.autograd.grad(y, u) for y in given))
            else:
                found.zero_()
    assert any(isinstance(each, repeat.Answer) for each in known)


def test_other_indices_are_noticed() -> None:
    def f(u: Tensor, index: Tensor) -> Tensor:
        return u[index] * u.sin()

    for number in range(2 * CALLS):
        index = torch.arange(SIZE).roll(number // CALLS * (number % 3))
        u = point()
        expected = torch.func.jacrev(f)(u, index)
        torch.testing.assert_close(pf.jacfwd(f)(u, index), expected)


def test_another_graph_and_another_size_are_noticed(known: list[Any]) -> None:
    def f(u: Tensor, times: int) -> Tensor:
        for _ in range(times):
            u = u.roll(1) * u
        return u

    for number in range(3 * CALLS):
        times, size = (1, SIZE) if number < CALLS else (1 + number % 2, SIZE + number % 3)
        u = torch.rand(size, dtype=torch.float64)
        expected = torch.func.jacrev(f)(u, times)
        torch.testing.assert_close(pf.jacfwd(f)(u, times), expected)
    assert any(isinstance(each, repeat.Answer) for each in known)
