"""torch.compile inside and outside, with the eager backend: what Dynamo makes of a transform, no code generation."""

import pytest
import torch
from torch import Tensor, nn

import pushforward

F64 = torch.float64


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64)


def close(actual, expected):
    torch.testing.assert_close(actual, expected)


def not_yet(api, request):
    """Ours cannot be traced by Dynamo (docs/reference/differences.md): it raises."""
    if api is pushforward:
        request.applymarker(pytest.mark.xfail(strict=True, reason="Dynamo cannot trace us"))


def test_compiled_functions_can_be_differentiated_eagerly(api):
    """``torch.compile`` with the eager backend around the function, as users have it by decoration."""
    compiled = torch.compile(lambda x: (x.sin() * x).sum(), backend="eager")
    x = randn(3)
    gradient = x.cos() * x + x.sin()
    close(api.grad(compiled)(x), gradient)
    close(api.jacrev(compiled)(x), gradient)
    close(api.jacfwd(compiled)(x), gradient)
    close(api.jvp(compiled, (x,), (x,))[1], gradient @ x)
    close(api.vmap(api.grad(compiled))(x[None]), gradient[None])


def test_a_derivative_can_be_compiled(api, request):
    not_yet(api, request)
    x = randn(3)

    def f(x):
        return api.grad(lambda x: (x.sin() * x).sum())(x)

    close(torch.compile(f, backend="eager")(x), x.cos() * x + x.sin())


def test_an_opaque_derivative_can_be_compiled(api, request):
    """As PyTorch's own test does it: the whole transform is one node of the graph."""
    not_yet(api, request)
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh()).double()
    xs = randn(4, 2)

    def predict(x):
        out = net(x)
        return out, out

    second = api.vmap(api.jacfwd(api.jacrev(predict, has_aux=True), has_aux=True))
    expected = second(xs)

    def wrapper(xs):
        return second(xs)

    compiled = torch.compile(torch._dynamo.allow_in_graph(wrapper), backend="eager")
    close(compiled(xs), expected)
