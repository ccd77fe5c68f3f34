"""tanh written out: within two units in the last place of the exact value, and of each kind of number."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import pushforward as pf
from pushforward.compiling.hyperbolic import LIMIT, MIN_ELEMENTS, expand_tanh

aten = torch.ops.aten
DTYPES = [torch.float32, torch.float64]


def expanded(x):
    graph = make_fx(torch.tanh, tracing_mode="fake")(x)
    expand_tanh(graph)
    graph.graph.lint()
    return graph, aten.tanh.default not in {n.target for n in graph.graph.nodes}


def points(dtype):
    small = torch.logspace(-30, 1, 5000, dtype=torch.float64)
    near = torch.linspace(LIMIT - 1e-3, LIMIT + 1e-3, 1000, dtype=torch.float64)
    x = torch.cat([small, near, torch.linspace(1e-3, 22, 10000, dtype=torch.float64)])
    return torch.cat([x, -x]).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_are_of_the_last_place(dtype):
    x = points(dtype)
    graph, is_written_out = expanded(x)
    assert is_written_out
    # PyTorch's float64 is within 0.6 units itself
    error = (graph(x).double() - torch.tanh(x.double())).abs() / torch.tanh(x.double()).abs()
    assert error.max() < 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(graph(-x), -graph(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([0.0, -0.0, inf, -inf, nan, 1e30, -1e30, 1e-38], dtype=dtype)
    x = x.repeat(MIN_ELEMENTS // 8)
    y, expected = expanded(x)[0](x), torch.tanh(x)
    torch.testing.assert_close(y, expected, equal_nan=True)
    assert torch.equal(y.signbit(), expected.signbit())


def test_what_stays():
    for x in (torch.ones(10), torch.ones(2000).bfloat16(), torch.ones(2000, dtype=torch.complex64)):
        assert not expanded(x)[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_derivatives(dtype):
    x = torch.linspace(-2, 2, 60, dtype=dtype).reshape(3, 20).requires_grad_()
    w = torch.linspace(0.1, 1, 50, dtype=dtype)

    def f(x):
        return torch.tanh(x[:, None] * w).square().mean()

    def plain(x):
        return torch.func.vmap(torch.func.hessian(f))(x)

    compiled = pf.compile(pf.vmap(pf.hessian(f)))
    torch.testing.assert_close(compiled(x), plain(x))
    (fused,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(fused, *torch.autograd.grad(plain(x).square().sum(), x))
