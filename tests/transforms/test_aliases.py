"""Tensors that were one object in earlier calls, and are two now: kernels must not take one for the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.nn import functional as F

import pushforward

pytestmark = pytest.mark.filterwarnings(
    "ignore:Attempted to insert a get_attr:UserWarning"
)  # of func.linearize

CALLS = 6  # by then a call is known by heart

torch.manual_seed(0)
X = torch.rand(3, 3, dtype=torch.float64)
SAME, OTHER = torch.rand_like(X), torch.rand_like(X)
ROWS, OTHER_ROWS = torch.tensor([0, 2, 1]), torch.tensor([1, 1, 0])

Read = Callable[[int], Any]  # what the function has captured at this place

FUNCTIONS: dict[str, tuple[Callable[[Tensor, Read], Tensor], Tensor, Tensor]] = {
    "factors": (lambda x, c: x * c(0) + x.sin() * c(1), SAME, OTHER),
    "matrices": (lambda x, c: c(0) @ x.exp() @ c(1), SAME, OTHER),
    "numbers": (lambda x, c: c(0) * x + c(1) * x * x, torch.tensor(2.0), torch.tensor(5.0)),
    "indices": (lambda x, c: x[c(0)] * x[:, c(1)], ROWS, OTHER_ROWS),
    "tuples": (lambda x, c: x[c(0), c(1)].sin() * x, ROWS, OTHER_ROWS),
    "weights": (lambda x, c: F.linear(F.linear(x, c(0)).tanh(), c(1)), SAME, OTHER),
}
TRANSFORMS: dict[str, Callable[[Any, Any], Any]] = {
    "jacfwd": lambda m, f: m.jacfwd(f)(X),
    "jacrev": lambda m, f: m.jacrev(f)(X),
    "grad": lambda m, f: m.grad(lambda x: f(x).sum())(X),
    "vjp": lambda m, f: m.vjp(f, X)[1](X)[0],
    "linearize": lambda m, f: m.linearize(f, X)[1](X),
    "vmap": lambda m, f: func.vmap(m.jacrev(lambda r: f(r * X).sum(0)))(X),
}


@pytest.mark.parametrize("starts_same", [True, False], ids=["parted", "joined"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_captured_tensors_part_and_join(name: str, transform: str, starts_same: bool) -> None:
    function, same, other = FUNCTIONS[name]
    captured = [same, same] if starts_same else [same, other]

    def f(x: Tensor) -> Tensor:
        return function(x, captured.__getitem__)

    take = TRANSFORMS[transform]
    for _ in range(CALLS):
        take(pushforward, f)
    captured[1] = other if starts_same else same
    torch.testing.assert_close(take(pushforward, f), take(func, f))


@pytest.mark.parametrize("starts_same", [True, False], ids=["parted", "joined"])
@pytest.mark.parametrize("is_trained", [True, False])
def test_tangents_part_and_join(starts_same: bool, is_trained: bool) -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return x.sin() * y.exp()

    xs = (X.clone().requires_grad_(is_trained), OTHER)
    before, after = (SAME, SAME), (SAME, OTHER)
    if not starts_same:
        before, after = after, before
    for _ in range(CALLS):
        pushforward.jvp(f, xs, before)
    got = pushforward.jvp(f, xs, after)[1]
    torch.testing.assert_close(got, func.jvp(f, xs, after)[1])
    push = pushforward.linearize(f, *xs)[1]
    for _ in range(CALLS):
        push(*before)
    torch.testing.assert_close(push(*after), got)


@pytest.mark.parametrize("transform", ["vjp", "jvp", "linearize"])
def test_what_is_given_parts_from_what_was_saved(transform: str) -> None:
    def f(x: Tensor) -> Tensor:
        return x.sin() * SAME

    def product(m: Any, given: Tensor) -> Tensor:
        if transform == "jvp":
            return m.jvp(f, (X,), (given,))[1]
        found: Any = m.vjp(f, X)[1](given)[0] if transform == "vjp" else m.linearize(f, X)[1](given)
        return found

    for _ in range(CALLS):
        torch.testing.assert_close(product(pushforward, SAME), product(func, SAME))
    torch.testing.assert_close(product(pushforward, OTHER), product(func, OTHER))
