"""check_derivatives: finds what is wrong, says where, and passes what is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pushforward import DerivativeError, check_derivatives, elementwise, primitive
from pushforward.transforms.differences import by_complex_step, directional

F64 = {"dtype": torch.float64}


class Sine(torch.autograd.Function):
    """Its backward is right; that of its backward is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return cotangent * Cosine.apply(x)


class Cosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.cos()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return cotangent * x.sin()  # the sign is wrong


@primitive
def cube(x: Tensor) -> Tensor:
    return x**3


@primitive
def fourth(x: Tensor) -> Tensor:
    return x**4


elementwise(cube, lambda x: 2 * x**2)  # the factor is wrong
elementwise(fourth, lambda x: 4 * x**3)


def seeded_linear() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 2)


RIGHT = {
    "elementwise": (lambda x: x.sin() * x, (torch.linspace(-1, 1, 4, **F64),)),
    "scan": (lambda x: x.exp().cumsum(0), (torch.linspace(-1, 1, 4, **F64),)),
    "float32 module": (seeded_linear(), (torch.ones(5, 3),)),
    "complex": (lambda z: (z * z).abs().exp(), (torch.tensor([0.3 + 0.4j, -1j], dtype=torch.complex128),)),
    "containers": (
        lambda p, y: {"a": p["w"] @ y, "b": (p["w"].sum(), y.tanh())},
        ({"w": torch.ones(2, 3, **F64)}, torch.arange(3.0, **F64)),
    ),
    "not all floating": (lambda x, i: x[i].exp(), (torch.ones(4, **F64), torch.tensor([0, 2]))),
    "no axes": (lambda x: x.sigmoid(), (torch.tensor(0.3, **F64),)),
    "random": (lambda x: nn.functional.dropout(x, 0.5).exp(), (torch.ones(6, **F64),)),
    "in place": (lambda x: x.mul_(2).sin(), (torch.ones(3, **F64),)),
    "empty": (lambda x: x.exp(), (torch.ones(0, **F64),)),
    "rule": (lambda x: fourth(x).sum() * x, (torch.linspace(-1, 1, 3, **F64),)),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right_derivatives_pass(name: str) -> None:
    func, args = RIGHT[name]
    found = check_derivatives(func, *args)
    assert found.is_right
    assert {c.order for c in found.comparisons} == {1, 2}
    assert all(c.verdict == "agrees" for c in found.comparisons if c.order == 1)


def test_a_wrong_rule_is_named_and_located() -> None:
    x = torch.tensor([0.0, 0.0, 2.0], **F64)
    with pytest.raises(DerivativeError, match="the rule of cube, which is yours"):
        check_derivatives(lambda x: cube(x) + fourth(x), x)
    found = check_derivatives(lambda x: cube(x) + fourth(x), x, raises=False)
    assert not found.is_right
    wrong = [c for c in found.comparisons if c.verdict == "differs" and c.order == 1]
    assert {c.where for c in wrong} == {"output[2]"}
    verdicts = {name: {c.verdict for c in each} for name, each in found.rules.items()}
    assert verdicts == {"cube": {"agrees", "differs"}, "fourth": {"agrees"}}


def test_a_wrong_second_derivative_is_found() -> None:
    x = torch.linspace(-1, 1, 3, **F64)
    assert check_derivatives(Sine.apply, x, order=1).is_right
    with pytest.raises(DerivativeError, match="Sine"):
        check_derivatives(Sine.apply, x)


def test_a_kink_is_unclear_not_wrong() -> None:
    found = check_derivatives(lambda x: x.relu(), torch.zeros(2, **F64), order=1, raises=False)
    assert found.is_right
    assert any(c.verdict == "unclear" for c in found.comparisons)


def test_nothing_of_the_callers_is_changed() -> None:
    x = torch.ones(3, **F64)
    before = torch.get_rng_state()
    check_derivatives(lambda x: nn.functional.dropout(x.mul_(3)), x)
    assert torch.equal(x, torch.ones(3, **F64))
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_arguments_are_refused() -> None:
    x = torch.ones(2, **F64)
    with pytest.raises(ValueError, match="order"):
        check_derivatives(torch.sin, x, order=3)
    with pytest.raises(ValueError, match="num_directions"):
        check_derivatives(torch.sin, x, num_directions=0)
    with pytest.raises(TypeError, match="floating"):
        check_derivatives(torch.sin, torch.arange(3))
    calls: list[int] = []

    def counts(x: Tensor) -> Tensor:
        calls.append(1)
        return x * len(calls)

    with pytest.raises(ValueError, match="different results"):
        check_derivatives(counts, x)


def test_differences_estimate_their_error() -> None:
    x, v = torch.linspace(0.5, 2, 5, **F64), torch.ones(5, **F64)
    (found,) = directional(lambda xs: [xs[0].log()], [x], [v])
    assert ((found.value - 1 / x).abs() <= 10 * found.error + 1e-12).all()
    assert (found.error < 1e-9).all()
    exact = by_complex_step(lambda xs: [xs[0].log()], [x], [v])
    assert exact is not None
    torch.testing.assert_close(exact[0], 1 / x, rtol=1e-15, atol=0)
    assert by_complex_step(lambda xs: [xs[0].abs()], [x], [v]) is None
