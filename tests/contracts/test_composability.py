"""Transforms inside transforms, under vmap, make_fx, functionalize, hooks and switched-off keys."""

import functools
import warnings

import pytest
import torch
from doubles import F64, close, randn
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx


def test_grad_of_grad(api):
    x = randn()
    close(api.grad(api.grad(torch.sin))(x), -x.sin())


def test_autograd_of_grad(api):
    x = randn().requires_grad_()
    close(torch.autograd.grad(api.grad(torch.sin)(x), x)[0], -x.detach().sin())


def test_views_at_two_levels(api):
    x, y = randn().requires_grad_(), randn().requires_grad_()
    result = api.grad(lambda x: x.view([]).sin())(x) + y.cos()
    x_bar, y_bar = torch.autograd.grad(result, [x, y])
    close((x_bar, y_bar), (-x.detach().sin(), -y.detach().sin()))


def test_grad_and_vmap_in_both_orders(api):
    x = randn(3)
    close(api.grad(lambda x: api.vmap(torch.sin)(x).sum())(x), x.cos())
    close(api.vmap(api.grad(torch.sin))(x), x.cos())


@pytest.mark.parametrize("name", ["grad", "jacrev", "jacfwd", "grad_and_value", "hessian"])
def test_making_a_transform_warns_of_nothing(api, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(api, name)(torch.sin)


def test_make_fx_of_nested_jacobians(api):
    f = api.jacrev(api.jacrev(lambda x: x.sin().sum()))
    graph = make_fx(f)(randn(3))
    x = randn(3)
    close(graph(x), (-x.sin()).diag())


def test_make_fx_of_a_pullback(api):
    x = randn(3)
    _, pull = api.vjp(lambda x: x.sin().sum(), x)
    graph = make_fx(lambda v: pull(v))(randn())
    v = randn()
    close(graph(v)[0], v * x.cos())


def test_make_fx_of_vmap_of_grad(api):
    f = api.vmap(api.grad(torch.sin))
    graph = make_fx(f)(randn(5))
    x = randn(5)
    close(graph(x), x.cos())


def test_grad_of_functionalize_and_functionalize_of_grad(api):
    def f(x):
        y = x + x
        z = y.view(4, 2)
        y.add_(torch.ones(2, dtype=F64))
        return (z**2).sum()

    x = randn(4, 2)
    expected = 4 * (2 * x + 1)
    close(api.grad(f)(x), expected)
    close(api.grad(torch.func.functionalize(f))(x), expected)
    close(torch.func.functionalize(api.grad(f))(x), expected)


@pytest.mark.parametrize("key", ["Autograd", "FuncTorchBatched", "Functionalize"])
def test_a_dispatch_key_switched_off_outside_stays_so_and_changes_nothing(api, key):
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    x = randn(3)
    with torch._C._ExcludeDispatchKeyGuard(keys):
        close(api.grad(lambda x: x.sin().sum())(x), x.cos())
        close(api.vmap(api.grad(torch.sin))(x), x.cos())
        off = torch._C._dispatch_tls_local_exclude_set()
        assert off.has(getattr(torch._C.DispatchKey, key))


def test_vmap_of_jacobian_of_vmap_of_a_layer_with_parameters(api):
    """Autograd's own bookkeeping of the parameters happens at the innermost level."""
    layer, x = nn.Linear(2, 3).double(), randn(4, 5, 2)
    result = api.vmap(api.jacrev(api.vmap(lambda x: layer(x).tanh())))(x)
    slopes = (1 - layer(x).tanh() ** 2)[..., None] * layer.weight
    expected = torch.einsum("bioj,ik->biokj", slopes, torch.eye(5, dtype=F64))
    close(result, expected)


# ---- vmap of grad ----


def by_a_loop(api, loss, weight, *batches):
    rows = zip(*batches, strict=True)
    return torch.stack([api.grad(loss)(weight, *row) for row in rows])


def test_gradients_for_each_example(api):
    weight, x, t = randn(6, 2), randn(8, 6), randn(8, 2)

    def loss(weight, x, t):
        return ((x @ weight - t) ** 2).sum()

    batched = api.vmap(functools.partial(api.grad(loss), weight))(x, t)
    close(batched, 2 * torch.einsum("bi,bo->bio", x, x @ weight - t))
    close(batched, by_a_loop(api, loss, weight, x, t))


def test_gradients_for_each_example_with_a_view_changed_in_place(api):
    weight, x, t = randn(6, 2), randn(8, 1, 6), randn(8, 2)

    def loss(weight, x, t):
        y = x.mm(weight)
        return ((y.squeeze_(0) - t) ** 2).sum()

    batched = api.vmap(functools.partial(api.grad(loss), weight))(x, t)
    close(batched, by_a_loop(api, loss, weight, x, t))


WRITES = {
    "an element of a copy": lambda c, y: c[0].copy_(y),
    "an element added to": lambda c, y: c[0].add_(y),
    "a view kept and written": lambda c, y: c.T[:, 0].mul_(y),
    "by index": lambda c, y: c.__setitem__(0, y),
    "all of it": lambda c, y: c.copy_(y.expand_as(c)),
}


@pytest.mark.parametrize("name", ["jacfwd", "jacrev", "grad"])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_into_a_view_of_a_batched_constant_is_seen_through_its_base(api, name, write):
    def f(x, y):
        c = x * 2
        WRITES[write](c, y)
        return c.sum()

    x, y = randn(4, 2, 3), randn(4, 3)
    result = api.vmap(getattr(api, name)(f, argnums=1))(x, y)
    leaf = y.clone().requires_grad_()
    total = sum(f(x[i], leaf[i]) for i in range(4))
    close(result, torch.autograd.grad(total, leaf)[0])


@pytest.mark.parametrize("new", ["new_zeros", "new_empty"])
def test_a_new_tensor_made_under_vmap_can_take_a_batch(api, new):
    x, y = randn(3), randn(3, 5)

    def f(y, x):
        result = getattr(x, new)((5,))
        result.copy_(y)
        return result.sum()

    close(api.vmap(api.grad(f))(y, x), torch.ones_like(y))


def test_gradients_for_each_sentence_of_an_embedding_network(api):
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 4)
            self.out = nn.Linear(4, 2)

        def forward(self, words):
            return self.out(self.embed(words).transpose(-1, -2).mean(-1).relu())

    net = Bag().double()
    params = {k: p.detach() for k, p in net.named_parameters()}
    words, targets = torch.randint(0, 20, (6, 5)), torch.randint(0, 2, (6,))

    def loss(params, words, target):
        out = torch.func.functional_call(net, params, (words,))
        return nn.functional.cross_entropy(out, target)

    batched = api.vmap(api.grad(loss), in_dims=(None, 0, 0))(params, words, targets)
    for i in range(6):
        one = api.grad(loss)(params, words[i], targets[i])
        for key, value in one.items():
            close(batched[key][i], value)


