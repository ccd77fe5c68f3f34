"""Interleaved writes as one loop: what is in memory afterwards is what it was, whatever else is written or read."""

import pytest
import torch
import torch.nn.functional as F

import pushforward as pf
from pushforward.compiling.interleaved import join_interleaved
from pushforward.tape.private_compiler import make_fx

aten = torch.ops.aten
N = 80  # so that a matrix has enough entries to be written by strides
X = torch.linspace(-1, 1, N * N, dtype=torch.float64).reshape(N, N)


def put(out, value, offset, lengths=(N, N), strides=(3 * N, 3)):
    out.as_strided(lengths, strides, offset).copy_(value)


def neighbours(x, out):
    put(out, x.sin(), 0)
    put(out, x.cos(), 2)
    put(out, x, 1)


def with_numbers(x, out):
    one = torch.ones(1, 1, dtype=x.dtype)
    put(out, one * 2, 0)
    put(out, one * 2, 1)
    put(out, x, 2)


def in_other_memory(x, out):
    put(out, x[1:].exp(), 3 * N, (N - 1, N))
    put(out, x[:1].repeat(1, 3), 0, (1, 3 * N), (3 * N, 1))
    put(out, x[1:].cos(), 3 * N + 1, (N - 1, N))


def written_between(x, out):
    put(out, x.sin(), 0)
    put(out, 5 * x, 0)
    put(out, x.cos(), 1)
    put(out, x.exp(), 2)


def covered_between(x, out):
    put(out, x.sin(), 0)
    out.as_strided((3 * N * N,), (1,), 0).copy_(x.sum().expand(3 * N * N))
    put(out, x.cos(), 1)


def read_between(x, out):
    put(out, x.sin(), 0)
    put(out, out.sum() + 0 * x, 1)


def beyond_each_other(x, out):
    for offset in range(4):
        put(out, x[1:].sin() + offset, offset, (N - 1, N))


CASES = {  # and how many writes are left
    neighbours: 1,
    with_numbers: 1,
    in_other_memory: 2,
    written_between: 2,
    covered_between: 3,
    read_between: 2,
    beyond_each_other: 4,
}


def num_writes(graph):
    return sum(n.target is aten.copy_.default for n in graph.graph.nodes)


@pytest.mark.parametrize("writes", CASES)
def test_memory_is_as_before(writes):
    def written(x):
        out = torch.empty(3 * N * N, dtype=x.dtype)
        writes(x, out)
        return [out]

    graph = make_fx(written, [X], "fake")
    join_interleaved(graph)
    assert num_writes(graph) == CASES[writes]
    (found,) = graph(X)
    expected = torch.full((3 * N * N,), torch.nan, dtype=X.dtype)
    if writes is not read_between:  # what was in memory before
        writes(X, expected)
        is_written = ~expected.isnan()
        assert torch.equal(found[is_written], expected[is_written])


def roll(w):
    def laplace(a):
        return a.roll(1, 0) + a.roll(-1, 0) + a.roll(1, 1) + a.roll(-1, 1) - 4 * a

    u, v = w
    uuv = u * u * v
    return torch.stack([1 + uuv - 4.4 * u + laplace(u), 3.4 * u - uuv + 2 * laplace(v)])


def pad(w):
    p = F.pad(w, (1, 1, 1, 1))
    around = p[:, 2:, 1:-1] + p[:, :-2, 1:-1] + p[:, 1:-1, 2:] * 2 + p[:, 1:-1, :-2] * 3
    return around * w + w.flip(0)


@pytest.mark.parametrize("function", [roll, pad])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_sparse_jacobians_of_grids(function, dtype, backend):
    w = torch.stack([X.sin(), X.exp()]).to(dtype)
    jacobian = pf.compile(pf.jacobian(function, output="csr"), backend=backend)
    for _ in range(2):
        found = jacobian(w)
        direction = torch.linspace(-1, 2, w.numel(), dtype=dtype).cos().reshape(w.shape)
        _, expected = torch.func.jvp(function, (w,), (direction,))
        torch.testing.assert_close(found @ direction.reshape(-1), expected.reshape(-1))
        _, pull = torch.func.vjp(function, w)
        (expected,) = pull(direction)
        torch.testing.assert_close(found.to_dense().T @ direction.reshape(-1), expected.reshape(-1))
        w = w.flip(1)


def test_entries_of_a_row_are_written_together(monkeypatch):
    from pushforward.compiling import backends

    counts = []

    def counted(graph):
        counts.append(num_writes(graph))
        join_interleaved(graph)
        counts.append(num_writes(graph))

    monkeypatch.setattr(backends, "join_interleaved", counted)
    pf.compile(pf.jacobian(roll, output="csr"))(torch.stack([X, X]))
    before, after = counts
    assert (before, after) == (12, 2)
