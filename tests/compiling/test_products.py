"""Products in graphs: however they are written, they are what PyTorch's are."""

import pytest
import torch
import torch.func as tf
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import pushforward as pf
from pushforward.compiling.products import rewrite_products

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rewritten(function, *args):
    """Return the graph, and the shapes of the products that are left in it."""
    graph = make_fx(function, tracing_mode="fake")(*args)
    strides = [n.meta["val"].stride() for n in graph.graph.output_node().all_input_nodes]
    rewrite_products(graph)
    assert [n.meta["val"].stride() for n in graph.graph.output_node().all_input_nodes] == strides
    graph.graph.lint()
    left = [n.args[-2:] for n in graph.graph.nodes if n.target in PRODUCTS]
    return graph, [(*x.meta["val"].shape, y.meta["val"].shape[-1]) for x, y in left]


SHAPES = {  # of a product, and what is left of it
    (1, 5, 4): [],  # a vector
    (6, 5, 1): [],
    (1, 300, 300): [(1, 300, 300)],  # a large matrix
    (4, 4, 5): [],  # tiny
    (7, 8, 6): [(7, 8, 6)],  # more terms than are unrolled
    (640, 64, 3): [(3, 64, 640)],  # narrow
    (3, 64, 640): [(3, 64, 640)],
    (64, 64, 15): [(15, 64, 64)],
    (64, 64, 16): [(64, 64, 16)],
    (20, 64, 15): [(20, 64, 15)],
    (0, 3, 2): [(0, 3, 2)],
    (2, 0, 3): [(2, 0, 3)],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_turned", [(False, False), (True, False), (False, True), (True, True)])
def test_products_by_shape_and_strides(shape, is_turned):
    m, k, n = shape
    x = randn(k, m).mT if is_turned[0] else randn(m, k)
    y = randn(n, k, seed=1).mT if is_turned[1] else randn(k, n, seed=1)
    graph, left = rewritten(torch.mm, x, y)
    assert left == SHAPES[shape]
    torch.testing.assert_close(graph(x, y), x @ y)
    bias = randn(n, seed=2)
    graph, _ = rewritten(torch.addmm, bias, x, y)
    torch.testing.assert_close(graph(bias, x, y), bias + x @ y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128, torch.bfloat16, torch.int64])
def test_products_by_dtype(dtype):
    for m, k, n in SHAPES:
        x, y = randn(m, k).mul(4).to(dtype), randn(k, n, seed=1).mul(4).to(dtype)
        graph, left = rewritten(torch.mm, x, y)
        torch.testing.assert_close(graph(x, y), x @ y, rtol=1e-5, atol=1e-4)
        assert dtype is torch.float32 or left == [(m, k, n)]


BATCHES = {
    (4, 256, 8, 7): (4, 7, 8, 256),
    (4, 256, 8, 16): (4, 256, 8, 16),
    (4, 8, 8, 256): (4, 8, 8, 256),
    (3, 12, 8, 8): (3, 12, 8, 8),
    (2, 30, 5, 1): (2, 30, 5, 1),
    (0, 300, 5, 1): (0, 300, 5, 1),
    (2, 300, 0, 1): (2, 300, 0, 1),
}


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_narrow_products_of_batches(shape, dtype):
    b, m, k, n = shape
    for x in (randn(b, m, k, dtype=dtype), randn(k, b, m, dtype=dtype).permute(1, 2, 0)):
        for y in (randn(b, k, n, dtype=dtype), randn(k, n, dtype=dtype).expand(b, k, n)):
            graph, left = rewritten(torch.bmm, x, y)
            assert left == [shape if dtype.is_complex else BATCHES[shape]]
            torch.testing.assert_close(graph(x, y), x @ y, rtol=1e-5, atol=1e-5)


def test_scaled_sums_are_left_alone():
    x, y, z = randn(4, 4), randn(4, 4, seed=1), randn(4, 4, seed=2)
    graph, left = rewritten(lambda *a: torch.addmm(*a, beta=2, alpha=3), x, y, z)
    assert left
    torch.testing.assert_close(graph(x, y, z), 2 * x + 3 * y @ z)


# ----- Rows of two factors -----


def few_first(x, y, r):  # (5, k), (128, k)
    return (x[:, None] * y).reshape(-1, y.shape[-1]) @ r


