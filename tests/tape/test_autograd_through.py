"""PyTorch's autograd through our results, and used inside the function."""

import functools

import pytest
import torch
from doubles import F64, randn
from oracles import assert_close, central_jacobian
from torch import nn
from torch.utils._pytree import tree_leaves

import pushforward
from pushforward import grad, hessian, jacfwd, jacrev, jvp, linearize, value_and_jacobian, vjp, vmap

FUNCTIONS = {
    "product": lambda x, w: (x * w).sin() * x.sum(),
    "matrix": lambda x, w: torch.tanh(torch.outer(w, x) @ x),
    "in place": lambda x, w: x.clone().mul_(w).add_(x**2).exp_(),
    "item assignment": lambda x, w: _assign(x, w),
    "written beside a view, then used with w": lambda x, w: _write_beside_a_view(x) * w,
    "softmax": lambda x, w: (x * w).softmax(0),
    "where": lambda x, w: torch.where(x > 0, x * w, x * w**2),
    "linear in x": lambda x, w: w * x,
    "reductions": lambda x, w: (x * w).logsumexp(0) * x.var() + w.prod() * x,
}


def _assign(x, w):
    y = torch.zeros(4, dtype=F64)
    y[:3] = x * w
    y[3] = x[0] * w[1]
    return y * y.sum()


def _write_beside_a_view(x):
    y = x * 1
    last = y[-1]
    y.mul_(x)
    return y * last


X = torch.tensor([0.3, -0.7, 1.2], dtype=F64)
V = torch.tensor([1.1, 0.4, -0.6], dtype=F64)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_backpropagation_through_the_jacobian_reaches_input_and_captured_parameter(name):
    f = FUNCTIONS[name]
    x, w = randn(3).requires_grad_(), randn(3).requires_grad_()
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
    f, x, w = FUNCTIONS[name], randn(3), randn(3).requires_grad_()
    whole = jacfwd(lambda x: f(x, w))(x)
    chunked = jacfwd(lambda x: f(x, w), chunk_size=2)(x)
    expected = torch.autograd.grad((whole**2).sum(), w)[0]
    assert_close(torch.autograd.grad((chunked**2).sum(), w)[0], expected)


def test_a_training_step_on_the_norm_of_the_jacobian_lowers_it():
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = randn(3)
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
    x = randn(3)
    ours = torch.autograd.grad((jacfwd(net)(x) ** 3).sum(), net.parameters(), allow_unused=True)
    reference = torch.autograd.functional.jacobian(net, x, create_graph=True)
    theirs = torch.autograd.grad((reference**3).sum(), net.parameters(), allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None) or (a if b is None else b).abs().max() == 0
        if a is not None and b is not None:
            assert_close(a, b)


def test_gradgradcheck_passes_through_the_jacobian():
    w = randn(3).requires_grad_()
    x = randn(3).requires_grad_()
    f = lambda x, w: jacfwd(lambda x: (w * x).sin() * x.sum())(x)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, w))
    assert torch.autograd.gradgradcheck(f, (x, w))


def test_a_plain_input_and_plain_parameters_give_a_jacobian_without_history():
    assert not jacfwd(lambda x: x.sin())(randn(3)).requires_grad


def test_no_grad_outside_gives_a_jacobian_without_history():
    x = randn(3).requires_grad_()
    with torch.no_grad():
        assert not jacfwd(lambda x: x.sin())(x).requires_grad


def test_outer_torch_func_grad_reaches_input_and_captured_tensor():
    x, w = randn(3), randn(3)

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

    x = randn(3)
    assert_close(jacfwd(force)(x), central_jacobian(torch.func.grad(energy), x))
    assert not x.requires_grad


def test_autograd_grad_inside_on_an_intermediate():
    def force(x):
        y = (2 * x).requires_grad_()
        return torch.autograd.grad(energy(y), y, create_graph=True)[0]

    x = randn(3)
    assert_close(jacfwd(force)(x), central_jacobian(lambda x: torch.func.grad(energy)(2 * x), x))


@pytest.mark.parametrize("is_leaf", [False, True])
@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_autograd_grad_inside_by_the_argument_itself(transform, is_leaf):
    def force(x):
        return torch.autograd.grad(energy(x), x, create_graph=True)[0]

    x = randn(3)
    expected = central_jacobian(torch.func.grad(energy), x)
    assert_close(transform(force)(x.clone().requires_grad_(is_leaf)), expected)


@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_autograd_grad_inside_without_a_graph_gives_a_constant(transform):
    def f(x):
        return torch.autograd.grad(energy(x), x)[0] * x

    x = randn(3)
    assert_close(transform(f)(x), torch.diag(torch.func.grad(energy)(x)))


@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_autograd_grad_inside_for_a_captured_parameter(transform):
    w = randn(3).requires_grad_()

    def f(x):
        return torch.autograd.grad((w * x).sin().sum(), w, create_graph=True)[0]

    x = randn(3)
    expected = torch.func.jacfwd(lambda x: (w.detach() * x).cos() * x)(x)
    assert_close(transform(f)(x), expected)


@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_backward_inside_accumulates_as_the_plain_call_does(transform):
    w = randn(3).requires_grad_()

    def f(x):
        (w * x).sin().sum().backward()
        return x * w.grad

    x = randn(3)
    jac = transform(f)(x)
    gradient, w.grad = w.grad, None
    assert_close(jac, torch.diag(gradient))
    f(x)
    assert_close(gradient, w.grad)
    assert not gradient.requires_grad


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_backward_inside_with_a_graph_to_a_retained_gradient(transform):
    def f(x):
        y = x * 1
        y.retain_grad()
        torch.autograd.backward(energy(y), create_graph=True, inputs=[y])
        return y.grad

    x = randn(3)
    assert_close(transform(f)(x), central_jacobian(torch.func.grad(energy), x))


