"""Operators with a rule of the user's: plain functions and operators of torch.library, under every transform."""

import numpy as np
import pytest
import torch
from oracles import TOLERANCE, assert_close, central_jacobian
from torch import Tensor

import pushforward as pf
from pushforward import (
    General,
    MissingRuleError,
    elementwise,
    nondifferentiable,
    primitive,
    rule,
    with_output,
)

F64 = torch.float64


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=F64)


@primitive
def cube(x, factor=1.0):
    return torch.from_numpy(np.asarray(factor * x.detach().numpy() ** 3))


elementwise(cube, lambda x, factor=1.0: 3 * factor * x**2)


@torch.library.custom_op("pushforward_tests::softsign", mutates_args=())
def softsign(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


elementwise(torch.ops.pushforward_tests.softsign, lambda x: 1 / (1 + x.abs()) ** 2)


@primitive
def several(xs, y, name):
    """Return two tensors with a derivative and one without, of a list and a tensor."""
    assert name == "name"
    return xs[0] * y, torch.argmax(y), xs[1].sum()


def _of_list(xs, y, name):
    shape = tuple(y.shape)
    product = General(shape, shape, lambda t: t * y, lambda c: c * y)
    total = General(shape, (), lambda t: t.sum(-1), lambda c: c[:, None].expand(-1, *shape))
    return [(product, None, None), (None, None, total)]


def _of_tensor(xs, y, name):
    shape = tuple(y.shape)
    return (General(shape, shape, lambda t: t * xs[0], lambda c: c * xs[0]), None, None)


rule(several, _of_list, _of_tensor)


def ours(x, factor=2.0):
    return cube(x.sin(), factor=factor)


def plain(x, factor=2.0):
    return factor * x.sin() ** 3


def scalar(f):
    return lambda x: f(x).sum()


TRANSFORMS = {
    "jacfwd": (pf.jacfwd, pf.jacfwd),
    "jacrev": (pf.jacrev, pf.jacfwd),
    "hessian": (lambda f: pf.hessian(scalar(f)), lambda f: pf.hessian(scalar(f))),
    "third": (lambda f: pf.jacfwd(pf.jacrev(pf.jacfwd(f))),) * 2,
    "torch's jacrev": (torch.func.jacrev, pf.jacfwd),
    "torch's jacfwd": (torch.func.jacfwd, pf.jacfwd),
    "torch's hessian": (lambda f: torch.func.hessian(scalar(f)), lambda f: pf.hessian(scalar(f))),
    "torch outside": (lambda f: torch.func.jacfwd(pf.grad(scalar(f))),) * 2,
    "torch inside": (lambda f: pf.jacfwd(torch.func.grad(scalar(f))),) * 2,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_rule_is_followed_at_every_call(name):
    of_ours, of_plain = TRANSFORMS[name]
    x = rand(3)
    for _ in range(3):
        assert_close(of_ours(ours)(x), of_plain(plain)(x))


def test_a_stored_plan_knows_other_arguments():
    x = rand(3)
    for factor in (1.0, 2.0, 1.0, 3.0):
        assert_close(pf.jacrev(ours)(x, factor), pf.jacrev(plain)(x, factor))


def test_under_vmap():
    x = rand(2, 3)
    assert_close(torch.vmap(ours)(x), plain(x))
    assert_close(pf.vmap(pf.jacfwd(ours))(x), pf.vmap(pf.jacfwd(plain))(x))
    assert_close(pf.vmap(pf.hessian(scalar(ours)))(x), pf.vmap(pf.hessian(scalar(plain)))(x))


def test_plain_autograd_follows_the_rule():
    x = rand(3).requires_grad_()
    ours(x).sum().backward()
    assert_close(x.grad, pf.grad(scalar(plain))(x.detach()))


@pytest.mark.parametrize(
    "operator",
    [
        softsign,
        torch.ops.pushforward_tests.softsign,
        torch.ops.pushforward_tests.softsign.default,
    ],
    ids=["function", "packet", "overload"],
)
def test_operators_of_torch_library(operator):
    x = rand(3) - 0.5
    slope = 1 / (1 + x.abs()) ** 2
    for _ in range(3):
        assert_close(pf.jacfwd(operator)(x), torch.diag(slope))
        assert_close(pf.jacrev(operator)(x), torch.diag(slope))
        second = pf.hessian(lambda x: operator(x).sum())(x)
        assert_close(second, torch.diag(-2 * x.sign() / (1 + x.abs()) ** 3))
    batch = x.expand(2, 3)
    assert_close(pf.vmap(pf.jacfwd(operator))(batch), torch.diag(slope).expand(2, 3, 3))


@pytest.mark.parametrize("argnums", [0, 1])
@pytest.mark.parametrize("transform", [pf.jacfwd, pf.jacrev, torch.func.jacrev, torch.func.jacfwd])
def test_lists_of_arguments_and_several_outputs(transform, argnums):
    def f(x, y):
        product, position, total = several([x, x * x], y, "name")
        return product * total + position

    def g(x, y):
        return x * y * (x * x).sum() + y.argmax()

    x, y = rand(3), rand(3)
    for _ in range(3):
        assert_close(transform(f, argnums)(x, y), torch.func.jacrev(g, argnums)(x, y))


def test_without_a_rule_it_is_refused_by_name():
    @primitive
    def nameless(x):
        return x * 1

    for transform in (pf.jacfwd, pf.jacrev, torch.func.jacrev):
        with pytest.raises(MissingRuleError, match=r"nameless.*pushforward\.rule"):
            transform(nameless)(rand(3))
    assert_close(nameless(torch.ones(2)), torch.ones(2))


def test_declared_constant_it_has_no_derivative():
    @primitive
    def frozen(x):
        return x * 1

    nondifferentiable(frozen)
    x = rand(3)
    assert_close(pf.jacfwd(lambda x: frozen(x) * x)(x), torch.diag(x))
    assert_close(pf.vmap(pf.grad(lambda x: (frozen(x) * x).sum()))(x.expand(2, 3)), x.expand(2, 3))


class Square(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        return 2 * ctx.saved_tensors[0] * cotangent

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * ctx.saved_tensors[0] * tangent


@primitive
def by_primitive(x):
    return x**3


@primitive
def by_function(x):
    return x**3


@primitive
def by_map(x):
    return x**3


elementwise(by_primitive, lambda x: cube(x, factor=3.0) / x)
elementwise(by_function, lambda x: 3 * Square.apply(x))


def _map_of_functions(x):
    def move(seeds):
        return 3 * Square.apply(x) * Square.apply(seeds.sqrt())

    return General(tuple(x.shape), tuple(x.shape), move, move)


rule(by_map, _map_of_functions)

CUBES = {  # by what their rules call
    "a primitive": (by_primitive, lambda x: x**3),
    "an autograd.Function": (by_function, lambda x: x**3),
    "an autograd.Function when applied": (by_map, lambda x: x**3),
    "an operator with a rule": (
        torch.special.scaled_modified_bessel_k0,
        lambda x: torch.special.modified_bessel_k0(x) * x.exp(),
    ),
}


@pytest.mark.parametrize("vmap", [pf.vmap, torch.func.vmap])
@pytest.mark.parametrize("name", CUBES)
def test_under_vmap_a_rule_may_call_what_torch_func_looks_at(name, vmap):
    func, expected = CUBES[name]
    x = rand(2, 3) + 0.5
    first = torch.stack([central_jacobian(expected, row) for row in x])
    for _ in range(3):
        for transform in (pf.jacfwd, pf.jacrev):
            torch.testing.assert_close(vmap(transform(func))(x), first, **TOLERANCE)
    if name != "an autograd.Function when applied":  # the square root has no slope at 0
        second = torch.stack([central_jacobian(pf.jacrev(func), row) for row in x])
        torch.testing.assert_close(vmap(pf.jacfwd(pf.jacrev(func)))(x), second, **TOLERANCE)


@primitive
def exponential(x):
    return x.exp()


elementwise(exponential, with_output(lambda x, *, out: out))


@primitive
def product(x, y):
    return x * y


elementwise(product, lambda x, y: y, lambda x, y: x)


def overwriting(x, times, exp):
    """Write to the arguments and results of operators with a rule, in one of several ways."""
    a, b = x * 1, x.sin()
    c = times(a, b)
    a.mul_(2.0)
    d = exp(c)
    b[0] = 1.0
    e = times(d, c)
    d[1:].zero_()
    c.add_(a)
    return e * b + d + c


@pytest.mark.parametrize("name", ["jacfwd", "jacrev", "hessian", "third", "torch outside"])
def test_what_they_were_given_or_gave_may_be_overwritten(name):
    of_ours, of_plain = TRANSFORMS[name]
    x = rand(3)

    def with_rules(x):
        return overwriting(x, product, exponential)

    def without(x):
        return overwriting(x, lambda a, b: a.clone() * b.clone(), lambda x: x.clone().exp() * 1)

    for _ in range(3):
        assert_close(of_ours(with_rules)(x), of_plain(without)(x))
    if name != "torch outside":
        batch = rand(2, 3)
        expected = torch.stack([of_plain(without)(row) for row in batch])
        assert_close(torch.func.vmap(of_ours(with_rules))(batch), expected)


@pytest.mark.parametrize("is_around", [False, True])
@pytest.mark.parametrize("transform", [pf.jacfwd, pf.jacrev, lambda f: pf.hessian(scalar(f))])
def test_they_may_be_given_what_was_made_in_inference_mode(transform, is_around):
    with torch.inference_mode():
        constant = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    x = rand(3)
    expected = torch.func.jacrev(lambda x: x * x * torch.tensor([1.0, 2.0, 3.0], dtype=F64))(x)
    if transform not in (pf.jacfwd, pf.jacrev):
        expected = torch.diag(torch.tensor([2.0, 4.0, 6.0], dtype=F64))
    with torch.inference_mode(is_around):
        found = transform(lambda x: product(x * x, constant))(x)
    assert_close(found, expected)
