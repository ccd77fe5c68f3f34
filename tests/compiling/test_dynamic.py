"""compile(dynamic=True): one graph for many sizes, and never for one for which it is not right."""

import pytest
import torch
import torch.func as tf
import torch.nn.functional as F
from torch import nn

import pushforward as pf
from pushforward.planning.plans import PLANS

f64 = torch.float64
SIZES = (7, 8, 9, 12, 7, 30, 3, 13, 2, 50)


def randn(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=f64)


def net():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return layers.to(f64).requires_grad_(False)


NET = net()
CASES = {  # the function of a library, arguments of a size, and how many graphs there may be
    "elements": (lambda lib: lib.jacfwd(lambda x: x.sin() * x.roll(1)), lambda n: [randn(n)], 4),
    "layers": (lambda lib: lib.jacrev(NET), lambda n: [randn(n, 4)], 1),
    "samples": (lambda lib: lib.vmap(lib.jacrev(NET)), lambda n: [randn(n, 4)], 1),
    "mean": (lambda lib: lib.grad(lambda x: NET(x).square().mean()), lambda n: [randn(n, 4)], 1),
    "push": (
        lambda lib: lambda x: lib.jvp(NET, (x,), (x.cos(),))[1],
        lambda n: [randn(n, 4)],
        2,
    ),
    "pull": (
        lambda lib: lambda x: lib.vjp(lambda z: z.exp().sum(0), x)[1](x[0])[0],
        lambda n: [randn(n, 5)],
        1,
    ),
    "hessians": (
        lambda lib: lib.vmap(lib.hessian(lambda p: p.sin().prod() * p.sum())),
        lambda n: [randn(n, 3)],
        1,
    ),
    "nested": (
        lambda lib: lib.jacfwd(lib.jacrev(lambda x: (x.sin() * x.roll(1)).sum())),
        lambda n: [randn(n)],
        4,
    ),
    "convolution": (
        lambda lib: lib.jacrev(lambda x: F.conv1d(F.pad(x, (1, 1))[None, None], W3).sin().sum(1)),
        lambda n: [randn(n)],
        9,  # whose transposition takes sizes as numbers
    ),
    "gradients": (
        lambda lib: lib.vmap(lib.grad(lambda p, x: (p * x).tanh().sum()), (None, 0)),
        lambda n: [randn(4), randn(n, 4)],
        1,
    ),
    "softmax": (lambda lib: lib.jacrev(lambda x: x.softmax(-1)), lambda n: [randn(n, 4)], 2),
    "two sizes": (
        lambda lib: lib.jacfwd(lambda x, y: (x @ y).sin().mean(0)),
        lambda n: [randn(n, n + 1), randn(n + 1, 3)],
        3,
    ),
    "positions": (
        lambda lib: lib.jacrev(lambda x: x.cumsum(0) / torch.arange(1, x.shape[0] + 1)),
        lambda n: [randn(n)],
        2,
    ),
    "branch": (
        lambda lib: lib.jacfwd(lambda x: x.sin() if x.shape[0] > 8 else x.cos()),
        lambda n: [randn(n)],
        5,
    ),
    "attention": (
        lambda lib: lib.jacrev(lambda x: F.scaled_dot_product_attention(x, x, x)),
        lambda n: [randn(1, n, 4)],
        6,
    ),
    "length": (lambda lib: lib.jacfwd(lambda x: x * x.shape[0] ** 0.5), lambda n: [randn(n)], 5),
    "a number": (lambda lib: lib.jacfwd(lambda x: x * len(x)), lambda n: [randn(n)], 9),
    "parts": (
        lambda lib: lib.jacrev(lambda x: x[1:].sin() * x[:-1] + x[:1] * x[-1]),
        lambda n: [randn(n)],
        4,
    ),
    "transposed": (
        lambda lib: lib.jacrev(lambda x: x.sin().sum(0)),
        lambda n: [randn(3, n).t() if n % 2 else randn(n, 3)],
        4,
    ),
}
W3 = torch.linspace(-1, 1, 3, dtype=f64).reshape(1, 1, 3)


def num_graphs(compiled):
    return len({id(p) for p in compiled.compiled.programs()})


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch.func, with 2.15
@pytest.mark.parametrize("case", CASES)
def test_one_graph_for_many_sizes(case):
    make, arguments, most = CASES[case]
    compiled, expected = pf.compile(make(pf), backend="eager", dynamic=True), make(tf)
    for size in SIZES:
        torch.testing.assert_close(compiled(*arguments(size)), expected(*arguments(size)))
    assert num_graphs(compiled) <= most
    for size in SIZES:  # each graph is known now
        torch.testing.assert_close(compiled(*arguments(size)), expected(*arguments(size)))
    assert num_graphs(compiled) <= most


