"""PyTorch's autograd through our results, and used inside the function."""

import pytest
import torch
from oracles import assert_close, central_jacobian
from torch import nn

from pushforward import UnsupportedError, jacfwd, jvp, linearize, vmap

F64 = torch.float64
FUNCTIONS = {
    "product": lambda x, w: (x * w).sin() * x.sum(),
    "matrix": lambda x, w: torch.tanh(torch.outer(w, x) @ x),
    "in place": lambda x, w: x.clone().mul_(w).add_(x**2).exp_(),
    "item assignment": lambda x, w: _assign(x, w),
    "softmax": lambda x, w: (x * w).softmax(0),
    "where": lambda x, w: torch.where(x > 0, x * w, x * w**2),
    "linear in x": lambda x, w: w * x,
    "reductions": lambda x, w: (x * w).logsumexp(0) * x.var() + w.prod() * x,
}


def _assign(x, w):
    y = torch.zeros(4, dtype=F64)
    y[:3] = x * w
    y[3] = y[0] * y[1]
    return y


def rand(*shape):
    return torch.randn(shape, dtype=F64)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_backpropagation_through_the_jacobian_reaches_input_and_captured_parameter(name):
    f = FUNCTIONS[name]
    x, w = rand(3).requires_grad_(), rand(3).requires_grad_()
    jac = jacfwd(lambda x: f(x, w))(x)
    weights = torch.randn_like(jac).detach()
    gx, gw = torch.autograd.grad((weights * jac).sum(), (x, w), allow_unused=True)

    def scalar(x, w):
        return (weights * jacfwd(lambda x: f(x, w))(x)).sum()

    x, w = x.detach(), w.detach()
    assert_close(torch.zeros(3) if gx is None else gx, central_jacobian(scalar, x, w, argnum=0))
    assert_close(gw, central_jacobian(scalar, x, w, argnum=1))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_chunks_keep_the_autograd_history(name):
    f, x, w = FUNCTIONS[name], rand(3), rand(3).requires_grad_()
    whole = jacfwd(lambda x: f(x, w))(x)
    chunked = jacfwd(lambda x: f(x, w), chunk_size=2)(x)
    expected = torch.autograd.grad((whole**2).sum(), w)[0]
    assert_close(torch.autograd.grad((chunked**2).sum(), w)[0], expected)


def test_a_training_step_on_the_norm_of_the_jacobian_lowers_it():
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = rand(3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = (jacfwd(net)(x) ** 2).sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_gradients_of_a_jacobian_penalty_equal_those_by_reverse_mode_alone():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = rand(3)
    ours = torch.autograd.grad((jacfwd(net)(x) ** 3).sum(), net.parameters(), allow_unused=True)
    reference = torch.autograd.functional.jacobian(net, x, create_graph=True)
    theirs = torch.autograd.grad((reference**3).sum(), net.parameters(), allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None) or (a if b is None else b).abs().max() == 0
        if a is not None and b is not None:
            assert_close(a, b)


def test_gradgradcheck_passes_through_the_jacobian():
    w = rand(3).requires_grad_()
    x = rand(3).requires_grad_()
    f = lambda x, w: jacfwd(lambda x: (w * x).sin() * x.sum())(x)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, w))
    assert torch.autograd.gradgradcheck(f, (x, w))


def test_a_plain_input_and_plain_parameters_give_a_jacobian_without_history():
    assert not jacfwd(lambda x: x.sin())(rand(3)).requires_grad


def test_no_grad_outside_gives_a_jacobian_without_history():
    x = rand(3).requires_grad_()
    with torch.no_grad():
        assert not jacfwd(lambda x: x.sin())(x).requires_grad


def test_outer_torch_func_grad_reaches_input_and_captured_tensor():
    x, w = rand(3), rand(3)

    def scalar(x, w):
        return (jacfwd(lambda x: (w * x).sin())(x) ** 2).sum()

    gx, gw = torch.func.grad(scalar, argnums=(0, 1))(x, w)
    assert_close(gx, central_jacobian(scalar, x, w, argnum=0))
    assert_close(gw, central_jacobian(scalar, x, w, argnum=1))


# ---- autograd inside the function ----


def energy(x):
    return (x**3).sum() + x.prod()


def test_autograd_grad_inside_with_requires_grad_set_inside():
    def force(x):
        x.requires_grad_()
        return torch.autograd.grad(energy(x), x, create_graph=True)[0]

    x = rand(3)
    assert_close(jacfwd(force)(x), central_jacobian(torch.func.grad(energy), x))
    assert not x.requires_grad


def test_autograd_grad_inside_on_an_intermediate():
    def force(x):
        y = (2 * x).requires_grad_()
        return torch.autograd.grad(energy(y), y, create_graph=True)[0]

    x = rand(3)
    assert_close(jacfwd(force)(x), central_jacobian(lambda x: torch.func.grad(energy)(2 * x), x))


def test_autograd_grad_inside_without_requires_grad_inside_raises_and_names_the_way_out():
    def force(x):
        return torch.autograd.grad(energy(x), x, create_graph=True)[0]

    x = rand(3)
    with pytest.raises(
        UnsupportedError, match=r"jacfwd: torch\.autograd\.grad inside.*requires_grad_"
    ):
        jacfwd(force)(x.clone().requires_grad_())


def test_autograd_grad_inside_for_a_captured_parameter_raises():
    w = rand(3).requires_grad_()

    def f(x):
        return torch.autograd.grad((w * x).sin().sum(), w, create_graph=True)[0]

    with pytest.raises(UnsupportedError, match=r"torch\.autograd\.grad inside"):
        jacfwd(f)(rand(3))


def test_autograd_functional_jacobian_inside_raises():
    with pytest.raises(RuntimeError, match=r"requires_grad|does not require grad"):
        jacfwd(lambda x: torch.autograd.functional.jacobian(torch.sin, x, create_graph=True))(
            rand(3)
        )


def test_torch_func_grad_vjp_and_jvp_inside():
    x, t = rand(3), rand(3)
    expected = central_jacobian(torch.func.grad(energy), x)
    assert_close(jacfwd(torch.func.grad(energy))(x), expected)
    assert_close(
        jacfwd(lambda x: torch.func.vjp(energy, x)[1](torch.ones((), dtype=F64))[0])(x), expected
    )
    assert_close(jvp(torch.func.grad(energy), (x,), (t,))[1], expected @ t)
    assert_close(linearize(torch.func.grad(energy), x)[1](t), expected @ t)


def test_vmap_of_grad_inside():
    x = rand(2, 3)

    def f(x):
        return vmap(torch.func.grad(energy))(x)

    assert_close(jacfwd(f)(x), central_jacobian(f, x))
