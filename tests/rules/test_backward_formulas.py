"""Backward passes inside the function: formulas of backward operators that take saved statistics."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pushforward import jacfwd, jacrev
from pushforward.tape import black_boxes

MEAN, VAR = torch.tensor([0.2, -0.3]).double(), torch.tensor([0.7, 1.4]).double()
WEIGHT, BIAS = torch.tensor([1.5, -0.4]).double(), torch.tensor([0.1, 0.2]).double()


def _updated(x: Tensor) -> Tensor:
    return torch.ops.aten._batch_norm_with_update(
        x, WEIGHT, BIAS, MEAN.clone(), VAR.clone(), 0.1, 1e-5
    )[0]


LAYERS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer norm": lambda x: functional.layer_norm(x, (2,), WEIGHT, BIAS),
    "layer norm without weight": lambda x: functional.layer_norm(x, (3, 2), eps=0.3),
    "batch norm": lambda x: functional.batch_norm(x, None, None, WEIGHT, BIAS, True),
    "batch norm, running": lambda x: functional.batch_norm(x, MEAN, VAR, WEIGHT, BIAS, False),
    "batch norm, updating": _updated,
    "group norm": lambda x: functional.group_norm(x.unsqueeze(-1), 1, WEIGHT, BIAS),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_derivative_of_a_backward_pass_is_the_second_derivative(
    layer: Callable[[Tensor], Tensor],
) -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    weights = torch.randn(layer(x).shape, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return (weights * layer(x)).square().sum()

    def slope(x: Tensor) -> Tensor:
        return torch.autograd.grad(loss(x), x, create_graph=True)[0]

    before = black_boxes.COUNTS.total()
    expected = torch.autograd.functional.hessian(loss, x)
    torch.testing.assert_close(jacfwd(slope)(x), expected)
    torch.testing.assert_close(jacrev(slope)(x), expected)
    third = jacfwd(jacrev(slope))(x)
    torch.testing.assert_close(third, jacfwd(jacfwd(jacrev(loss)))(x))
    assert black_boxes.COUNTS.total() == before


def _plain(x: Tensor, axes: tuple[int, ...], weight: Tensor) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + 0.3).rsqrt() * weight


# As the module has it, and in operators that autograd differentiates to all orders.
TRAINED: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "layer norm": (
        lambda x, w: functional.layer_norm(x, (2,), w, eps=0.3),
        lambda x, w: _plain(x, (2,), w),
    ),
    "group norm": (
        lambda x, w: functional.group_norm(x, 1, w, eps=0.3),
        lambda x, w: _plain(x, (1, 2), w[:, None]),
    ),
    "batch norm": (
        lambda x, w: functional.batch_norm(x, None, None, w, None, True, eps=0.3),
        lambda x, w: _plain(x, (0, 2), w[:, None]),
    ),
}


@pytest.mark.parametrize(("layer", "plain"), TRAINED.values(), ids=TRAINED)
def test_a_jacobian_with_trainable_weights_is_backpropagated_twice(
    layer: Callable[..., Tensor], plain: Callable[..., Tensor]
) -> None:
    """Saved statistics move with the input: PyTorch takes them for constants there, and is wrong."""
    torch.manual_seed(0)
    start = torch.randn(3, 2, 2, dtype=torch.float64)

    def slopes(derivative: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        x, weight = start.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
        first = torch.autograd.grad(derivative(x, weight).square().sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), (x, weight))

    expected = slopes(
        lambda x, w: torch.autograd.functional.jacobian(lambda x: plain(x, w), x, create_graph=True)
    )
    for jacobian in (jacfwd, jacrev):

        def derivative(x: Tensor, w: Tensor, jacobian: Any = jacobian) -> Tensor:
            found: Tensor = jacobian(lambda x: layer(x, w))(x)
            return found

        for _ in range(3):  # recorded, written down, replayed
            found = slopes(derivative)
            torch.testing.assert_close(found, expected)


ELEMENTWISE: dict[str, tuple[Any, ...]] = {  # backward operators, and their numbers
    "hardswish": (),
    "hardtanh": (-1.0, 1.0),
    "leaky_relu": (0.1, False),
    "softplus": (1.0, 20.0),
    "softshrink": (0.5,),
    "hardshrink": (0.5,),
    "threshold": (0.1,),
    "gelu": (),
    "sigmoid": (),
    "tanh": (),
}


@pytest.mark.parametrize("transform", [jacfwd, jacrev])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_backward_operators_broadcast(name: str, transform: Any) -> None:
    """As they do where several cotangents at once meet one point."""
    backward = getattr(torch.ops.aten, f"{name}_backward")
    one, three = torch.tensor([0.8, -0.7]).double(), torch.randn(3, 2, dtype=torch.float64)

    def func(y_bar: Tensor, x: Tensor) -> Tensor:
        return backward(y_bar, x, *ELEMENTWISE[name])

    for arguments in ((three, one), (one, three)):
        expected = torch.autograd.functional.jacobian(func, arguments)
        for argnum in (0, 1):
            found = transform(func, argnum)(*arguments)
            torch.testing.assert_close(found, expected[argnum])