def few_last(x, y, r):
    return (y[:, None] * x).flatten(0, 1) @ r


def mixed(x, y, r):
    x, y = x.reshape(5, 1, 1, -1), y.reshape(8, 16, -1)[:, None]
    return ((y[None] * x[:, None]).reshape(-1, r.shape[0]) @ r).sin()


def slopes(x, y, r):
    y = torch.tanh(y)
    return aten.tanh_backward(x[:, None], y).reshape(-1, y.shape[-1]) @ r


def slopes_of_few(x, y, r):
    return aten.tanh_backward(y[:, None], torch.tanh(x)).reshape(-1, y.shape[-1]) @ r


FACTORED = {f.__name__: f for f in (few_first, few_last, mixed, slopes, slopes_of_few)}


@pytest.mark.parametrize("name", FACTORED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_two_factors_are_not_made(name, dtype):
    args = randn(5, 24, dtype=dtype), randn(128, 24, seed=1, dtype=dtype), randn(24, 3, dtype=dtype)
    graph, left = rewritten(FACTORED[name], *args)
    assert left == [(15, 24, 128)]
    torch.testing.assert_close(graph(*args), FACTORED[name](*args), rtol=1e-5, atol=1e-5)


def test_rows_of_two_factors_that_are_needed_or_cheaper():
    x, y, r = randn(5, 24), randn(128, 24, seed=1), randn(24, 20)

    def needed(x, y, r):
        rows = (x[:, None] * y).reshape(-1, 24)
        return rows @ r, rows

    def common(x, y, r):
        return (x.reshape(5, 24) * y[:5]) @ r

    for function in (needed, common):
        graph, left = rewritten(function, x, y, r)
        assert left[0][1:] == (24, 20)
        torch.testing.assert_close(graph(x, y, r), function(x, y, r))
    graph, left = rewritten(few_first, x, y[:30], r)  # 20 columns for 30 rows
    assert left == [(150, 24, 20)]
    torch.testing.assert_close(graph(x, y[:30], r), few_first(x, y[:30], r))
    single = y.float()  # of another dtype
    graph, _ = rewritten(few_first, x, single, r)
    torch.testing.assert_close(graph(x, single, r), few_first(x, single, r))


# ----- Whole derivatives -----


def test_fused_derivatives_of_a_batch_and_of_small_systems():
    net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 5)).double()
    net.requires_grad_(False)
    x, w = randn(64, 3), randn(4, 4)

    def cell(h):
        return w @ torch.diag(h) @ w.mT @ torch.tanh(w @ h)

    jac = pf.compile(pf.vmap(pf.jacrev(net)))
    torch.testing.assert_close(jac(x), tf.vmap(tf.jacrev(net))(x))
    h = randn(4, seed=2)
    torch.testing.assert_close(pf.compile(pf.jacfwd(cell))(h), tf.jacfwd(cell)(h))


def test_autograd_goes_back_over_rewritten_products():
    w = randn(32, 3)

    def norm(jac, x):
        return jac(x).square().sum()

    def f(x):
        return torch.tanh(x @ w.mT) @ w

    x, y = (randn(20, 3).requires_grad_() for _ in range(2))
    (fused,) = torch.autograd.grad(norm(pf.compile(pf.vmap(pf.jacrev(f))), x), x)
    (plain,) = torch.autograd.grad(norm(tf.vmap(tf.jacrev(f)), y), y)
    torch.testing.assert_close(fused, plain)


def test_products_of_graphs_that_were_traced_with_real_tensors():
    """Their sparse results are laid out by the elements of index tensors."""
    corners = (7 * torch.arange(1500)).reshape(500, 3) % 600
    stiffness = torch.linspace(-1, 1, 4500, dtype=torch.float64).reshape(500, 3, 3)

    def flow(u):
        e = u[corners]
        parts = (1 + e.mean(1) ** 2)[:, None] * torch.einsum("eij,ej->ei", stiffness, e)
        return torch.zeros_like(u).index_add(0, corners.reshape(-1), parts.reshape(-1))

    u = torch.linspace(0, 2, 600, dtype=torch.float64)
    found = pf.compile(pf.jacobian(flow, output="csr"))(u)
    torch.testing.assert_close(found.to_dense(), torch.func.jacrev(flow)(u))
