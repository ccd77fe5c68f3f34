"""Calls are noted under transforms of torch.func, too, whose forward mode makes zeros that have no memory."""

import pytest
import torch
import torch.nn.functional as F

import pushforward

F64 = torch.float64

ACTIVATIONS = [
    F.elu, F.selu, F.celu, F.silu, F.mish, F.gelu, F.softplus, F.logsigmoid, F.hardswish, F.leaky_relu, F.softshrink,
    torch.tanh, torch.sigmoid, torch.erf,
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("argnums", [0, 1])
def test_forward_mode_of_torch_func_around_repeated_calls_where_one_argument_has_no_tangent(
    activation, argnums
):
    """PyTorch itself crashed: a dispatch mode, forward mode and a backward with one constant argument."""

    def f(x, y):
        return (activation(y[1:]) * x).sum()

    def product(library):
        def along(x, y):
            return library(f, x, y)

        return torch.func.jacfwd(along, argnums)

    def ours(f, x, y):
        return pushforward.hvp(f, (x, y), (torch.ones_like(x), torch.ones_like(y)))[1]

    def theirs(f, x, y):
        gradient = torch.func.grad(f, (0, 1))
        return torch.func.jvp(gradient, (x, y), (torch.ones_like(x), torch.ones_like(y)))[1]

    for number in range(4):
        x = torch.tensor([0.7 - number / 10], dtype=F64)
        y = torch.tensor([0.3, -0.5 + number / 7], dtype=F64)
        torch.testing.assert_close(product(ours)(x, y), product(theirs)(x, y))
