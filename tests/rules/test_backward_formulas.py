"""Backward passes inside the function: formulas of backward operators that take saved statistics."""

from collections.abc import Callable

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
