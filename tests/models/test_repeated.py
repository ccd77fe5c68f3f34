"""Models called again and again with other values, parameters and modes: kept plans against PyTorch."""

import pytest
import torch
from models.answers import BATCH, answers, points
from models.zoo import BUILDERS, build

import pushforward as pf

pytestmark = [
    # PyTorch's vmap says so for operators that the models themselves call (attention, take, pdist).
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.filterwarnings("ignore:index_reduce:UserWarning"),
]

DOUBLE, SINGLE = torch.float64, torch.float32
# Relative to the largest element: sums of products of a few hundred rounded numbers, differentiated twice.
TOLERANCES = {DOUBLE: 1e-9, SINGLE: 1e-3}

MODELS = {name: build(name) for name in BUILDERS}
SMOOTH = [name for name, model in MODELS.items() if model.order > 1]
BATCHED = [name for name, model in MODELS.items() if model.has_vmap]
SMOOTH_BATCHED = [name for name in SMOOTH if name in BATCHED]
# Their layers have kernels of their own for single precision, which other models do not call.
MODULES = [name for name, model in MODELS.items() if model.net is not None]


def assert_close(actual, expected, what):
    """Compare two trees of tensors, each to a part of its largest element."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(actual[key], value, f"{what}, {key}")
    elif isinstance(expected, tuple):
        for number, pair in enumerate(zip(actual, expected, strict=True)):
            assert_close(*pair, f"{what}[{number}]")
    else:
        largest = expected.abs().amax().item() if expected.numel() else 0.0
        torch.testing.assert_close(
            actual.detach(),
            expected,
            rtol=0,
            atol=TOLERANCES[expected.dtype] * max(largest, 1e-2),
            msg=lambda m: f"{what}: {m}",
        )


def stacked(trees):
    """One tree for a batch of them."""
    if isinstance(trees[0], dict):
        return {key: stacked([t[key] for t in trees]) for key in trees[0]}
    if isinstance(trees[0], tuple):
        return tuple(stacked(list(parts)) for parts in zip(*trees, strict=True))
    return torch.stack(trees)


def weighted(call):
    return lambda weights, params, x: (weights * call(params, x)).sum()


def jacobian_of(model, transform, argnums):
    """The transform of that name, told that random numbers are drawn once where there are any."""
    options = {"randomness": "same"} if model.draws and transform != "jacrev" else {}
    return getattr(pf, transform)(model.call, argnums=argnums, **options)


def along(blocks, tangent):
    """The product of a Hessian, whose rows and columns are nested as (params, x), with such a tangent."""

    def product(row, shape):
        pairs = [*((row[0][key], t) for key, t in tangent[0].items()), (row[1], tangent[1])]
        return sum(b.reshape(*shape, -1) @ t.flatten() for b, t in pairs)

    params = {key: product(row, tangent[0][key].shape) for key, row in blocks[0].items()}
    return params, product(blocks[1], tangent[1].shape)


def visit(name, dtype=DOUBLE):
    """A fresh model's points with PyTorch's answers, for each input of the batch."""
    model = build(name, dtype)
    expected = answers(name, dtype)
    return model, zip(points(model), expected, strict=True)


@pytest.mark.parametrize("transform", ["jacfwd", "jacrev"])  # and jacobian in single precision
@pytest.mark.parametrize("name", BUILDERS)
def test_jacobians(name, transform):
    model, visits = visit(name)
    blocks = jacobian_of(model, transform, (0, 1))
    for point, (answer, *_) in visits:
        assert_close(blocks(point.params, point.x), answer.rows, f"call {point.seed}")


@pytest.mark.parametrize("name", BUILDERS)
def test_gradients_and_values(name):
    model, visits = visit(name)
    slopes = pf.grad_and_value(weighted(model.call), argnums=(1, 2))
    for point, (answer, *_) in visits:
        found, value = slopes(answer.weights, point.params, point.x)
        assert_close(found, answer.gradient, f"call {point.seed}")
        assert_close(value, (answer.weights * answer.value).sum(), f"value {point.seed}")


@pytest.mark.parametrize("name", SMOOTH)
def test_hessians(name):
    model, visits = visit(name)

    def value(weights, varied, fixed, x):
        return (weights * model.call(fixed | varied, x)).sum()

    blocks = pf.hessian(value, argnums=(1, 3))
    for point, (answer, *_) in visits:
        varied = {key: point.params[key] for key in point.tangent[0]}
        found = along(blocks(answer.weights, varied, point.params, point.x), point.tangent)
        assert_close(found, answer.product, f"call {point.seed}")


@pytest.mark.parametrize("name", BATCHED)
def test_vmap_of_jacfwd(name):
    model, visits = visit(name)
    one = jacobian_of(model, "jacfwd", 1)
    blocks = pf.vmap(one, in_dims=(None, 0), randomness="same")
    for point, each in visits:
        expected = torch.stack([answer.rows[1] for answer in each])
        assert_close(blocks(point.params, point.xs), expected, f"call {point.seed}")


@pytest.mark.parametrize("name", BATCHED)
def test_vmap_of_jacrev(name):
    model, visits = visit(name)
    one = jacobian_of(model, "jacrev", (0, 1))
    blocks = pf.vmap(one, in_dims=(None, 0), randomness="same")
    for point, each in visits:
        expected = stacked([answer.rows for answer in each])
        assert_close(blocks(point.params, point.xs), expected, f"call {point.seed}")


@pytest.mark.parametrize("name", BATCHED)
def test_gradients_per_sample(name):
    model, visits = visit(name)
    one = pf.grad(weighted(model.call), argnums=(1, 2))
    slopes = pf.vmap(one, in_dims=(None, None, 0), randomness="same")
    for point, each in visits:
        expected = stacked([answer.gradient for answer in each])
        found = slopes(each[0].weights, point.params, point.xs)
        assert_close(found, expected, f"call {point.seed}")


@pytest.mark.parametrize("name", SMOOTH_BATCHED)
def test_vmap_of_hessians(name):
    model, visits = visit(name)
    one = pf.hessian(weighted(model.call), argnums=2)
    blocks = pf.vmap(one, in_dims=(None, None, 0), randomness="same")
    for point, each in visits:
        found = blocks(each[0].weights, point.params, point.xs)
        tangent = point.tangent[1].flatten()
        products = found.reshape(BATCH, -1, tangent.numel()) @ tangent
        expected = torch.stack([answer.product_x for answer in each])
        assert_close(products.reshape(expected.shape), expected, f"call {point.seed}")


@pytest.mark.parametrize("name", MODULES)
def test_modules_that_are_trained_in_between(name):
    model, visits = visit(name)
    blocks = pf.jacrev(lambda x: model.net(x))
    own = dict(model.net.named_parameters())
    for point, (answer, *_) in visits:
        with torch.no_grad():
            for key, value in point.params.items():
                own[key].copy_(value)
        assert_close(blocks(point.x), answer.rows[1], f"call {point.seed}")


@pytest.mark.parametrize("name", BUILDERS)
def test_jacobians_in_single_precision(name):
    model, visits = visit(name, SINGLE)
    blocks = jacobian_of(model, "jacobian", (0, 1))
    for point, (answer, *_) in visits:
        assert_close(blocks(point.params, point.x), answer.rows, f"call {point.seed}")


@pytest.mark.parametrize("name", [name for name in MODULES if name in SMOOTH])
def test_hessians_in_single_precision(name):
    model, visits = visit(name, SINGLE)
    blocks = pf.hessian(weighted(model.call), argnums=2)
    for point, (answer, *_) in visits:
        tangent = point.tangent[1].flatten()
        found = blocks(answer.weights, point.params, point.x).reshape(-1, tangent.numel()) @ tangent
        assert_close(found.reshape(point.x.shape), answer.product_x, f"call {point.seed}")


@pytest.mark.parametrize("name", [name for name in MODULES if name in BATCHED])
def test_gradients_per_sample_in_single_precision(name):
    model, visits = visit(name, SINGLE)
    one = pf.grad(weighted(model.call), argnums=(1, 2))
    slopes = pf.vmap(one, in_dims=(None, None, 0), randomness="same")
    for point, each in visits:
        expected = stacked([answer.gradient for answer in each])
        found = slopes(each[0].weights, point.params, point.xs)
        assert_close(found, expected, f"call {point.seed}")