# ---- Modules ----


def test_tied_parameters_get_the_sum_of_both_uses(api):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.again = self.linear

        def forward(self, x):
            return nn.functional.linear(self.again(self.linear(x)), self.linear.weight)

    net, x = Tied().double(), randn(2, 3)
    names, values = zip(*net.named_parameters(), strict=True)
    expected = torch.autograd.grad(net(x).sin().sum(), values)
    params = {k: p.detach() for k, p in net.named_parameters()}
    result = api.grad(lambda p: torch.func.functional_call(net, p, (x,)).sin().sum())(params)
    assert set(result) == set(names)
    for name, value in zip(names, expected, strict=True):
        close(result[name], value)


def test_the_module_is_as_before_after_functional_call_inside_a_transform(api):
    net, x = nn.Linear(3, 3).double(), randn(3)
    before = dict(net.named_parameters())
    params = {k: torch.zeros_like(p) for k, p in before.items()}
    api.grad(lambda p: torch.func.functional_call(net, p, (x,)).sum())(params)
    assert all(p is before[k] for k, p in net.named_parameters())


# ---- Higher-order operators, hooks ----


def test_hooks_inside_see_the_values(api):
    seen = []
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh()).double()
    net[0].register_forward_hook(lambda m, args, out: seen.append(float(out.detach().sum())))
    x = randn(2)
    api.grad(lambda x: net(x).sum())(x)
    assert seen == [
        float(nn.functional.linear(x, net[0].weight, net[0].bias).detach().sum())
    ] * len(seen)


def test_a_derivative_inside_a_function_that_records_for_autograd_with_saved_tensor_hooks(api):
    """torch.func refuses hooks in reverse mode; forward mode takes them (`test_jvp.py`)."""
    x = randn(3)

    def hooked(x):
        with torch.autograd.graph.save_on_cpu():
            return x.sin().sum()

    if api is torch.func:
        with pytest.raises(RuntimeError, match="saved tensor hooks"):
            api.grad(hooked)(x)
        return
    for transform in (api.grad, api.jacrev, api.jacfwd):
        close(transform(hooked)(x), x.cos())
        with torch.autograd.graph.save_on_cpu():
            close(transform(lambda x: x.sin().sum())(x), x.cos())
