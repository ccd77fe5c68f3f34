"""hessian on one tape and on two: the same numbers, whatever the function does and when it begins to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pushforward import hessian, jacfwd, jacrev, vmap
from pushforward.errors import ResidualError
from pushforward.planning import replay
from pushforward.recording import taping
from pushforward.recording.tracer import FAST

CALLS = replay.FIRST_WRITTEN + 1
Func = Callable[..., Any]


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    replay._replays.clear()
    replay._counts.clear()
    yield
    replay._replays.clear()


@pytest.fixture
def lifts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that has an entry for every recording that began below another."""
    found: list[int] = []
    lift = taping.TapingRecorder.lift

    def counting(self: taping.TapingRecorder) -> None:
        found.append(1)
        lift(self)

    monkeypatch.setattr(taping.TapingRecorder, "lift", counting)
    return found


_LAYER = nn.Linear(4, 4).double().requires_grad_(False)
_WEIGHT = torch.linspace(-1, 1, 4, dtype=torch.float64)


def _writes(x: Tensor) -> Tensor:
    y = x.sin() * 2
    y[0] = x[1] ** 3
    y.mul_(x)
    return y.sum()


def _branches(x: Tensor) -> Tensor:
    y = torch.tanh(x)
    return (y * x).sum() if y.sum() > 0 else (y * y * x).sum()


def _detaches(x: Tensor) -> Tensor:
    y = x.exp()
    return (y.detach() * y + x.sin()).sum()


def _without_grad(x: Tensor) -> Tensor:
    y = x.exp()
    with torch.no_grad():
        z = y * 2
    return (z * y * x).sum()


def _inner_transform(x: Tensor) -> Tensor:
    y = x.sin()
    return (jacrev(lambda z: z**3)(y) @ y).sum()


def _autocast(x: Tensor) -> Tensor:
    y = x.sin() * x
    with torch.autocast("cpu", torch.bfloat16):
        z = y.exp()
    return (z * y).sum()


