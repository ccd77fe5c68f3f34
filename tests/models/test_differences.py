"""Models people know, small and in float64, against differences of values and of autograd's gradients.

Neither has anything from pushforward in it.
"""

import dataclasses

import pytest
import torch
from models.answers import without_fused_kernels
from models.zoo import BUILDERS, build
from models.zoo.model import Model, Params
from oracles import STEP, assert_close
from torch import Tensor

import pushforward
from pushforward import jvp, vmap

pytestmark = [
    # PyTorch's vmap says so for operators that the models themselves call (attention, take, pdist).
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.filterwarnings("ignore:index_reduce:UserWarning"),
]

Tree = tuple[Params, Tensor]

# Where central differences make sense: the models whose draws, if any, are smooth in what they are drawn from.
SMOOTH = [name for name in BUILDERS if build(name).is_smooth]


def direction(model: Model) -> Tree:
    """A random tangent of parameters and input, of length about one each."""

    def one(t: Tensor) -> Tensor:
        return torch.randn_like(t) / max(t.numel(), 1) ** 0.5

    return {k: one(v) for k, v in model.params.items()}, one(model.x)


def along(model: Model, tangent: Tree, step: float) -> Tree:
    """The point at ``step`` along the tangent."""
    params = {k: v + step * tangent[0][k] for k, v in model.params.items()}
    return params, model.x + step * tangent[1]


def inner(a: Tree, b: Tree) -> Tensor:
    """The inner product of two tangents."""
    return sum((a[0][k] * b[0][k]).sum() for k in a[0]) + (a[1] * b[1]).sum()


def gradient(model: Model, weights: Tensor, params: Params, x: Tensor) -> Tree:
    """The gradient of ``(weights * output).sum()`` by ``torch.autograd``."""
    leaves = [t.detach().clone().requires_grad_() for t in (*params.values(), x)]
    out = model.reference(dict(zip(params, leaves, strict=False)), leaves[-1] * 1)
    grads = torch.autograd.grad((weights * out).sum(), leaves, materialize_grads=True)
    return dict(zip(params, grads, strict=False)), grads[-1]


def hessian_product(model: Model, weights: Tensor, tangent: Tree) -> Tree:
    """The Hessian of ``(weights * output).sum()`` along a tangent, by differences of the gradient."""
    there = gradient(model, weights, *along(model, tangent, STEP))
    back = gradient(model, weights, *along(model, tangent, -STEP))
    params = {k: (there[0][k] - back[0][k]) / (2 * STEP) for k in there[0]}
    return params, (there[1] - back[1]) / (2 * STEP)


def seeded(name: str) -> Model:
    """The model of that name, which draws the same random numbers at every call."""
    model = build(name)
    if not model.draws:
        return model

    def call(params: Params, x: Tensor) -> Tensor:
        torch.manual_seed(5)
        return model.call(params, x)

    return dataclasses.replace(model, call=call)


@pytest.fixture(params=SMOOTH)
def model(request):
    return seeded(request.param)


def scalar(model: Model, weights: Tensor):
    return lambda params, x: (weights * model.call(params, x)).sum()


def assert_trees_close(actual: Tree, expected: Tree, **tolerances: float) -> None:
    assert actual[0].keys() == expected[0].keys()
    for key, value in expected[0].items():
        assert_close(actual[0][key], value, **tolerances)
    assert_close(actual[1], expected[1], **tolerances)


def test_jvp_equals_central_differences(model):
    tangent = direction(model)
    out, out_dot = jvp(model.call, (model.params, model.x), tangent)
    assert_close(out, model.call(model.params, model.x))
    there = model.call(*along(model, tangent, STEP))
    back = model.call(*along(model, tangent, -STEP))
    assert_close(out_dot, (there - back).detach() / (2 * STEP))


def test_vjp_equals_central_differences_and_autograd(model):
    tangent = direction(model)
    out, pull = pushforward.vjp(model.call, model.params, model.x)
    assert_close(out, model.call(model.params, model.x))
    weights = torch.randn_like(out)
    cotangent = pull(weights)
    there = model.call(*along(model, tangent, STEP))
    back = model.call(*along(model, tangent, -STEP))
    slope = (weights * (there - back)).sum().detach() / (2 * STEP)
    assert_close(inner(cotangent, tangent), slope)
    assert_trees_close(cotangent, gradient(model, weights, model.params, model.x))


