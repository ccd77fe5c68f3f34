"""torch.compile inside and outside, with the eager backend: what Dynamo makes of a transform, no code generation."""

import subprocess
import sys

import pytest
import torch
from doubles import close, randn
from torch import nn

import pushforward


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


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


def test_a_derivative_can_be_compiled(api):
    x = randn(3)

    def f(x):
        return api.grad(lambda x: (x.sin() * x).sum())(x)

    close(torch.compile(f, backend="eager")(x), x.cos() * x + x.sin())


def test_an_opaque_derivative_can_be_compiled(api):
    """As PyTorch's own test does it: the whole transform is one node of the graph."""
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


TRANSFORMS = {
    "jacfwd": lambda api, f, x: api.jacfwd(f)(x),
    "jacrev": lambda api, f, x: api.jacrev(f)(x),
    "hessian": lambda api, f, x: api.hessian(f)(x),
    "jvp": lambda api, f, x: api.jvp(f, (x,), (x,))[1],
    "vjp": lambda api, f, x: api.vjp(f, x)[1](x)[0],
    "grad": lambda api, f, x: api.grad(lambda x: f(x).sum())(x),
    "vmap of jacrev": lambda api, f, x: api.vmap(api.jacrev(f))(torch.stack([x, 2 * x])),
}


@pytest.mark.parametrize("is_made_outside", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_code_around_derivatives_can_be_compiled(name, is_made_outside):
    """Dynamo breaks its graph at ours, and runs them, and what they call, as they are written."""

    def f(x):
        return x.sin() * x.sum()

    transform = TRANSFORMS[name]

    def derivative(x):
        return transform(pushforward, f, x)

    def around(x):
        y = x * 2
        found = derivative(y) if is_made_outside else transform(pushforward, f, y)
        return found.sum() * y + x

    compiled = torch.compile(around, backend="eager")
    for _ in range(3):
        x = randn(3)
        y = 2 * x
        close(compiled(x), transform(torch.func, f, y).sum() * y + x)
        assert torch.is_grad_enabled()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo's own question
def test_a_derivative_by_a_parameter_of_what_is_compiled():
    weight = randn(3).requires_grad_()

    def loss(x):
        return pushforward.jacrev(lambda x: (weight * x).sin())(x).square().sum()

    x = randn(3)
    (ours,) = torch.autograd.grad(torch.compile(loss, backend="eager")(x), weight)
    (theirs,) = torch.autograd.grad(loss(x), weight)
    close(ours, theirs)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_compiled_pieces_inside_run_as_written(name):
    piece = torch.compile(torch.sin, backend="eager")
    x = randn(3)
    for _ in range(3):
        found = TRANSFORMS[name](pushforward, lambda x: piece(x) * x.sum(), x)
        close(found, TRANSFORMS[name](torch.func, lambda x: x.sin() * x.sum(), x))


def test_the_compiler_is_not_imported_for_us():
    """It takes seconds. Plans (`jacobian`, `explain`) do so, as PyTorch has meta kernels that are written in Python."""
    code = """
import sys, torch, pushforward as pf
x = torch.ones(3)
for _ in range(3):
    pf.jacfwd(torch.sin)(x), pf.jacrev(torch.sin)(x), pf.grad(lambda x: x.prod())(x)
    pf.jvp(torch.sin, (x,), (x,)), pf.vjp(torch.sin, x)[1](x), pf.linearize(torch.sin, x)[1](x)
    pf.hvp(lambda x: x.prod(), (x,), (x,))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr[-500:]