def test_backpropagation_where_the_function_itself_cannot_be_is_right_or_refused():
    """Autograd's node of the product saved parts of ``y``, which is written to afterwards."""

    def f(x, w):
        y = torch.zeros(4, dtype=F64)
        y[:3] = x * w
        y[3] = y[0] * y[1]
        return y

    def without_writes(x, w):
        y = x * w
        return torch.cat([y, y[:1] * y[1:2]])

    x, w = randn(3).requires_grad_(), randn(3).requires_grad_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        f(x, w).sum().backward()
    jac = jacfwd(lambda x: f(x, w))(x)
    expected = torch.func.jacfwd(lambda x: without_writes(x, w))(x)
    assert_close(jac, expected)
    found = or_refusal(lambda: torch.autograd.grad(jac.sum(), (x, w))[1])
    if isinstance(found, str):
        assert "modified by an inplace operation" in found
    else:
        assert_close(found, torch.autograd.grad(expected.sum(), w)[0])


def or_refusal(call):
    """Return what ``call`` returns, or the message of its error."""
    try:
        return call()
    except RuntimeError as error:
        return str(error)


FUNCTIONAL = {
    "jacobian": lambda x: torch.autograd.functional.jacobian(torch.sin, x, create_graph=True),
    "hessian": lambda x: torch.autograd.functional.hessian(energy, x, create_graph=True),
    "hvp": lambda x: torch.autograd.functional.hvp(energy, x, V, create_graph=True)[1],
    "vhp": lambda x: torch.autograd.functional.vhp(energy, x, V, create_graph=True)[1],
    "vjp": lambda x: torch.autograd.functional.vjp(torch.sin, x, V, create_graph=True)[1],
    "jvp": lambda x: torch.autograd.functional.jvp(torch.sin, (x,), (V,), create_graph=True)[1],
    "jacobian without a graph": lambda x: torch.autograd.functional.jacobian(torch.sin, X) @ x,
}


@pytest.mark.parametrize("name", FUNCTIONAL)
@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_autograd_functional_inside(transform, name):
    f = FUNCTIONAL[name]
    assert_close(transform(f)(X), central_jacobian(f, X))


def test_torch_func_grad_vjp_and_jvp_inside():
    x, t = randn(3), randn(3)
    expected = central_jacobian(torch.func.grad(energy), x)
    assert_close(jacfwd(torch.func.grad(energy))(x), expected)
    assert_close(
        jacfwd(lambda x: torch.func.vjp(energy, x)[1](torch.ones((), dtype=F64))[0])(x), expected
    )
    assert_close(jvp(torch.func.grad(energy), (x,), (t,))[1], expected @ t)
    assert_close(linearize(torch.func.grad(energy), x)[1](t), expected @ t)


def test_vmap_of_grad_inside():
    x = randn(2, 3)

    def f(x):
        return vmap(torch.func.grad(energy))(x)

    assert_close(jacfwd(f)(x), central_jacobian(f, x))


def _slopes(u, c):
    return (u * c).sin()


# Transforms of what is constant for the one around them; ``L`` is the library.
INNER = {
    "jacfwd": lambda L, u, c: L.jacfwd(_slopes)(u, c).square().sum(),
    "jacrev": lambda L, u, c: L.jacrev(lambda v: _slopes(v, c))(u).square().sum(),
    "grad": lambda L, u, c: L.grad(lambda v: _slopes(v, c).sum())(u).exp().sum(),
    "jvp": lambda L, u, c: L.jvp(lambda v: _slopes(v, c), (u,), (u,))[1].exp().sum(),
    "vjp": lambda L, u, c: L.vjp(lambda v: _slopes(v, c), u)[1](u)[0].exp().sum(),
    "hessian": lambda L, u, c: L.hessian(lambda v: _slopes(v, c).sum())(u).square().sum(),
    "linearize": lambda L, u, c: L.linearize(lambda v: _slopes(v, c), u)[1](u).exp().sum(),
}
OUTER = {
    "grad": grad,
    "jacfwd": jacfwd,
    "value_and_jacobian": value_and_jacobian,
    "hessian": hessian,
    "jvp": lambda f: lambda c: jvp(f, (c,), (torch.ones_like(c),)),
    "vjp": lambda f: lambda c: vjp(f, c)[1](torch.ones((), dtype=F64)),
}


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", INNER)
def test_nested_results_require_grad_only_if_somebody_can_go_back(inner, outer):
    point = {"u": randn(3)}
    c = randn(3)

    def func(c):
        return INNER[inner](pushforward, point["u"], c)

    for _ in range(4):
        leaves = tree_leaves(OUTER[outer](func)(c))
        assert not any(leaf.requires_grad for leaf in leaves)
    point["u"].requires_grad_()  # the same graph, but somebody holds the leaf
    same = INNER["jvp" if inner == "linearize" else inner]  # torch.func.linearize loses it
    for _ in range(3):
        (found,) = torch.autograd.grad(grad(func)(c).square().sum(), point["u"])
        slope = torch.func.grad(functools.partial(same, torch.func, point["u"]))(c)
        (expected,) = torch.autograd.grad(slope.square().sum(), point["u"])
        assert_close(found, expected)
