"""Hooks inside the function: reverse mode calls them, forward mode does not know of cotangents."""

import pytest
import torch
from oracles import assert_close
from torch import Tensor, nn

import pushforward as pf

F64 = torch.float64


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=F64)


def by_autograd(f, x: Tensor) -> Tensor:
    tracked = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(tracked), tracked)
    return gradient


def doubling(x):
    y = x.sin()
    y.register_hook(lambda g: 2 * g)
    return y.sum()


def clamping_the_sum(x):
    y = x.sin()
    y.register_hook(lambda g: g.clamp(max=1))
    return (y * y).sum() + (3 * y).sum()


def on_the_input(x):
    x.register_hook(lambda g: 2 * g)
    x.register_hook(lambda g: g + 1)
    return (x * x).sum()


def removed(x):
    y = x.sin()
    y.register_hook(lambda g: 2 * g).remove()
    return y.sum()


def on_a_black_box(x):
    y = torch.erfcx(x) if hasattr(torch, "erfcx") else torch.special.erfcx(x)
    y.register_hook(lambda g: 3 * g)
    return torch.special.erfcx(y).sum()


def returning_nothing(x):
    y = x.exp()
    y.register_hook(lambda g: None)
    return y.sum()


CASES = [doubling, clamping_the_sum, on_the_input, removed, on_a_black_box, returning_nothing]


@pytest.mark.parametrize("f", CASES)
def test_reverse_mode_honours_them_at_every_call(f):
    x = rand(3)
    expected = by_autograd(f, x)
    for _ in range(3):
        assert_close(pf.grad(f)(x), expected)
        assert_close(pf.jacrev(f)(x), expected)
        assert_close(pf.vjp(f, x)[1](torch.ones((), dtype=F64))[0], expected)


def test_forward_mode_passes_by():
    x = rand(3)
    assert_close(pf.jacfwd(doubling)(x), x.cos())
    assert_close(pf.jvp(doubling, (x,), (x,))[1], (x * x.cos()).sum())


@pytest.mark.parametrize("num_outputs", [1, 2, 9])
@pytest.mark.parametrize("kind", ["tensor", "module"])
def test_where_the_mode_is_ours_to_choose_it_is_the_one_that_calls_them(kind, num_outputs):
    net = nn.Linear(3, num_outputs).double()
    if kind == "module":
        net.register_full_backward_hook(lambda module, inputs, outputs: (2 * inputs[0],))

    def f(x):
        y = net(x) * 1
        if kind == "tensor":
            y.register_hook(lambda g: 2 * g)
        return y

    x = rand(3)
    for _ in range(4):
        for transform in (pf.jacobian, pf.jacrev):
            assert_close(transform(f)(x), 2 * net.weight)
        assert_close(pf.jacobian(f, chunk_size=2)(x), 2 * net.weight)
        assert_close(pf.value_and_jacobian(f)(x)[1], 2 * net.weight)
        assert_close(pf.jacobian(f, mode="forward")(x), net.weight)
    with pytest.raises(pf.errors.UnsupportedError, match="hooks"):
        pf.jacobian(f, mode="cross")(x)


def test_a_stored_plan_calls_the_hook_of_this_call():
    def f(x, factor):
        y = x.sin()
        y.register_hook(lambda g: factor * g)
        return y.sum()

    x = rand(3)
    for factor in (2.0, 3.0, 5.0, 2.0, 7.0):
        assert_close(pf.grad(f)(x, factor), factor * x.cos())


def test_every_row_of_a_jacobian_meets_the_hook():
    def f(x):
        y = x.sin()
        y.register_hook(lambda g: g.clamp(max=0.5))
        return y

    assert_close(pf.jacrev(f)(rand(3) * 0), 0.5 * torch.eye(3, dtype=F64))


def test_under_vmap_and_the_transforms_of_torch():
    x = rand(2, 3)
    assert_close(pf.vmap(pf.grad(doubling))(x), 2 * x.cos())
    outer = torch.func.grad(lambda x: pf.grad(doubling)(x).sum())
    assert_close(outer(x[0]), -2 * x[0].sin())


def test_nested_in_ourselves():
    x = rand(3)
    assert_close(pf.jacfwd(pf.grad(doubling))(x), torch.diag(-2 * x.sin()))


def test_runs_around_pass_by_as_in_torch_func():
    x = rand(3)
    for f in (clamping_the_sum, on_the_input, lambda x: doubling(x) ** 3):
        expected = torch.func.jacrev(torch.func.grad(f))(x)
        for _ in range(4):
            assert_close(pf.jacrev(pf.grad(f))(x), expected)
            assert_close(pf.jacrev(torch.func.grad(f))(x), expected)

    def on_an_older_one(x):
        def inner(z):
            x.register_hook(lambda g: 3 * g)
            return (z * z * x).sum()

        return pf.grad(inner)(x * 2).sum()

    assert_close(pf.grad(on_an_older_one)(x), by_autograd(on_an_older_one, x))


