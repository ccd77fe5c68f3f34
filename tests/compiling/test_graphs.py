"""Graphs before they are compiled: what depends on no input is computed once, or left to loops that make it faster."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import pushforward as pf
from pushforward.compiling.graphs import fold_constants

aten = torch.ops.aten
x = torch.arange(12.0, dtype=torch.float64).reshape(4, 3).sin()


def pairs(x):
    i, j = torch.triu_indices(4, 4, 1)
    return x[i] - x[j]


def masked(x):
    return x * torch.triu(torch.ones(4, 3, dtype=x.dtype))


def padded(x):
    return x + torch.nn.functional.pad(torch.ones(2, 3, dtype=x.dtype), (0, 0, 1, 1))


def counted(x):
    return x * torch.arange(3) + torch.eye(4, 3, dtype=x.dtype)[:, :1] * torch.eye(5)[0, 0]


def filled(x):
    return x * torch.full((4, 3), 2.0).cumsum(0).sign()


def written(x):
    y = torch.arange(3.0).flip(0)
    y.mul_(2)
    return x + y


def returned(x):
    return x + 1, torch.arange(3.0).flip(0)


FUNCTIONS = {f.__name__: f for f in (pairs, masked, padded, counted, filled, written, returned)}


def _folded(function, are_loops):
    graph = make_fx(function, tracing_mode="fake")(x)
    fold_constants(graph, are_loops)
    return graph, {n.target for n in graph.graph.nodes if n.op == "call_function"}


@pytest.mark.parametrize("are_loops", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_folded_graphs_compute_the_same(name, are_loops):
    graph, _ = _folded(FUNCTIONS[name], are_loops)
    for _ in range(2):
        torch.testing.assert_close(graph(x), FUNCTIONS[name](x))


def test_loops_read_what_takes_many_steps():
    for function, gone in ((pairs, "triu_indices"), (padded, "constant_pad_nd")):
        _, left = _folded(function, are_loops=True)
        assert not any(gone in str(op) for op in left)


def test_loops_make_positions_and_numbers_themselves():
    _, left = _folded(counted, are_loops=True)
    assert aten.arange.default in left
    _, left = _folded(counted, are_loops=False)
    assert aten.arange.default not in left
    _, left = _folded(masked, are_loops=True)
    assert aten.triu.default in left
    _, left = _folded(filled, are_loops=True)
    assert aten.full.default in left  # all elements are equal


def test_loops_read_no_large_constants():
    def function(x):
        return x.sum() * torch.arange(5000.0, dtype=x.dtype).flip(0)

    _, left = _folded(function, are_loops=True)
    assert aten.flip.default in left


@pytest.mark.parametrize("are_loops", [False, True])
def test_what_is_written_to_or_returned_is_made_at_each_call(are_loops):
    for function in (written, returned):
        graph, left = _folded(function, are_loops)
        assert aten.flip.default in left
    first = graph(x)[1]
    first.zero_()
    torch.testing.assert_close(graph(x)[1], torch.tensor([2.0, 1.0, 0.0]))


def test_fused_derivatives_with_constants():
    def energy(x):
        return (pairs(x).square().sum(-1) + 1).log().sum() + padded(x).pow(3).sum()

    torch.testing.assert_close(pf.compile(pf.hessian(energy))(x), torch.func.hessian(energy)(x))