# Functions of x, and whether they stay on the fast path.
FUNCTIONS: dict[str, tuple[Func, bool]] = {
    "quartic": (lambda x: (x**4).sum(), True),
    "layers": (lambda x: torch.tanh(_LAYER(torch.sin(_LAYER(x)))).sum(), True),
    "several outputs": (lambda x: {"a": x.sin() * x, "b": (x**2).sum()}, True),
    "a constant output": (lambda x: (x * x, _WEIGHT), True),
    "linear": (lambda x: _LAYER(x), True),
    "the input": (lambda x: x, True),
    "constants": (lambda x: (_WEIGHT * x.exp() + _WEIGHT).sum(), True),
    "one operator off it": (lambda x: torch.softmax(x * x, 0).sin().sum(), False),
    "off it from the start": (lambda x: torch.cumsum(x, 0).prod(), False),
    "writes": (_writes, False),
    "branches": (_branches, False),
    "detach": (_detaches, False),
    "no_grad": (_without_grad, False),
    "a transform inside": (_inner_transform, False),
    "torch.func inside": (lambda x: torch.func.grad(lambda y: (y**3).sum())(x.sin()).sum(), False),
    "autocast inside": (_autocast, False),
    "new tensors": (lambda x: (x.sin() * torch.zeros_like(x).copy_(x)).sum(), False),
    "metadata": (lambda x: (x.sin() ** 2).sum() * x.size(0) * x.numel(), True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_as_two_nested_jacfwd(name: str) -> None:
    func, _ = FUNCTIONS[name]
    for _ in range(CALLS + 1):
        x = torch.randn(4, dtype=torch.float64)
        torch.testing.assert_close(hessian(func)(x), jacfwd(jacfwd(func))(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_on_the_fast_path_have_one_tape(name: str, lifts: list[int]) -> None:
    func, is_fast = FUNCTIONS[name]
    x = torch.rand(4, dtype=torch.float64)
    for _ in range(CALLS):
        hessian(func)(x)
    assert len(lifts) == (replay.FIRST_WRITTEN if is_fast else CALLS)


@pytest.mark.parametrize("name", ["quartic", "one operator off it", "writes"])
def test_the_function_is_called_once(name: str) -> None:
    func, calls = FUNCTIONS[name][0], []

    def counted(x: Tensor) -> Any:
        calls.append(1)
        return func(x)

    for n in range(1, CALLS + 2):
        hessian(counted)(torch.randn(4, dtype=torch.float64))
        assert len(calls) == n


def test_several_arguments_and_trees() -> None:
    def func(p: dict[str, Tensor], y: Tensor, scale: float) -> Tensor:
        return (p["a"] * y.sin() * scale + p["b"] ** 3).sum()

    for _ in range(CALLS):
        p = {"a": torch.randn(3), "b": torch.randn(3)}
        y = torch.randn(3)
        for argnums in ((0, 1), (1, 0), 0, (1,), -2):
            ours = hessian(func, argnums)(p, y, 2.0)
            positive = 1 if argnums == -2 else argnums
            expected = torch.func.hessian(func, positive)(p, y, 2.0)
            torch.testing.assert_close(ours, expected)


def test_the_same_tensor_twice_and_as_a_constant() -> None:
    for _ in range(CALLS):
        x = torch.randn(3, dtype=torch.float64)
        ours = hessian(lambda a, b: (a**2 * b.sin()).sum(), (0, 1))(x, x)
        expected = torch.func.hessian(lambda a, b: (a**2 * b.sin()).sum(), (0, 1))(x, x.clone())
        torch.testing.assert_close(ours, expected)
        captured = hessian(lambda a, c=x: (a**2 * c.sin() * c).sum())(x)
        torch.testing.assert_close(captured, torch.diag(2 * x.sin() * x))


def test_aux_and_keywords() -> None:
    for func in (lambda x, k: ((x**3).sum() * k, {"y": x * 2, "n": 3}),
                 lambda x, k: (torch.cumsum(x, 0).prod() * k, {"y": torch.softmax(x, 0), "n": 3})):  # fmt: skip
        for _ in range(CALLS):
            x = torch.randn(3)
            ours, aux = hessian(func, has_aux=True)(x, k=2.0)
            expected, _ = jacfwd(jacfwd(func, has_aux=True), has_aux=True)(x, k=2.0)
            torch.testing.assert_close(ours, expected)
            assert type(aux["y"]) is Tensor
            torch.testing.assert_close(aux["y"], func(x, 2.0)[1]["y"])
            assert aux["n"] == 3


def test_writes_to_the_callers_tensors_are_carried_out() -> None:
    def func(x: Tensor) -> Tensor:
        y = (x.sin() * x).sum()
        x.mul_(2)
        return y + (x**3).sum()

    for _ in range(CALLS):
        x = torch.randn(3)
        ours, others = x.clone(), x.clone()
        torch.testing.assert_close(hessian(func)(ours), jacfwd(jacfwd(func))(others))
        torch.testing.assert_close(ours, 2 * x)


def test_values_written_into_captured_tensors() -> None:
    for _ in range(CALLS):
        buffer = torch.zeros(3, dtype=torch.float64)

        def func(x: Tensor, buffer: Tensor = buffer) -> Tensor:
            y = x.sin()
            buffer.copy_(y * x)
            return (buffer * y).sum() + (buffer**2).sum()

        x = torch.randn(3, dtype=torch.float64)
        expected = jacfwd(jacfwd(lambda x: (x.sin() ** 2 * x).sum() + ((x.sin() * x) ** 2).sum()))
        torch.testing.assert_close(hessian(func)(x), expected(x))
        torch.testing.assert_close(buffer, x.sin() * x)


def test_a_buffer_of_a_module_is_updated_once() -> None:
    norm = nn.BatchNorm1d(3).double()
    other = nn.BatchNorm1d(3).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    for _ in range(CALLS):
        hessian(lambda x: (norm(x.sin()) ** 2).sum())(x)
        other(x.sin())
        torch.testing.assert_close(norm.running_mean, other.running_mean)


@pytest.mark.parametrize("is_late", [False, True])
def test_after_an_exception_all_is_as_before(is_late: bool) -> None:
    def func(x: Tensor) -> Tensor:
        y = x.sin()
        if is_late:
            y = torch.softmax(y, 0)
        raise KeyError("mine")

    for _ in range(CALLS):
        with pytest.raises(KeyError, match="mine"):
            hessian(func)(torch.randn(3))
        assert torch.is_grad_enabled()
        torch.testing.assert_close(
            hessian(lambda x: (x**2).sum())(torch.zeros(2)), 2 * torch.eye(2)
        )


def test_a_constant_written_before_the_second_recording_begins_is_noticed() -> None:
    weight = torch.ones(3)

    def func(x: Tensor) -> Tensor:
        y = x**2 * weight
        weight.add_(1)
        return torch.softmax(y, 0).sum()

    with pytest.raises(ResidualError, match="written to in place"):
        hessian(func)(torch.ones(3))


def test_random_numbers_are_drawn_once() -> None:
    def func(x: Tensor) -> Tensor:
        return (x**2 * torch.rand(3)).sum() + nn.functional.dropout(x**3).sum()

    for seed in range(CALLS + 1):
        x = torch.rand(3)
        torch.manual_seed(seed)
        ours, state = hessian(func)(x), torch.get_rng_state()
        torch.manual_seed(seed)
        func(x)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(seed)
        expected = jacfwd(jacfwd(func, randomness="same"), randomness="same")(x)
        torch.testing.assert_close(ours, expected)


def test_higher_orders_batches_and_autograd() -> None:
    def func(x: Tensor) -> Tensor:
        return (x.sin() * x**2).sum()

    for _ in range(CALLS):
        x = torch.randn(2, 3, dtype=torch.float64)
        expected = torch.stack([jacfwd(jacfwd(func))(row) for row in x])
        torch.testing.assert_close(vmap(hessian(func))(x), expected)
        torch.testing.assert_close(
            hessian(lambda y: hessian(func)(y).sum())(x[0]),
            jacfwd(jacfwd(lambda y: jacfwd(jacfwd(func))(y).sum()))(x[0]),
        )
        y = x[0].clone().requires_grad_()
        assert torch.autograd.gradcheck(hessian(func), y)


def test_complex_inputs() -> None:
    def func(z: Tensor) -> Tensor:
        return (z * z * z).abs().square().sum()

    for _ in range(CALLS):
        z = torch.randn(2, dtype=torch.complex128)
        torch.testing.assert_close(hessian(func)(z), jacfwd(jacfwd(func))(z))


def _functions_of_one_tensor() -> dict[str, Func]:
    """Return what has a fast path, takes one tensor and gives numbers that have second derivatives."""
    x = torch.full((2,), 0.5, dtype=torch.float64)
    found: dict[str, Func] = {}
    for func in FAST:
        try:
            out = func(x)
        except Exception:
            continue
        if isinstance(out, Tensor) and out.is_floating_point():
            found.setdefault(getattr(func, "__qualname__", str(func)), func)
    return found


FAST_FUNCTIONS = _functions_of_one_tensor()


@pytest.mark.parametrize("name", FAST_FUNCTIONS)
def test_every_function_of_the_fast_path(name: str) -> None:
    func = FAST_FUNCTIONS[name]
    for _ in range(CALLS):
        x = 0.1 + 0.8 * torch.rand(3, dtype=torch.float64)
        ours = hessian(lambda x: (func(x) * x).sum())(x)
        expected = jacfwd(jacfwd(lambda x: (func(x) * x).sum()))(x)
        torch.testing.assert_close(ours, expected, equal_nan=True)  # acosh


def test_many_functions_have_a_fast_path() -> None:
    assert len(FAST_FUNCTIONS) > 60
