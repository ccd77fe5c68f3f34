"""Straight-line code: small programs are one function of C++, and give what PyTorch gives."""

import math

import pytest
import torch
import torch.func as tf
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

import pushforward as pf
from pushforward.compiling import number_code
from pushforward.compiling.numbers import Numbers
from pushforward.compiling.straight import straight

f64 = torch.float64


def points(*shape, seed=0, dtype=f64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=dtype) + 0.1


def by_index_writes(x):
    matrix = x.new_zeros(4, 4)
    for i in range(3):
        matrix[i, i] += x[i] * x[i + 1]
        matrix[i, i + 1] -= x[i].sin()
    matrix[1:3, 2] *= 2
    return matrix @ x


def scalars(x):
    a, b, c, d = x.unbind()
    once = [a * b / c, (a - d).abs().sqrt(), b**3 * c**-2, torch.atan2(c, d), a**0.5]
    return torch.stack([*once, 1 - b, torch.rsub(c, 2.0, alpha=3), torch.rsub(a, d, alpha=2)])


def functions(x):
    return torch.cat([x.sin() * x.cos(), x.exp().log1p(), x.tanh() + torch.sigmoid(x), x.erf() / x])


def branches(x):
    return torch.where(x > 0.5, x.square(), x.sin()) + torch.maximum(x, x.flip(0)) + x.relu()


def moved(x):
    y = F.pad(x.reshape(2, 2), (1, 1), value=3.0)
    i = torch.tensor([1, 0, 1])
    return y[i].roll(1, 1).mT.diagonal() * x[i] + x.expand(3, 4)[:, 2].cumsum(0)[0]


def matrices(x):
    m = torch.outer(x, x) + torch.eye(4, dtype=x.dtype)
    return (
        (m @ m @ x).sum()
        + (m.mean(1) * x).norm()
        + m[None].expand(2, 4, 4).bmm(m.repeat(2, 1, 1)).sum((1, 2))
    )


def mixed_dtypes(x):
    return x.float() * 0.1 + x.double() / 3


PROGRAMS = [by_index_writes, scalars, functions, branches, moved, matrices, mixed_dtypes]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_jacobians_are_those_of_torch_func(program, dtype):
    compiled = pf.compile(pf.jacfwd(program))
    for seed in range(2):
        x = points(4, seed=seed, dtype=dtype)
        torch.testing.assert_close(compiled(x), tf.jacrev(program)(x), check_dtype=False)


@pytest.mark.parametrize("transform", ["jacrev", "hessian", "grad"])
@pytest.mark.usefixtures("without_inductor")
def test_small_programs_need_no_inductor(transform):
    def f(x):
        y = by_index_writes(x) * scalars(x)[:4]
        return y if transform == "jacrev" else y.sum()

    x = points(4)
    torch.testing.assert_close(
        pf.compile(getattr(pf, transform)(f))(x), getattr(tf, transform)(f)(x)
    )


@pytest.mark.usefixtures("without_inductor")
def steps_of_all_dtypes(x):
    y = torch.where(x > x.flip(0), x.square(), x.sin()).float() * 0.1
    return x.sum() * y + torch.where((x > 0.5) & (x < x.roll(1)), y.double(), x) / x


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_numbers_are_handed_on_between_functions(without_inductor, monkeypatch, limit):
    monkeypatch.setattr(number_code, "MAX_STEPS", limit)
    x = points(4)
    found = pf.compile(pf.jacfwd(steps_of_all_dtypes))(x)
    torch.testing.assert_close(found, tf.jacfwd(steps_of_all_dtypes)(x))


def test_long_programs_are_several_functions():
    numbers = Numbers()
    first = last = numbers.load(0, 0, f64)
    for _ in range(3 * number_code.MAX_STEPS - 1):
        last = numbers.of("add", f64, last, first)
    text = number_code.source(numbers, ["double"], [("double", {0: last})])
    assert text.count("static __attribute__((noinline))") == 3
    assert "double s[3]" in text