def test_jvp_of_jvp_equals_central_differences_of_the_gradient(model):
    tangent = direction(model)

    def pushed(params, x):
        return jvp(model.call, (params, x), tangent)[1]

    _, second = jvp(pushed, (model.params, model.x), tangent)
    weights = torch.randn_like(second)
    expected = inner(hessian_product(model, weights, tangent), tangent)
    assert_close((weights * second).sum(), expected, rtol=1e-5, atol=1e-6)


def test_jvp_of_grad_equals_central_differences_of_the_gradient(model):
    tangent = direction(model)
    weights = torch.randn_like(model.call(model.params, model.x))
    _, product = jvp(
        pushforward.grad(scalar(model, weights), argnums=(0, 1)), (model.params, model.x), tangent
    )
    expected = hessian_product(model, weights, tangent)
    assert_trees_close(product, expected, rtol=1e-5, atol=1e-6)


def test_grad_of_jvp_equals_central_differences_of_the_gradient(model):
    tangent = direction(model)
    weights = torch.randn_like(model.call(model.params, model.x))

    def slope(params, x):
        return jvp(scalar(model, weights), (params, x), tangent)[1]

    product = pushforward.grad(slope, argnums=(0, 1))(model.params, model.x)
    expected = hessian_product(model, weights, tangent)
    assert_trees_close(product, expected, rtol=1e-5, atol=1e-6)


def test_grad_of_grad_equals_central_differences_of_the_gradient(model):
    tangent = direction(model)
    weights = torch.randn_like(model.call(model.params, model.x))
    first = pushforward.grad(scalar(model, weights), argnums=(0, 1))
    product = pushforward.grad(lambda p, x: inner(first(p, x), tangent), argnums=(0, 1))(
        model.params, model.x
    )
    expected = hessian_product(model, weights, tangent)
    assert_trees_close(product, expected, rtol=1e-5, atol=1e-6)


def curvature(model: Model, weights: Tensor, x: Tensor, tangent: Tensor) -> Tensor:
    """The Hessian by the input of ``(weights * output).sum()`` along ``tangent``, by ``torch.autograd``."""
    x = x.clone().requires_grad_()
    with without_fused_kernels():
        value = (weights * model.reference(model.params, x * 1)).sum()
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        along = (slope * tangent).sum()
        if not along.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(along, x, materialize_grads=True)[0]


@pytest.mark.parametrize("name", [name for name in SMOOTH if build(name).order > 1])
def test_jvp_of_jvp_of_grad_equals_central_differences_of_the_curvature(name):
    model = seeded(name)
    (_, tangent), x = direction(model), model.x
    weights = torch.randn_like(model.call(model.params, x))

    def slope(x):
        return pushforward.grad(scalar(model, weights), argnums=1)(model.params, x)

    _, third = jvp(lambda x: jvp(slope, (x,), (tangent,))[1], (x,), (tangent,))
    there, back = (curvature(model, weights, x + h * tangent, tangent) for h in (STEP, -STEP))
    assert_close(third, (there - back) / (2 * STEP), rtol=1e-5, atol=1e-6)


BATCHED = [name for name in SMOOTH if build(name).has_vmap]


@pytest.mark.parametrize("name", BATCHED)
def test_vmap_of_jvp_equals_a_loop(name):
    model = seeded(name)
    tangent = direction(model)
    xs = torch.stack([model.x, model.x + 0.01 * torch.randn_like(model.x)])

    def pushed(x):
        return jvp(model.call, (model.params, x), tangent)

    out, out_dot = vmap(pushed, randomness="same")(xs)
    looped = [pushed(x) for x in xs]
    assert_close(out, torch.stack([o for o, _ in looped]))
    assert_close(out_dot, torch.stack([d for _, d in looped]))


def test_running_statistics_end_as_after_a_plain_call():
    def statistics(evaluate):
        model = build("resnet in training")
        evaluate(model)
        return {k: v.clone() for k, v in model.net.named_buffers()}

    plain = statistics(lambda m: m.call(m.params, m.x))
    for transform in (pushforward.jacfwd, pushforward.jacrev, pushforward.jacobian):
        ours = statistics(lambda m, t=transform: t(m.call, argnums=1)(m.params, m.x))
        assert ours.keys() == plain.keys()
        for key, value in plain.items():
            torch.testing.assert_close(ours[key], value, msg=f"{transform.__name__}: {key}")
