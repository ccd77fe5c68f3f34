"""compile: dense Jacobians of few entries are compiled as these entries, unless where they stand may change."""

import pytest
import torch
import torch.func as tf
from torch.nn import functional as F

import pushforward as pf

SIZE = 120  # more elements than are written one by one


def bands(x):
    wide = F.pad(x, (1, 1))
    return wide[2:] * wide[:-2] - 2 * x


def rosenbrock(x):
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def written(x):
    y = x.new_zeros(2, SIZE)
    y[0, 1:] = x[:-1].sin()
    y[1, ::2] = x[::2] ** 2
    return y


def pair(x):
    return {"near": x.roll(1) * x, "once": (x.cumsum(0)[-1] * x[:3], x.exp())}


def rotated(x):
    return x * torch.exp(1j * x.roll(2)) + 1


def rotated_by_parts(x):
    """Return what torch.func refuses: the Jacobian of a complex output."""
    real, imaginary = tf.jacfwd(lambda x: torch.view_as_real(rotated(x)))(x).unbind(1)
    return torch.complex(real, imaginary)


CASES = {
    "bands": (pf.jacfwd(bands), tf.jacfwd(bands), "index_copy"),
    "auto": (pf.jacobian(bands), tf.jacrev(bands), "index_copy"),
    "Hessian": (pf.hessian(rosenbrock), tf.hessian(rosenbrock), "index_copy"),
    "writes": (pf.jacfwd(written), tf.jacrev(written), "index_copy"),
    "several": (pf.jacfwd(pair), tf.jacfwd(pair), "index_copy"),
    "complex": (pf.jacfwd(rotated), rotated_by_parts, "index_copy"),
    "many entries": (pf.jacfwd(lambda x: x.cumsum(0)), tf.jacfwd(lambda x: x.cumsum(0)), ""),
    "in reverse": (pf.jacrev(bands), tf.jacrev(bands), ""),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_same_as_torch_func(name, backend):
    ours, theirs, expected = CASES[name]
    compiled = pf.compile(ours, backend=backend)
    for seed in range(2):
        x = torch.rand(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(compiled(x), theirs(x), rtol=1e-12, atol=1e-12)
    if backend == "eager":
        assert expected in str(pf.explain(compiled, x))
        assert bool(expected) == ("index_copy" in str(pf.explain(compiled, x)))


def test_autograd_follows():
    compiled = pf.compile(pf.jacfwd(bands), backend="eager")
    found, expected = [], []
    for transform, gradients in ((compiled, found), (tf.jacfwd(bands), expected)):
        x = torch.linspace(0, 1, SIZE, dtype=torch.float64, requires_grad=True)
        gradients += torch.autograd.grad(transform(x).square().sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("is_argument", [False, True])
def test_places_that_may_change_are_not_compiled(is_argument):
    index = torch.arange(SIZE).flip(0)

    def picked(x, i):
        return x[i if is_argument else index] * x

    compiled = pf.compile(pf.jacfwd(picked), backend="eager")
    x = torch.rand(SIZE, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(compiled(x, index), tf.jacfwd(picked)(x, index))
        index.copy_(index.roll(3))


def test_a_plan_of_a_sparse_result_is_not_taken_over():
    index = torch.arange(SIZE).flip(0)

    def picked(x):
        return x[index] * x

    x = torch.rand(SIZE, dtype=torch.float64)
    for _ in range(2):
        pf.jacobian(picked, output="csr")(x)
    compiled = pf.compile(pf.jacfwd(picked), backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x), tf.jacfwd(picked)(x))
        index.copy_(index.roll(3))
