"""Calls known by heart under ``vmap``: the batch is an axis, and nothing is overlooked that is not as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import pushforward as pf
from pushforward.transforms import repeat
from pushforward.transforms.record import Tape

CALLS = 10

pytestmark = pytest.mark.usefixtures("known")


TRANSFORMS: dict[str, Callable[[Any, Callable[..., Any]], Callable[..., Any]]] = {
    "jacrev": lambda lib, f: lib.jacrev(f),
    "jacfwd": lambda lib, f: lib.jacfwd(f, (0, 1)),
    "grad": lambda lib, f: lib.grad(lambda x, c: f(x, c).sum()),
    "hessian": lambda lib, f: lib.hessian(f),
    "gradient of a gradient": lambda lib, f: lib.grad(
        lambda x, c: lib.grad(lambda x: f(x, c).prod())(x).sin().sum()
    ),
}
WEIGHT = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3)


def layer(x: Tensor, c: Tensor) -> Tensor:
    return (torch.nn.functional.linear(x, WEIGHT) * c).tanh() * x.exp()


def points(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def answers(known: list[Any]) -> int:
    return sum(isinstance(each, repeat.Answer) for each in known)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_calls_are_answered_by_heart(name: str, known: list[Any]) -> None:
    ours = pf.vmap(TRANSFORMS[name](pf, layer))
    theirs = torch.func.vmap(TRANSFORMS[name](torch.func, layer))
    for _ in range(CALLS):
        known.clear()
        x, c = points(4, 3), points(4, 3)
        torch.testing.assert_close(ours(x, c), theirs(x, c))
    assert known
    assert answers(known) == len(known)


PRODUCTS: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Any]] = {
    "vjp": lambda lib, x, c, v: lib.vjp(layer, x, c)[1](v),
    "jvp": lambda lib, x, c, v: lib.jvp(layer, (x, c), (v, c)),
    "linearize": lambda lib, x, c, v: (
        lib.linearize(layer, x, c)[1](v, c) if lib is pf else lib.jvp(layer, (x, c), (v, c))[1]
    ),  # torch.func's has no batching rule
    "two pullbacks": lambda lib, x, c, v: (
        (pull := lib.vjp(layer, x, c)[1])(v),
        pull(torch.ones_like(v)),
    ),
    "pullback under vmap": lambda lib, x, c, v: lib.vmap(lib.vjp(layer, x, c)[1])(
        torch.stack([v, c])
    ),
}


@pytest.mark.parametrize("is_followed", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_recordings_are_known_by_heart(name: str, is_followed: bool, known: list[Any]) -> None:
    product = PRODUCTS[name]
    for _ in range(CALLS):
        known.clear()
        x, c, v = points(4, 3), points(4, 3).requires_grad_(is_followed), points(4, 3)
        found = pf.vmap(lambda *a: product(pf, *a))(x, c, v)
        expected = torch.func.vmap(lambda *a: product(torch.func, *a))(x, c, v)
        torch.testing.assert_close(found, expected)
        if is_followed:
            sums = [sum(t.sin().sum() for t in tree_leaves(each)) for each in (found, expected)]
            ours, theirs = (torch.autograd.grad(each, c)[0] for each in sums)
            torch.testing.assert_close(ours, theirs)
    assert sum(isinstance(each, Tape) for each in known) == len(known) > 0


def test_values_come_with_jacobians(known: list[Any]) -> None:
    ours = pf.vmap(pf.value_and_jacobian(layer))
    for _ in range(CALLS):
        x, c = points(4, 3), points(4, 3)
        value, jac = ours(x, c)
        torch.testing.assert_close(value, torch.func.vmap(layer)(x, c))
        torch.testing.assert_close(jac, torch.func.vmap(torch.func.jacrev(layer))(x, c))
    assert answers(known)


@pytest.mark.parametrize("out", [0, 1])
def test_results_may_have_their_batch_elsewhere(out: int, known: list[Any]) -> None:
    def f(x: Tensor) -> Tensor:
        return torch.stack([x.sin(), x.cos()]) * x  # the batch is the second axis of this

    for _ in range(CALLS):
        x = points(5, 3)
        expected = torch.func.vmap(torch.func.jacrev(f), out_dims=out)(x)
        torch.testing.assert_close(pf.vmap(pf.jacrev(f), out_dims=out)(x), expected)
    assert answers(known)


def test_trees_of_arguments_and_outputs(known: list[Any]) -> None:
    def f(tree: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"p": tree["a"] * tree["b"].sin(), "q": tree["b"].exp() * tree["a"][0]}

    for _ in range(CALLS):
        tree = {"a": points(4, 3), "b": points(4, 3)}
        expected = torch.func.vmap(torch.func.jacrev(f))(tree)
        torch.testing.assert_close(pf.vmap(pf.jacrev(f))(tree), expected)
    assert answers(known)


def _learnt(known: list[Any]) -> None:
    for _ in range(CALLS):
        pf.vmap(pf.jacrev(layer))(points(4, 3), points(4, 3))
    assert answers(known)


def _with_grad(x: Tensor) -> Tensor:
    return x.requires_grad_()


CHANGES: dict[str, Callable[[Any, Callable[..., Any]], Any]] = {
    "none": lambda vmap, jac: vmap(jac)(points(4, 3), points(4, 3)),
    "another size": lambda vmap, jac: vmap(jac)(points(6, 3), points(6, 3)),
    "another axis": lambda vmap, jac: vmap(jac, in_dims=(1, 0))(points(3, 4), points(4, 3)),
    "strides": lambda vmap, jac: vmap(jac)(points(3, 4).t(), points(4, 3)),
    "no batch there": lambda vmap, jac: vmap(jac, in_dims=(None, 0))(points(3), points(4, 3)),
    "no vmap": lambda vmap, jac: jac(points(3), points(3)),
    "two of them": lambda vmap, jac: vmap(vmap(jac))(points(2, 4, 3), points(2, 4, 3)),
    "draws allowed": lambda vmap, jac: vmap(jac, randomness="different")(points(4, 3), points(4, 3)),
    "a batch of constants": lambda vmap, jac: vmap(jac, in_dims=(0, None))(points(4, 3), points(3)),
    "in chunks": lambda vmap, jac: vmap(jac, chunk_size=3)(points(4, 3), points(4, 3)),
    "below a gradient": lambda vmap, jac: torch.func.grad(
        lambda x: vmap(jac)(x, points(4, 3)).sum()
    )(points(4, 3)),
    "inside a gradient": lambda vmap, jac: vmap(torch.func.grad(lambda x, c: jac(x, c).sum()))(
        points(4, 3), points(4, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_as_before_is_noticed(change: str, known: list[Any]) -> None:
    _learnt(known)
    for other in (change, "none", change, change, change, "none"):
        state = torch.get_rng_state()
        found = CHANGES[other](pf.vmap, pf.jacrev(layer))
        torch.set_rng_state(state)
        expected = CHANGES[other](torch.func.vmap, torch.func.jacrev(layer))
        torch.testing.assert_close(found, expected)


def test_inputs_and_captured_tensors_that_require_grad(known: list[Any]) -> None:
    weight = points(3, 3)

    def f(x: Tensor) -> Tensor:
        return (weight @ x).sin() * x

    for number in range(3 * CALLS):
        weight.requires_grad_(number > CALLS and number % 3 == 0)
        x = points(4, 3).requires_grad_(number > CALLS and number % 2 == 0)
        found = pf.vmap(pf.jacrev(f))(x)
        expected = torch.func.vmap(torch.func.jacrev(f))(x)
        torch.testing.assert_close(found, expected)
        inputs = [t for t in (x, weight) if t.requires_grad]
        assert found.requires_grad is bool(inputs)
        if inputs:
            torch.testing.assert_close(
                torch.autograd.grad(found.square().sum(), inputs),
                torch.autograd.grad(expected.square().sum(), inputs),
            )
    assert answers(known)


def test_another_branch_runs_once(known: list[Any]) -> None:
    calls: list[int] = []

    def f(x: Tensor, which: int) -> Tensor:
        calls.append(which)
        return (x.sin() * x, x.exp().flip(0), x.cumsum(0) * x)[which]

    def jac(lib: Any, which: int) -> Callable[[Tensor], Any]:
        return lib.vmap(lambda x: lib.jacrev(f)(x, which))

    for number in range(3 * CALLS):
        which = 0 if number < CALLS else number % 3
        x = points(4, 3)
        calls.clear()
        found = jac(pf, which)(x)
        assert calls == [which] or number < CALLS + 9  # watched again at first
        torch.testing.assert_close(found, jac(torch.func, which)(x))
    assert answers(known)


def test_draws_writes_and_errors_are_as_before() -> None:
    def f(x: Tensor, what: str) -> Tensor:
        if what == "error":
            raise ValueError("no")
        y = x.sin() * (torch.rand(3, dtype=x.dtype) if what == "draw" else 1)
        if what == "write":
            x.mul_(2)
        return y

    def jac(x: Tensor, what: str = "") -> Any:
        return pf.vmap(lambda x: pf.jacrev(f)(x, what))(x)

    x = points(4, 3)
    expected = torch.diag_embed(x.cos())
    for _ in range(CALLS):
        jac(x)
    with pytest.raises(RuntimeError, match="random"):
        jac(x, "draw")
    with pytest.raises(ValueError, match="no"):
        jac(x, "error")
    torch.testing.assert_close(jac(x), expected)
    for _ in range(CALLS):
        jac(x)
    y = x.clone()
    torch.testing.assert_close(jac(y, "write"), expected)
    torch.testing.assert_close(y, 2 * x)
    assert torch.is_grad_enabled()


def test_shared_slopes_are_shared_under_vmap_too() -> None:
    def f(x: Tensor, is_whole: bool) -> Tensor:
        return x.max() * x if is_whole else x.sin() * x

    x = torch.tensor([[1.0, 1.0, 0.5], [0.1, 2.0, 2.0]])
    for number in range(2 * CALLS):
        is_whole = number > CALLS
        found = pf.vmap(lambda x, w=is_whole: pf.jacrev(f)(x, w))(x)
        expected = torch.stack(
            [torch.autograd.functional.jacobian(lambda x, w=is_whole: f(x, w), r) for r in x]
        )
        torch.testing.assert_close(found, expected)


LEVELS: dict[str, Callable[[Any, Callable[..., Any]], Callable[..., Any]]] = {
    "an argument without batch": lambda lib, f: torch.func.vmap(lib.jacfwd(f, (0, 1)), (0, None)),
    "likewise, pulled": lambda lib, f: torch.func.vmap(lib.jacrev(f, (0, 1)), (0, None)),
    "a gradient around": lambda lib, f: torch.func.jacrev(
        lambda x, c: lib.jacfwd(lambda x: f(x, c).square())(x[0]).sum()
    ),
}


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("is_linear", [False, True])
def test_a_captured_tensor_comes_to_require_grad_outside_of_a_level(
    name: str, is_linear: bool
) -> None:
    weight, other = points(3, 3), points(3, 3)

    def f(x: Tensor, c: Tensor) -> Tensor:
        if is_linear:
            return x.sum() * weight + c.mean(0) * other
        return torch.nn.functional.linear(x.sin(), weight) * c.mean(0) + other

    for number in range(9):
        followed = [t.requires_grad_(number in (3, 4, 7)) for t in (weight, other)]
        x, c = points(4, 3, 3), points(3, 3)
        found, expected = (LEVELS[name](lib, f)(x, c) for lib in (pf, torch.func))
        torch.testing.assert_close(found, expected)
        if weight.requires_grad:
            sums = [sum(t.square().sum() for t in tree_leaves(each)) for each in (found, expected)]
            gradients = [torch.autograd.grad(y, followed, materialize_grads=True) for y in sums]
            torch.testing.assert_close(*gradients)
