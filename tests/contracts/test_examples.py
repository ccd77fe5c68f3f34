"""Whole uses: meta-learning, ensembles, forces, per-example gradients with batch statistics."""

import copy

import pytest
import torch
import torch.nn.functional as F
from doubles import F64, close, randn
from torch import Tensor, nn


def state(net: nn.Module) -> dict[str, Tensor]:
    return dict(net.named_parameters())


def test_meta_learning_by_a_gradient_step_inside_the_loss(api):
    net = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    net = net.double()
    params = state(net)
    tasks = [randn(4, 10, 1) for _ in range(4)]

    def inner(params, x, y):
        return ((torch.func.functional_call(net, params, (x,)) - y) ** 2).mean()

    def outer(gradient, x1, y1, x2, y2):
        steps = gradient(params, x1, y1)
        moved = {k: params[k] - 0.1 * steps[k] for k in params}
        return inner(moved, x2, y2)

    def by_autograd(params, x, y):
        leaves = list(params.values())
        grads = torch.autograd.grad(inner(params, x, y), leaves, create_graph=True)
        return dict(zip(params, grads, strict=True))

    losses = api.vmap(lambda *task: outer(api.grad(inner), *task))(*tasks)
    result = torch.autograd.grad(losses.mean(), list(params.values()))
    looped = [outer(by_autograd, *(t[i] for t in tasks)) for i in range(4)]
    expected = torch.autograd.grad(torch.stack(looped).mean(), list(params.values()))
    for actual, reference in zip(result, expected, strict=True):
        close(actual, reference)


def test_meta_learning_of_a_convolutional_network_by_two_steps(api):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).double()
    params = state(net)
    x1, x2 = randn(2, 5, 1, 8, 8), randn(2, 6, 1, 8, 8)
    y1, y2 = torch.randint(0, 3, (2, 5)), torch.randint(0, 3, (2, 6))

    def loss(params, x, y):
        return F.cross_entropy(torch.func.functional_call(net, params, (x,)), y)

    def adapted(gradient, x1, y1, x2, y2):
        moved = params
        for _ in range(2):
            steps = gradient(moved, x1, y1)
            moved = {k: moved[k] - 0.1 * steps[k] for k in moved}
        return loss(moved, x2, y2)

    def by_autograd(params, x, y):
        grads = torch.autograd.grad(loss(params, x, y), list(params.values()), create_graph=True)
        return dict(zip(params, grads, strict=True))

    losses = api.vmap(lambda *task: adapted(api.grad(loss), *task))(x1, y1, x2, y2)
    result = torch.autograd.grad(losses.sum(), list(params.values()))
    looped = [adapted(by_autograd, x1[i], y1[i], x2[i], y2[i]) for i in range(2)]
    expected = torch.autograd.grad(sum(looped), list(params.values()))
    for actual, reference in zip(result, expected, strict=True):
        close(actual, reference)


def test_an_ensemble_is_trained_by_vmap_of_grad_and_value(api):
    nets = [nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2)).double() for _ in range(2)]
    points, labels = randn(20, 2), torch.randint(0, 2, (20,))
    stacked, _ = torch.func.stack_module_state(nets)

    def loss(params, x, y):
        return F.cross_entropy(torch.func.functional_call(nets[0], params, (x,)), y)

    def step(params):
        grads, value = api.grad_and_value(loss)(params, points, labels)
        return value, {k: params[k] - 0.2 * grads[k] for k in params}

    values, moved = api.vmap(step)(stacked)
    for i, net in enumerate(nets):
        value = F.cross_entropy(net(points), labels)
        grads = torch.autograd.grad(value, list(net.parameters()))
        close(values[i], value)
        for (name, param), gradient in zip(net.named_parameters(), grads, strict=True):
            close(moved[name][i], param - 0.2 * gradient)


@pytest.mark.parametrize("name", ["jacfwd", "jacrev"])
def test_forces_of_a_network_of_distances_can_be_trained(api, name):
    r = torch.linspace(0.5, 1, 12, dtype=F64)
    forces = -4 * (-12 * 0.5**12 / r**13 + 6 * 0.5**6 / r**7)
    net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
    net = net.double()
    slope = api.vmap(getattr(api, name)(net))(r[:, None]).flatten()
    result = torch.autograd.grad(F.mse_loss(-slope, forces), list(net.parameters())[:-1])
    slopes = [
        torch.autograd.functional.jacobian(net, x, create_graph=True).flatten() for x in r[:, None]
    ]
    loss = F.mse_loss(-torch.cat(slopes), forces)
    expected = torch.autograd.grad(loss, list(net.parameters())[:-1])
    for actual, reference in zip(result, expected, strict=True):
        close(actual, reference)


@pytest.mark.parametrize("tracking", [True, False])
def test_gradients_for_each_example_through_batch_norm_without_running_statistics(api, tracking):
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4, track_running_stats=tracking),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    ).double()
    torch.func.replace_all_batch_norm_modules_(net)
    params = state(net)
    x, y = randn(2, 1, 2, 6, 6), torch.randint(0, 3, (2, 1))

    def loss(params, x, y):
        return F.cross_entropy(torch.func.functional_call(net, params, (x,)), y)

    batched = api.vmap(api.grad(loss), in_dims=(None, 0, 0))(params, x, y)
    for i in range(2):
        grads = torch.autograd.grad(loss(params, x[i], y[i]), list(params.values()))
        for name, gradient in zip(params, grads, strict=True):
            close(batched[name][i], gradient)


@pytest.mark.parametrize("layer", [nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_an_ensemble_with_the_same_dropout_and_different_learning_rates(api, layer):
    net = nn.Sequential(layer(), nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    stacked, _ = torch.func.stack_module_state([copy.deepcopy(net) for _ in range(2)])
    points, labels = randn(10, 2, 4), torch.randint(0, 2, (10,))

    def loss(params, x, y):
        return F.cross_entropy(torch.func.functional_call(net, params, (x,)), y)

    def step(params, rate):
        grads, value = api.grad_and_value(loss)(params, points, labels)
        return value, {k: params[k] - rate * grads[k] for k in params}

    rates = torch.tensor([0.2, 0.4], dtype=F64)
    values, moved = api.vmap(step, randomness="same")(stacked, rates)
    close(values[0], values[1])
    for name, before in stacked.items():
        close((moved[name][1] - before[1]), 2 * (moved[name][0] - before[0]))
    assert any(not torch.equal(m[0], m[1]) for m in moved.values())


def test_a_layer_normalized_network_under_vmap_of_hessian(api):
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    params, xs = {k: p.detach() for k, p in net.named_parameters()}, randn(4, 2)

    def predict(params, x):
        return torch.func.functional_call(net, params, (x,)).squeeze(-1)

    batched = api.vmap(api.hessian(predict, argnums=1), in_dims=(None, 0))(params, xs)
    for i in range(4):
        close(batched[i], torch.autograd.functional.hessian(lambda x: predict(params, x), xs[i]))


def test_jacobians_with_aux_at_both_levels_under_vmap(api):
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    xs = randn(4, 2)

    def predict(x):
        out = net(x) ** 2
        return out, out

    second = api.jacfwd(api.jacrev(predict, has_aux=True), has_aux=True)
    hessians, out = api.vmap(second)(xs)
    close(out, net(xs) ** 2)
    for i in range(4):
        for j in range(2):
            one = torch.autograd.functional.hessian(lambda x, j=j: predict(x)[0][j], xs[i])
            close(hessians[i, j], one)