def test_hooks_of_modules_are_called_and_may_change_gradients():
    layer, calls = nn.Linear(3, 2).double(), []

    def after(module, inputs, outputs):
        calls.append((len(inputs), len(outputs)))
        return (2 * inputs[0],)

    layer.register_full_backward_hook(after)
    layer.register_full_backward_pre_hook(lambda module, outputs: (3 * outputs[0],))

    def f(x):
        y = x.sin()
        y.register_hook(lambda g: 5 * g)
        return layer(y).sum()

    x = rand(3)
    expected = by_autograd(f, x)
    calls.clear()
    for _ in range(3):
        assert_close(pf.grad(f)(x).detach(), expected)
    assert calls == [(1, 1)] * 3


def test_hooks_of_modules_meet_every_row_of_a_jacobian():
    layer, is_hooked = nn.Linear(3, 3).double(), False
    for _ in range(2):
        for _ in range(3):
            x = rand(3)
            expected = layer.weight.detach() @ torch.diag(x.cos()) * (6 if is_hooked else 1)
            assert_close(pf.jacrev(lambda x: layer(x.sin()))(x), expected)
        layer.register_full_backward_hook(lambda module, inputs, outputs: (2 * inputs[0],))
        layer.register_full_backward_pre_hook(lambda module, outputs: (3 * outputs[0],))
        is_hooked = True


def on_a_node(x):
    y = x.sin()
    y.grad_fn.register_hook(lambda inputs, outputs: (2 * inputs[0] + outputs[0],))
    return (y * y).sum()


def before_a_node(x):
    y = x.sin()
    y.grad_fn.register_prehook(lambda outputs: (outputs[0].clamp(max=0.5),))
    return (y * y).sum()


def around_a_node(x):
    y = x.sin()
    y.register_hook(lambda g: g + 1)
    y.grad_fn.register_prehook(lambda outputs: (2 * outputs[0],))
    y.grad_fn.register_hook(lambda inputs, outputs: (inputs[0] + outputs[0],))
    return (y * y).sum()


def on_a_node_of_two_inputs(x):
    y = x.sin() * x.exp()
    y.grad_fn.register_hook(lambda inputs, outputs: (2 * inputs[0], inputs[1] + outputs[0]))
    return y.sum()


def on_a_node_of_two_outputs(x):
    y, z = x.sin().split([1, 2])
    z.grad_fn.register_hook(lambda inputs, outputs: (3 * inputs[0],))
    return y.sum() * (z * z).sum()


def on_nodes_asked_for_before(x):
    y = x.sin()
    nodes = [y.grad_fn, (y * y).grad_fn]
    z = y.exp()
    assert z.grad_fn is not None
    nodes[0].register_hook(lambda inputs, outputs: (2 * inputs[0],))
    return (y * z).sum()


ON_NODES = [
    on_nodes_asked_for_before,
    on_a_node,
    before_a_node,
    around_a_node,
    on_a_node_of_two_inputs,
    on_a_node_of_two_outputs,
]


@pytest.mark.parametrize("f", ON_NODES)
def test_those_on_nodes_are_honoured_at_every_call(f):
    is_on = False

    def late(x):
        return f(x) if is_on else x.sin().sum()

    for _ in range(4):
        x = rand(3)
        expected = by_autograd(f, x)
        assert_close(pf.grad(f)(x), expected)
        assert_close(pf.vjp(f, x)[1](torch.ones((), dtype=F64))[0], expected)
        assert_close(torch.func.vmap(pf.grad(f))(x[None])[0], expected)
        second = torch.func.jacrev(torch.func.grad(f))(x)
        assert_close(pf.jacrev(pf.grad(f))(x), second)
        assert_close(torch.func.jacrev(pf.grad(f))(x), second)
        pf.grad(late)(x)
    is_on = True
    assert_close(pf.grad(late)(x), by_autograd(f, x))


def test_hooks_on_any_of_several_tensors_are_called_for_each():
    x, seen = torch.linspace(0.3, 0.9, 3, dtype=torch.float64), []

    def f(x):
        y, z = x.sin(), x.cos()
        torch.autograd.graph.register_multi_grad_hook((y, z), seen.append, mode="any")
        return (y * z).sum()

    for _ in range(3):
        seen.clear()
        torch.testing.assert_close(pf.grad(f)(x), (2 * x).cos())
        assert len(seen) == 2
        torch.testing.assert_close(sum(seen), x.sin() + x.cos())
