"""Calls known by heart of inputs that require grad: within other transforms, and where a caller goes backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pushforward as pf
from pushforward.tape.continued import Begun
from pushforward.transforms import repeat

CALLS = 12

pytestmark = pytest.mark.usefixtures("known")


def _pulled(lib: Any, f: Callable[..., Tensor]) -> Callable[..., Any]:
    def gradient(x: Tensor) -> Any:
        y, pull = lib.vjp(f, x)
        return pull(torch.ones_like(y))[0]

    return gradient


def _pushed(lib: Any, f: Callable[..., Tensor]) -> Callable[..., Any]:
    return lambda x: lib.jvp(f, (x,), (torch.ones_like(x),))[1]


NESTED: dict[str, Callable[[Any, Callable[[Tensor], Tensor]], Callable[[Tensor], Any]]] = {
    "hessian": lambda lib, f: lib.hessian(f),
    "reverse over reverse": lambda lib, f: lib.jacrev(lib.jacrev(f)),
    "reverse over forward": lambda lib, f: lib.jacrev(lib.jacfwd(f)),
    "forward over forward": lambda lib, f: lib.jacfwd(lib.jacfwd(f)),
    "gradient of a gradient": lambda lib, f: lib.grad(lambda x: lib.grad(f)(x).square().sum()),
    "pushed gradient": lambda lib, f: _pushed(lib, lib.grad(f)),
    "pulled gradient": lambda lib, f: _pulled(lib, lib.grad(f)),
    "third": lambda lib, f: lib.jacfwd(lib.jacrev(lib.grad(f))),
    "gradient of a pulled one": lambda lib, f: lib.grad(lambda x: _pulled(lib, f)(x).sin().sum()),
    "gradient of a pushed one": lambda lib, f: lib.grad(lambda x: _pushed(lib, f)(x).sin()),
    "pulled pulled one": lambda lib, f: _pulled(lib, _pulled(lib, f)),
    "pushed pulled one": lambda lib, f: _pushed(lib, _pulled(lib, f)),
    "pulled pushed one": lambda lib, f: _pulled(lib, _pushed(lib, f)),
    "pushed pushed one": lambda lib, f: _pushed(lib, _pushed(lib, f)),
    "Jacobian of a pulled one": lambda lib, f: lib.jacfwd(_pulled(lib, f)),
    "pulled Jacobian": lambda lib, f: _pulled(lib, lib.jacfwd(f)),
    "gradient of a linearized one": lambda lib, f: lib.grad(
        lambda x: lib.linearize(f, x)[1](WEIGHT).sin() if lib is pf else _tangent(f, x).sin()
    ),
    "gradient of several products": lambda lib, f: lib.grad(
        lambda x: (pull := lib.vjp(f, x)[1])(ONE)[0].sum() + pull(2 * ONE)[0].prod()
    ),
    "gradient with an auxiliary one": lambda lib, f: lib.grad(
        lambda x: lib.grad(lambda x: (f(x), x), has_aux=True)(x)[0].sin().sum()
    ),
}
ONE, WEIGHT = torch.ones((), dtype=torch.float64), torch.rand(3, dtype=torch.float64)


def _tangent(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found: Tensor = torch.func.jvp(f, (x,), (WEIGHT,))[1]
    return found


@pytest.mark.parametrize("name", NESTED)
def test_inner_calls_are_answered_by_heart(name: str, known: list[Any]) -> None:
    weight = torch.rand(3, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return ((weight * x).sin() * x.exp()).sum()

    nest = NESTED[name]
    ours, theirs = nest(pf, f), nest(torch.func, f)
    for _ in range(CALLS):
        known.clear()
        x = torch.rand(3, dtype=torch.float64)
        torch.testing.assert_close(ours(x), theirs(x))
    assert len(known) >= (1 if "auxiliary" in name else 2)
    assert not any(isinstance(each, Begun) for each in known)


@pytest.mark.parametrize("transform", [pf.jacfwd, pf.jacrev, pf.jacobian, pf.hessian])
def test_an_input_that_requires_grad_can_be_gone_back_to(transform: Any, known: list[Any]) -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sin() * y**2

    theirs = torch.func.hessian(f) if transform is pf.hessian else torch.func.jacrev(f)
    for number in range(3 * CALLS):
        x = torch.rand(3, dtype=torch.float64, requires_grad=number % 3 != 1)
        y = torch.rand(3, dtype=torch.float64, requires_grad=number % 3 != 0)
        with torch.set_grad_enabled(number % 7 != 6):
            found, expected = transform(f)(x, y), theirs(x, y)
        torch.testing.assert_close(found, expected)
        assert found.requires_grad is (number % 7 != 6)
        if found.requires_grad:
            inputs = [t for t in (x, y) if t.requires_grad]
            weights = torch.rand_like(found)
            torch.testing.assert_close(
                torch.autograd.grad((found * weights).sum(), inputs),
                torch.autograd.grad((expected * weights).sum(), inputs),
            )
    assert any(isinstance(each, repeat.Answer) for each in known)


def test_whether_an_input_requires_grad_is_noticed(known: list[Any]) -> None:
    def f(x: Tensor) -> Tensor:
        return x.sin() * x

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        value, pull = pf.vjp(f, x)
        return pf.jacrev(f)(x), pull(torch.ones_like(value))[0]

    for is_followed in [*[True] * CALLS, False, True, False, *[False] * CALLS, True, False]:
        x = torch.rand(3, requires_grad=is_followed)
        expected = torch.func.jacrev(f)(x.detach())
        jac, gradient = both(x)
        torch.testing.assert_close(jac.detach(), expected)
        torch.testing.assert_close(gradient.detach(), expected.sum(0))
        assert jac.requires_grad is gradient.requires_grad is is_followed
        if is_followed:
            second = torch.func.jacrev(torch.func.jacrev(f))(x.detach())
            (found,) = torch.autograd.grad(gradient.sum() + jac.sum(), x)
            torch.testing.assert_close(found, 2 * second.sum((0, 1)))
    assert not any(isinstance(each, Begun) for each in known[-4:])


def test_another_branch_of_an_inner_call_is_noticed() -> None:
    def f(x: Tensor) -> Tensor:
        return x.sin().prod() if x.sum() > 0 else x.exp().sum()

    x = torch.rand(3, dtype=torch.float64)
    for number in range(2 * CALLS):
        sign = -1 if number > CALLS and number % 3 == 0 else 1
        torch.testing.assert_close(pf.hessian(f)(sign * x), torch.func.hessian(f)(sign * x))


def test_the_value_of_an_inner_call_keeps_its_history(known: list[Any]) -> None:
    def f(x: Tensor) -> Tensor:
        return (x**3).sum()

    for _ in range(CALLS):
        x = torch.rand(3, dtype=torch.float64, requires_grad=True)
        gradient, value = pf.grad_and_value(f)(x)
        (found,) = torch.autograd.grad(value + gradient.sum(), x)
        torch.testing.assert_close(found, 3 * x.detach() ** 2 + 6 * x.detach())
    assert isinstance(known[-1], repeat.Answer)