@pytest.mark.parametrize("case", ["samples", "elements", "two sizes", "gradients"])
def test_one_fused_graph_for_many_sizes(case):
    make, arguments, most = CASES[case]
    compiled, expected = pf.compile(make(pf), dynamic=True), make(tf)
    for size in SIZES:
        torch.testing.assert_close(compiled(*arguments(size)), expected(*arguments(size)))
    assert num_graphs(compiled) <= most


def test_sizes_are_numbers_without_being_asked():
    compiled = pf.compile(pf.jacrev(NET), backend="eager")
    for size in (3, 4, 5):
        compiled(randn(size, 4))
    assert num_graphs(compiled) == 3


def test_what_needs_numbers_is_compiled_for_each_size():
    sparse = pf.compile(
        pf.jacobian(lambda x: x.sin() * x.roll(1), output="csr"), backend="eager", dynamic=True
    )
    counted = pf.compile(
        lambda x: (pf.jacfwd(torch.sin)(x), x.shape[0]), backend="eager", dynamic=True
    )
    for size in (5, 6, 5, 6):
        x = randn(size)
        expected = tf.jacrev(lambda x: x.sin() * x.roll(1))(x)
        torch.testing.assert_close(sparse(x).to_dense(), expected)
        found, number = counted(x)
        torch.testing.assert_close(found, x.cos().diag())
        assert number == size
        assert type(number) is int
    assert num_graphs(sparse) == num_graphs(counted) == 2


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_autograd_follows_for_each_size(backend):
    compiled = pf.compile(pf.grad(lambda x: (x**3).sum()), backend=backend, dynamic=True)
    for size in (4, 5, 4, 9):
        x = randn(size).requires_grad_()
        (second,) = torch.autograd.grad(compiled(x).sum(), x)
        torch.testing.assert_close(second, 6 * x)
        torch.testing.assert_close(compiled(x.detach()), 3 * x.detach() ** 2)
    assert num_graphs(compiled) == 1


def test_pullbacks_of_numbers_are_made_for_each_size():
    """Cotangents look the same where the results have no axes."""
    compiled = pf.compile(
        lambda x: pf.jacfwd(lambda s: (s * x).sin().sum())(x.mean()), backend="eager", dynamic=True
    )
    for size in (4, 5, 6):
        x = randn(size).requires_grad_()
        expected = (x * (x.mean() * x).cos()).sum()
        torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(
            torch.autograd.grad(compiled(x), x), torch.autograd.grad(expected, x)
        )


def test_captured_tensors_keep_their_sizes_and_change_their_elements():
    weight = randn(4, 2)
    compiled = pf.compile(
        pf.jacrev(lambda x: (x @ weight).sin().sum(0)), backend="eager", dynamic=True
    )
    for size in (3, 5):
        x = randn(size, 4)
        expected = tf.jacrev(lambda x: (x @ weight).sin().sum(0))
        torch.testing.assert_close(compiled(x), expected(x))
        weight.mul_(2)
        torch.testing.assert_close(compiled(x), expected(x))
    assert num_graphs(compiled) == 1
    weight = randn(4, 3)
    torch.testing.assert_close(compiled(x), expected(x))
    assert num_graphs(compiled) == 2


def test_elements_that_decide_raise_as_without():
    compiled = pf.compile(
        pf.jacfwd(lambda x: x if x.sum() > 0 else -x), backend="eager", dynamic=True
    )
    with pytest.raises(pf.UnsupportedError, match=r"test_dynamic\.py"):
        compiled(randn(3))


def test_random_numbers_are_drawn_for_each_size():
    compiled = pf.compile(
        pf.jacfwd(lambda x: x * torch.rand_like(x), randomness="same"),
        backend="eager",
        dynamic=True,
    )
    for size in (3, 4):
        x = randn(size)
        torch.manual_seed(0)
        found = compiled(x)
        torch.manual_seed(0)
        torch.testing.assert_close(found, torch.rand_like(x).diag())


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch.func, with 2.15
def test_nothing_symbolic_is_kept_for_later_calls():
    PLANS.clear()
    function = pf.jacfwd(lambda x: F.scaled_dot_product_attention(x, x, x))
    pf.compile(function, backend="eager", dynamic=True)(randn(1, 3, 4))
    assert not len(PLANS)
    for size in (3, 30):
        x = randn(1, size, 4)
        expected = tf.jacrev(lambda x: F.scaled_dot_product_attention(x, x, x))(x)
        for _ in range(3):
            torch.testing.assert_close(function(x), expected)


def test_explain_shows_the_graph_of_a_size():
    compiled = pf.compile(pf.jacfwd(torch.sin), backend="eager", dynamic=True)
    for size in (3, 5):
        assert "cos" in str(pf.explain(compiled, randn(size)))
