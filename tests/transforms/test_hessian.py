"""hessian: the same numbers as two nested jacfwd, on the first call and on those that repeat its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pushforward import hessian, jacfwd, jacrev, vmap
from pushforward.planning.replay import FIRST_WRITTEN

CALLS = FIRST_WRITTEN + 1
Func = Callable[..., Any]


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


FUNCTIONS: dict[str, Func] = {
    "quartic": lambda x: (x**4).sum(),
    "layers": lambda x: torch.tanh(_LAYER(torch.sin(_LAYER(x)))).sum(),
    "several outputs": lambda x: {"a": x.sin() * x, "b": (x**2).sum()},
    "a constant output": lambda x: (x * x, _WEIGHT),
    "linear": lambda x: _LAYER(x),
    "the input": lambda x: x,
    "constants": lambda x: (_WEIGHT * x.exp() + _WEIGHT).sum(),
    "one operator off it": lambda x: torch.softmax(x * x, 0).sin().sum(),
    "off it from the start": lambda x: torch.cumsum(x, 0).prod(),
    "writes": _writes,
    "branches": _branches,
    "detach": _detaches,
    "no_grad": _without_grad,
    "a transform inside": _inner_transform,
    "torch.func inside": lambda x: torch.func.grad(lambda y: (y**3).sum())(x.sin()).sum(),
    "autocast inside": _autocast,
    "new tensors": lambda x: (x.sin() * torch.zeros_like(x).copy_(x)).sum(),
    "metadata": lambda x: (x.sin() ** 2).sum() * x.size(0) * x.numel(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_as_two_nested_jacfwd(name: str) -> None:
    func = FUNCTIONS[name]
    for _ in range(CALLS + 1):
        x = torch.randn(4, dtype=torch.float64)
        torch.testing.assert_close(hessian(func)(x), jacfwd(jacfwd(func))(x))


@pytest.mark.parametrize("name", ["quartic", "one operator off it", "writes"])
def test_the_function_is_called_once(name: str) -> None:
    func, calls = FUNCTIONS[name], []

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


def test_a_constant_written_after_its_use_counts_as_it_was() -> None:
    def func(x: Tensor) -> Tensor:
        weight = constant.clone()
        y = x**2 * weight
        weight.add_(1)
        return torch.softmax(y, 0)[0] + (weight * x).prod()

    def without_write(x: Tensor) -> Tensor:
        return torch.softmax(x**2 * constant, 0)[0] + ((constant + 1) * x).prod()

    constant = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for _ in range(CALLS):
        x = torch.randn(3, dtype=torch.float64)
        torch.testing.assert_close(hessian(func)(x), torch.func.hessian(without_write)(x))


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


UNARY = (
    "sin cos tan asin acos atan sinh cosh tanh asinh atanh exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square abs "
    "neg reciprocal sigmoid relu erf erfc erfinv logit lgamma digamma softplus silu mish selu celu gelu sinc i0 "
    "log_softmax softmax cumsum cumprod logsigmoid hardtanh leaky_relu elu tanhshrink softsign flip frac trunc sgn"
)


def _called(name: str, x: Tensor) -> Tensor:
    """Call the function of that name: of torch, of torch.special, or of torch.nn.functional."""
    if name in ("softmax", "log_softmax", "cumsum", "cumprod", "flip"):
        return getattr(torch, name)(x, (0,) if name == "flip" else 0)
    owner = next(o for o in (torch, torch.special, nn.functional) if hasattr(o, name))
    return getattr(owner, name)(x)


@pytest.mark.parametrize("name", UNARY.split())
def test_every_function_of_one_tensor(name: str) -> None:
    for _ in range(CALLS):
        x = 0.1 + 0.8 * torch.rand(3, dtype=torch.float64)
        ours = hessian(lambda x: (_called(name, x) * x).sum())(x)
        leaf = x.clone()
        expected = torch.autograd.functional.hessian(lambda x: (_called(name, x) * x).sum(), leaf)
        torch.testing.assert_close(ours, expected)