def test_differences_that_are_each_others_negatives_have_one_square():
    numbers = Numbers()
    x, y, c = numbers.load(0, 0, f64), numbers.load(0, 1, f64), numbers.constant(2.0)
    for a, b in ((x, y), (x, c)):
        one, other = numbers.of("sub", f64, a, b), numbers.of("sub", f64, b, a)
        assert one != other
        squares = [numbers.of("mul", f64, n, n) for n in (one, other)]
        assert squares[0] == squares[1]
        assert numbers.of("mul", f64, one, other) not in squares
    assert numbers.of("add", f64, x, y) == numbers.of("add", f64, y, x)


def test_results_have_the_strides_of_plain_calls_and_memory_of_their_own():
    def f(x):
        return x.mT * 2, x.sum(0).expand(3, 4), x * 1

    x = points(3, 4).mT.contiguous().mT
    compiled = pf.compile(f)
    first, second = compiled(x), compiled(x + 1)
    for y, expected in zip(first, f(x), strict=True):
        torch.testing.assert_close(y, expected)
        assert y.stride() == expected.stride()
    torch.testing.assert_close(second, f(x + 1))


@pytest.mark.usefixtures("without_inductor")
def test_special_values():
    def f(x):
        return torch.stack([1 / x, x * 0, x.sqrt(), torch.maximum(x, -x), x.sign(), x.abs(), x**2])

    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e300, -2.5], dtype=f64)
    torch.testing.assert_close(pf.compile(f)(x), f(x), equal_nan=True)


@pytest.mark.usefixtures("without_inductor")
def test_inputs_with_strides_and_offsets():
    whole = points(5, 6)
    compiled = pf.compile(pf.jacrev(lambda x, w: (x * w).sum(1)))
    for x, w in ((whole[1:3, ::2], whole[2:4, 1::2]), (whole.mT[:2, :3], whole[1:3, 3:])):
        torch.testing.assert_close(compiled(x, w), tf.jacrev(lambda x, w: (x * w).sum(1))(x, w))


@pytest.mark.usefixtures("without_inductor")
def test_autograd_follows():
    compiled = pf.compile(pf.jacfwd(scalars))
    x = points(4).requires_grad_()
    (ours,) = torch.autograd.grad(compiled(x).square().sum(), x)
    (expected,) = torch.autograd.grad(tf.jacrev(scalars)(x).square().sum(), x)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    "program",
    [
        lambda x: x.expand(10, 2000).sin(),  # too many elements
        lambda x: torch.cat([x, x * 2]),  # too many results
        lambda x: (x[:, None] * torch.arange(1, 500, dtype=f64)).sin().sum(),  # too many functions
        lambda x: torch.complex(x, x).abs(),
        lambda x: x.view(20, 100),  # the caller's memory
        lambda x: (x > 0).sum(),  # integers
        lambda x: torch.rand_like(x),
    ],
)
def test_what_is_not_taken_apart(program):
    x = points(2000)
    graph = make_fx(lambda x: [program(x)], tracing_mode="fake")(x)
    assert straight(graph, [x]) is None


@pytest.mark.parametrize("transform", ["jvp", "vjp"])
def test_products_with_vectors_are_fused(transform):
    net = torch.nn.Sequential(
        torch.nn.Linear(40, 50), torch.nn.Tanh(), torch.nn.Linear(50, 30)
    ).double()
    x, v = points(40), points(40 if transform == "jvp" else 30, seed=1)

    def derivative(lib):
        if transform == "jvp":
            return lambda x, v: lib.jvp(net, (x,), (v,))[1]
        return lambda x, v: lib.vjp(net, x)[1](v)

    compiled = pf.compile(derivative(pf))
    (expected,) = torch.utils._pytree.tree_leaves(derivative(tf)(x, v))
    (found,) = torch.utils._pytree.tree_leaves(compiled(x, v))
    torch.testing.assert_close(found, expected)
    operators = [n.target for n in compiled.compiled.programs()[0].stage.graph.graph.nodes]
    assert torch.ops.aten.mm.default not in operators
    assert torch.ops.aten.addmm.default not in operators


def test_inputs_that_are_negated_when_read():
    compiled = pf.compile(pf.jacfwd(scalars))
    x = points(4)
    negated = torch.complex(torch.zeros(4, dtype=f64), -x).conj().imag
    assert negated.is_neg()
    for given in (x, negated):
        torch.testing.assert_close(compiled(given), compiled(x))
