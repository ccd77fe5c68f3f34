"""Kernels of small tensors as code of numbers: the same as with tensors, also where numbers have no result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import pushforward as pf
from pushforward.planning import numbers
from pushforward.planning.calls import Call, Ref

CALLS = 12


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Write code of numbers at once, whatever it costs; return what was written, or None."""
    pf.clear_plans()
    monkeypatch.setattr(numbers, "PUT_OFF", 1)
    monkeypatch.setattr(numbers, "MIN_SAVED", -1e9)
    found: list[Any] = []
    write = numbers.in_numbers

    def noting(*args: Any) -> Any:
        found.append(write(*args))
        return found[-1]

    monkeypatch.setattr(numbers, "in_numbers", noting)
    yield found
    pf.clear_plans()


MATRIX = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
MASK = torch.tensor([True, False, True, True])
ORDER = torch.tensor([2, 0, 3, 1])


def _kinetics(x: Tensor) -> Tensor:
    a, b, c, d = x
    return torch.stack([-0.04 * a + 1e4 * b * c, 3 * b**2 / d, a - 2 * c, d.sin() * a.exp()])


def _of_writes(x: Tensor) -> Tensor:
    y = x.new_zeros(3, 3)
    y[0, 0], y[1, 2] = x[0] * x[1], 1 - 2 * x[2]
    y[2, 1] = x[3].sqrt()
    return y @ MATRIX


def _arm(x: Tensor) -> Tensor:
    pose = torch.eye(2, dtype=x.dtype)
    for angle in x:
        c, s = angle.cos(), angle.sin()
        pose = pose @ torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
    return pose


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "kinetics": _kinetics,
    "writes": _of_writes,
    "arm": _arm,
    "products": lambda x: MATRIX @ (MATRIX.T @ x[:3]).tanh(),
    "outer": lambda x: torch.outer(x, x.exp()).sum(0) + x.sum(),
    "powers": lambda x: x**3 + 1 / x + x**2 / x[0],
    "functions": lambda x: x.sin() * x.cos().exp() + x.log() * x.sqrt() + x.sinh() + x.log1p(),
    "moved": lambda x: torch.cat([x.roll(1), x.reshape(2, 2).t().flatten()[1:3]]) * x[ORDER][0],
    "stacked": lambda x: torch.stack([x * 2, x.sin(), x.new_ones(4)], 1).prod(1),
    "chosen": lambda x: torch.where(MASK, x.sin(), x * x) + torch.where(x > 0.5, x**2, x),
    "absolute": lambda x: x.abs() * x.sub(0.4).abs() + (x - 0.4).sign(),
    "norm": lambda x: x / x.norm(),
    "masked": lambda x: (x * MASK).exp() * x[MASK].sum(),
    "padded": lambda x: torch.nn.functional.pad(x * x, (1, 2), value=3.0).sin(),
    "gates": lambda x: x.sigmoid() * x.tanh() + torch.nn.functional.silu(x),
    "maximum": lambda x: torch.maximum(x, x.flip(0)) * x.max(),
    "clamped": lambda x: x.clamp(0.3, 0.6) * x,
    "scattered": lambda x: x.new_zeros(6).index_add(0, ORDER, x * x),
}  # fmt: skip
SUITED = {"kinetics", "writes", "arm", "products", "powers", "functions", "norm"}
TRANSFORMS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "jacfwd": pf.jacfwd,
    "jacrev": pf.jacrev,
    "cross": lambda f: pf.jacobian(f, mode="cross"),
    "grad": lambda f: pf.grad(lambda x: f(x).sin().sum()),
    "hessian": pf.hessian,
}
THEIRS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "grad": lambda f: torch.func.grad(lambda x: f(x).sin().sum()),
    "hessian": torch.func.hessian,
}


def check(name: str, f: Callable[[Tensor], Tensor], *points: Tensor) -> None:
    ours, theirs = TRANSFORMS[name](f), THEIRS.get(name, torch.func.jacrev)(f)
    for x in points:
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-11, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_the_same(name: str, transform: str, made: list[Any]) -> None:
    points = [0.1 + 0.8 * torch.rand(4, dtype=torch.float64) for _ in range(CALLS)]
    check(transform, FUNCTIONS[name], *points)
    assert name not in SUITED or any(made)


@pytest.mark.parametrize("transform", ["jacfwd", "jacrev", "cross"])
def test_where_numbers_have_no_result_tensors_do(
    transform: str, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def f(x: Tensor) -> Tensor:
        a, b = x
        return torch.stack([a / b, a.exp() * b, a.log() * b.sqrt(), 1e300 * a * a])

    values = [0.5, 0.0, -0.0, -1.0, 1e200, -1e200, 1e4, math.inf, -math.inf, math.nan, 0.7]
    usual = [torch.tensor([0.4, 0.6], dtype=torch.float64)] * CALLS
    points = [torch.tensor([a, b], dtype=torch.float64) for a in values for b in values]
    monkeypatch.setattr(numbers, "PUT_OFF", 10**9)
    with_tensors = [TRANSFORMS[transform](f)(x) for x in (*usual, *points)][CALLS:]
    assert not made
    pf.clear_plans()
    monkeypatch.setattr(numbers, "PUT_OFF", 1)
    check(transform, f, *usual)
    assert any(made)
    for x, expected in zip(points, with_tensors, strict=True):
        found = TRANSFORMS[transform](f)(x)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12, equal_nan=True)


