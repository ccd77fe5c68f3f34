"""Numbers, integers and float32 constants in float64 functions: derivatives are exact to the last digits."""

import pytest
import torch
from torch import Tensor

from pushforward import hessian, jacfwd, jacobian, jacrev, vmap

F64 = torch.float64
INTEGERS, THREE = torch.tensor([3, 7]), torch.tensor(3)
SINGLE = torch.tensor(0.3)

FUNCTIONS = {
    "a quotient by an integer": lambda x: x / 3,
    "a quotient by a number": lambda x: x / 0.3 / 0.7,
    "a quotient by a 0-d integer": lambda x: x / THREE,
    "a quotient by a float32": lambda x: x * SINGLE / SINGLE,
    "two products": lambda x: 0.1 * x * 0.3,
    "a sum of products": lambda x: 0.1 * x + 0.3 * x,
    "a mean": lambda x: x.mean() * 0.3 / 0.7,
    "a mask": lambda x: (x * 0.1).clamp(max=0.3) * 0.3,
    "branches": lambda x: torch.where(x > 0.5, x * 0.1, x / 3) * 0.7,
    "an integer's power": lambda x: THREE**x,
    "a number's power": lambda x: 3**x,
    "a logarithm of integers": lambda x: torch.xlogy(x, THREE),
    "an inverse": lambda x: 0.3 / x * 0.1,
    "in place": lambda x: (x * 1).div_(3).mul_(0.1),
    "an interpolation": lambda x: torch.lerp(x * 0.1, x / 3, 0.7),
}
POINTS = {"()": torch.tensor(0.7), "(1,)": torch.tensor([0.7]), "(2,)": torch.tensor([0.7, 0.3])}


def _derivative(f, x):
    return torch.autograd.functional.jacobian(f, x, create_graph=True)


def _check(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("point", POINTS)
def test_derivatives_in_float64_are_as_exact_as_float64(name, point):
    f, x = FUNCTIONS[name], POINTS[point].to(F64)
    first = _derivative(f, x)
    second = _derivative(lambda x: _derivative(f, x), x)
    for _ in range(3):  # the later ones by kernels
        for transform in (jacfwd, jacrev, jacobian):
            _check(transform(f)(x), first)
        _check(vmap(jacrev(f))(x[None])[0], first)
        torch.testing.assert_close(hessian(f)(x), second, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    "f", [lambda x: x / INTEGERS, lambda x: INTEGERS**x, lambda x: torch.xlogy(x, INTEGERS)]
)
def test_integer_tensors_are_computed_with_in_float64(f):
    x = POINTS["(2,)"].to(F64)
    for _ in range(3):
        for transform in (jacfwd, jacrev, jacobian):
            _check(transform(f)(x), _derivative(f, x))
