"""First calls of large Jacobians: their kernels are found on shadows, before anything large is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peaks import bytes_of
from torch import Tensor

import pushforward
from pushforward import hessian, jacfwd, jacobian, jacrev
from pushforward.planning import shadowed
from pushforward.planning.shadowed import MIN_BYTES, SHADOWS, Shadowing
from pushforward.transforms import swept_graph

F64 = torch.float64
CPU = torch.device("cpu")
POINTS = torch.linspace(-1, 1, 100 * 1000, dtype=F64).reshape(100, 1000).sin()


def springs(k: Tensor) -> Tensor:
    matrix = k.new_zeros(len(k) + 1, len(k) + 1)
    for i in range(len(k)):
        matrix[i, i] += k[i]
        matrix[i + 1, i] -= k[i]
    return matrix


def long_chain(p: Tensor) -> Tensor:
    x = p @ POINTS
    for _ in range(60):
        x = torch.tanh(x)
    return x


def square(size: int) -> Tensor:
    return torch.linspace(0.1, 1, size * size, dtype=F64).reshape(size, size).cos() / size


def line(size: int) -> Tensor:
    return torch.linspace(0.1, 1, size, dtype=F64)


PROGRAMS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "diag": (lambda x: torch.diag(x.sin()), line(60)),
    "springs": (springs, line(60)),
    "logcumsumexp": (lambda x: torch.logcumsumexp(x, 0), line(400)),
    "windows": (lambda x: x.unfold(0, 5, 2).sin().sum(-1), line(300)),
    "stencil": (lambda x: torch.roll(x, 1, 0) * x + torch.roll(x, -1, 1).exp(), square(20)),
    "qr": (lambda x: torch.linalg.qr(x + torch.eye(12, dtype=F64)).R, square(12)),
    "cholesky": (lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(12, dtype=F64)), square(12)),
    "product": (lambda x: torch.tanh(x @ x.mT), square(16)),
    "softmax": (lambda x: torch.softmax(x.square(), -1), line(300)),
    "chain": (long_chain, line(100)),
}
OTHERS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "masked": (lambda x: x.sin().masked_select(x > 0.5), line(300)),
    "sorted": (lambda x: (x.sin() * 50).sin().sort().values, line(300)),
    "spectrum": (lambda x: torch.view_as_real(torch.fft.rfft(x.exp())), line(100)),
}


@pytest.fixture
def foreseen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """All first calls that can be, whatever is small; and whether each was."""
    found: list[bool] = []
    original = swept_graph.foreseen

    def seen(*args: Any) -> Any:
        known = original(*args)
        found.append(known is not None)
        return known

    monkeypatch.setattr(swept_graph, "pays", lambda _: True)
    monkeypatch.setattr(shadowed, "MIN_BYTES", 1)
    monkeypatch.setattr(swept_graph, "foreseen", seen)
    pushforward.clear_plans()
    return found


@pytest.mark.parametrize("transform", [jacfwd, jacrev, jacobian])
@pytest.mark.parametrize("name", [*PROGRAMS, *OTHERS])
def test_first_calls_by_kernels_are_right(
    name: str, transform: Callable[..., Callable[[Tensor], Tensor]], foreseen: list[bool]
) -> None:
    function, x = (PROGRAMS | OTHERS)[name]
    call = transform(lambda t: function(t))
    for point in (x, x * 0.9, x, x * 1.1):
        torch.testing.assert_close(call(point), torch.func.jacfwd(function)(point))
    if name in PROGRAMS:
        assert foreseen[0]


def test_first_calls_of_compositions(foreseen: list[bool]) -> None:
    def function(x: Tensor) -> Tensor:
        # autograd does not save what the derivative of erfinv starts from
        return (torch.erfinv(x / 4).outer(x) ** 2).sum(0)

    x = line(6)
    torch.testing.assert_close(
        hessian(lambda t: function(t).sum())(x), torch.func.hessian(lambda t: function(t).sum())(x)
    )
    batch = torch.stack([x, 2 * x])
    expected = torch.func.vmap(torch.func.jacfwd(function))(batch)
    torch.testing.assert_close(torch.func.vmap(jacfwd(lambda t: function(t)))(batch), expected)
    torch.testing.assert_close(
        torch.func.jacfwd(jacfwd(lambda t: function(t)))(x),
        torch.func.jacfwd(torch.func.jacfwd(function))(x),
    )
    weight = x.clone().requires_grad_()
    jacfwd(lambda t: function(t))(weight).square().sum().backward()  # recorded: not foreseen
    again = x.clone().requires_grad_()
    torch.func.jacfwd(function)(again).square().sum().backward()
    torch.testing.assert_close(weight.grad, again.grad)
    assert foreseen


@pytest.mark.parametrize("name", PROGRAMS)
def test_first_calls_take_no_more_than_torch_func(name: str, foreseen: list[bool]) -> None:
    function, x = PROGRAMS[name]
    theirs, _ = bytes_of(lambda: torch.func.jacfwd(function)(x))
    ours, _ = bytes_of(lambda: jacfwd(lambda t: function(t))(x))
    assert ours <= 1.15 * theirs + 2**16, (ours, theirs)
    assert all(foreseen)


def test_small_calls_are_not_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swept_graph, "foreseen", None)
    jacfwd(lambda x: x.sin())(line(10))


def test_when_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadowed, "has_dynamo", lambda: True)
    assert [shadowed.pays(2**n) for n in (23, 24, 27)] == [False, True, True]
    monkeypatch.setattr(shadowed, "has_dynamo", lambda: False)
    assert [shadowed.pays(2**n) for n in (23, 24, 27)] == [False, False, True]


def test_what_is_large_has_no_numbers() -> None:
    size = MIN_BYTES // 8
    x, index, target = line(size), torch.arange(size), torch.zeros(1, dtype=F64)
    with Shadowing(CPU):
        large = x * 2
        total = large.sum()  # small, of what has no numbers
        own, also = x[:4] * 2, torch.zeros(4, device=large.device)
        places = (index + 1) % size
        view = x[1:]
        target += total
    assert large.is_meta
    assert large.shape == x.shape
    assert large.dtype is F64
    assert total.device == SHADOWS
    assert target.item() == 0
    torch.testing.assert_close(own, line(size)[:4] * 2)
    assert also.device == CPU
    assert view.data_ptr() == x[1:].data_ptr()
    assert torch.equal(places, (torch.arange(size) + 1) % size)
    with Shadowing(CPU), pytest.raises((RuntimeError, NotImplementedError)):
        (x * 2 > 1).nonzero()