def test_signs_of_zeros_are_kept(made: list[Any]) -> None:
    def f(x: Tensor) -> Tensor:
        a, b = x
        return torch.stack([a * b, -a * b, a - b])

    for signs in [*[(1, 1)] * CALLS, (0.0, -0.0), (-0.0, 0.0), (-0.0, -0.0)]:
        x = torch.tensor(signs, dtype=torch.float64)
        found, expected = pf.jacrev(f)(x), torch.func.jacrev(f)(x)
        assert torch.equal(found, expected)
        assert torch.equal(1 / found[:2].diagonal(), 1 / expected[:2].diagonal())
    assert any(made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128, torch.bfloat16])
def test_other_dtypes_are_computed_in_their_own_precision(
    dtype: torch.dtype, made: list[Any]
) -> None:
    for _ in range(CALLS):
        x = torch.rand(4).to(dtype)
        found = pf.grad(lambda x: (x * x.conj() * 3.0).real.sum())(x)
        assert found.dtype is dtype
        torch.testing.assert_close(found, 6 * x)
    assert not any(made)


def test_numbers_in_the_code_have_no_dtype(made: list[Any]) -> None:
    def f(x: Tensor) -> Tensor:
        a, b = x
        return torch.stack([a / 3.0 / 7.0 * b, 2 * a * b / 3, (0.1 * b) ** 2])

    points = [torch.rand(2, dtype=torch.float64) for _ in range(CALLS)]
    for transform in ("jacfwd", "jacrev", "cross"):
        check(transform, f, *points)
    assert any(made)


def test_results_are_the_callers_own_and_can_be_gone_back_to(made: list[Any]) -> None:
    weight = torch.rand((), dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        a, b = x
        return torch.stack([a * b * weight, a.sin() * b])

    found = []
    for number in range(3 * CALLS):
        weight.requires_grad_(number >= 2 * CALLS)
        x = torch.rand(2, dtype=torch.float64, requires_grad=number % 5 == 4)
        jac, expected = pf.jacrev(f)(x), torch.func.jacrev(f)(x)
        torch.testing.assert_close(jac, expected)
        assert jac.requires_grad is (weight.requires_grad or x.requires_grad)
        if x.requires_grad:
            given = (jac.square().sum(), expected.square().sum())
            torch.testing.assert_close(*(torch.autograd.grad(y, x) for y in given))
        found.append((jac.detach(), jac.detach().clone()))
        jac.detach().resize_(3, 2).zero_() if number == CALLS else None
    for number, (kept, copy) in enumerate(found):
        assert number == CALLS or torch.equal(kept, copy)
    assert any(made)


def test_under_vmap_and_in_another_function(made: list[Any]) -> None:
    for _ in range(CALLS):
        x = torch.rand(3, 2, dtype=torch.float64)

        def f(x: Tensor) -> Tensor:
            a, b = x
            return torch.stack([a * b, a.sin() * b * 2])

        expected = torch.func.vmap(torch.func.jacrev(f))(x)
        torch.testing.assert_close(pf.vmap(pf.jacrev(f))(x), expected)
        torch.testing.assert_close(torch.stack([pf.jacrev(f)(row) for row in x]), expected)
        scaled = torch.func.vmap(lambda c, f=f, x=x: c * pf.jacrev(f)(x[0]))(x[:, 0])
        torch.testing.assert_close(scaled, x[:, 0, None, None] * expected[0])
    assert any(made)


def test_nothing_is_written_for_what_is_called_a_few_times(
    made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numbers, "PUT_OFF", 64)
    for _ in range(20):
        pf.jacrev(_kinetics)(torch.rand(4, dtype=torch.float64))
    assert not made


def test_sums_of_masks_stay_tensors(made: list[Any]) -> None:
    """Python would count them."""

    def function(x: Tensor) -> Tensor:
        return ((x > 0) + (x > 1)) * x.sin()

    jacobian = pf.jacfwd(function)
    for shift in range(CALLS):
        x = torch.tensor([0.5, 1.5, -1.0, 2.0], dtype=torch.float64) + shift / 10
        torch.testing.assert_close(jacobian(x), torch.func.jacfwd(function)(x))
    calls = [
        Call(torch.gt, (VALUE, 0.0), {}, Ref(0, False), [VALUE]),
        Call(torch.gt, (VALUE, 1.0), {}, Ref(1, False), [VALUE]),
        Call(torch.add, (Ref(0, False), Ref(1, False)), {}, Ref(2, False), []),
        Call(torch.mul, (Ref(2, False), VALUE), {}, Ref(3, False), [VALUE]),
    ]
    found = {c.result: x for c, x in zip(calls, (x > 0, x > 1, x > 0, x), strict=True)}
    assert numbers.in_numbers(calls, [[Ref(3, False)]], {}, {VALUE: x, **found}) is None


VALUE = Ref(0, True)
