"""Second derivatives where PyTorch 2.13 is silently wrong, and the structure that Hessians keep.

The oracle is central differences of the first derivative by ``torch.autograd``, which is right at first order.
"""

import itertools

import pytest
import torch
from oracles import assert_close, central_jacobian
from torch import Tensor

from pushforward import explain, grad, hessian, jacfwd, jacobian, jacrev, jvp, vmap

F64 = torch.float64
G = torch.Generator().manual_seed(3)


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=G)


SQUARE = rand(3, 3) + 2 * torch.eye(3, dtype=F64)
LOWER = torch.linalg.cholesky(SQUARE @ SQUARE.mT + torch.eye(3, dtype=F64))
B = rand(3, 2)
NORM_IN = rand(2, 3, 4)
WEIGHT = rand(3)


def cholesky_of(x: Tensor) -> Tensor:
    return torch.linalg.cholesky(x @ x.mT + torch.eye(3, dtype=F64))


FUNCTIONS = {
    "det": (torch.linalg.det, SQUARE),
    "det of a batch": (torch.linalg.det, torch.stack([SQUARE, SQUARE.mT + 1])),
    "slogdet": (lambda x: torch.linalg.slogdet(x).logabsdet, SQUARE),
    "logdet": (lambda x: torch.logdet(x @ x.mT), SQUARE),
    "solve": (lambda x: torch.linalg.solve(x, B), SQUARE),
    "solve_ex": (lambda x: torch.linalg.solve_ex(x, B).result, SQUARE),
    "tensorsolve": (lambda x: torch.linalg.tensorsolve(x, B[:, 0]), SQUARE),
    "layer_norm": (lambda x: torch.nn.functional.layer_norm(x, (4,)), NORM_IN),
    "instance_norm": (lambda x: torch.nn.functional.instance_norm(x, weight=WEIGHT), NORM_IN),
    "batch_norm": (
        lambda x: torch.nn.functional.batch_norm(x, None, None, WEIGHT, training=True),
        NORM_IN,
    ),
    "group_norm": (lambda x: torch.nn.functional.group_norm(x, 3, WEIGHT), NORM_IN),
    "cumprod with a zero": (lambda x: x.cumprod(0), torch.tensor([2.0, 0.0, 3.0, -1.0], dtype=F64)),
    "cumprod with two zeros": (
        lambda x: x.cumprod(0),
        torch.tensor([2.0, 0.0, 3.0, 0.0, 1.5], dtype=F64),
    ),
    "prod with a zero": (torch.prod, torch.tensor([2.0, 0.0, 3.0], dtype=F64)),
    "householder_product": (
        lambda x: torch.linalg.householder_product(x[:, :2], x[:2, 2]),
        SQUARE,
    ),
    "cholesky_inverse": (lambda x: torch.cholesky_inverse(cholesky_of(x)), SQUARE),
    "cholesky_solve": (lambda x: torch.cholesky_solve(B, cholesky_of(x)), SQUARE),
    "cholesky_solve, other argument": (lambda x: torch.cholesky_solve(x, LOWER).pow(2), SQUARE),
}
MODES = {"fwd": jacfwd, "rev": jacrev}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("mode", [*MODES, "auto"])
def test_first_derivatives(name, mode):
    func, x = FUNCTIONS[name]
    transform = MODES.get(mode, jacobian)
    assert_close(transform(func)(x), central_jacobian(func, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives_in_all_four_nestings(name):
    func, x = FUNCTIONS[name]
    weights = torch.linspace(-1, 2, func(x).numel(), dtype=F64).reshape(func(x).shape)

    def scalar(x: Tensor) -> Tensor:
        return (weights * func(x)).sum()

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(scalar(x), x)[0]

    expected = central_jacobian(gradient, x)
    for outer, inner in itertools.product(MODES.values(), repeat=2):
        assert_close(outer(inner(scalar))(x), expected, rtol=1e-5, atol=1e-6)
    assert_close(hessian(scalar)(x), expected, rtol=1e-5, atol=1e-6)


def test_the_hessian_of_the_determinant_at_the_identity_has_no_nan():
    eye = torch.eye(3, dtype=F64)
    # d²det = tr(A)tr(B) - tr(AB) at the identity
    expected = torch.einsum("ij,kl->ijkl", eye, eye) - torch.einsum("il,jk->ijkl", eye, eye)
    assert_close(hessian(torch.linalg.det)(eye), expected)


# ---- Structure ----


def blocks_of_gradient(func, x):
    """The blocks that forward mode carries through the gradient of ``func``."""
    plan = explain(grad(func), x, mode="forward").plan
    return plan.predictions["forward"]


def test_a_separable_function_keeps_its_hessian_diagonal_through_both_passes():
    x = torch.linspace(0, 1, 2000, dtype=F64)
    prediction = blocks_of_gradient(lambda x: x.sin().sum(), x)
    assert prediction.peak_bytes < 10 * x.numel() * 8
    jac = hessian(lambda x: x.sin().sum())(x)
    assert_close(jac.diagonal(), -x.sin())
    assert int((jac != 0).sum()) <= 2000


def test_a_batch_keeps_its_hessian_block_diagonal():
    w = rand(6, 6)
    x = rand(50, 6)

    def energy(x: Tensor) -> Tensor:
        return ((x @ w).tanh() ** 2).sum()

    prediction = blocks_of_gradient(energy, x)
    assert prediction.peak_bytes < 10 * 50 * 6 * 6 * 8  # one block for each element of the batch
    full = hessian(energy)(x)
    single = vmap(hessian(energy))(x)
    for i in (0, 17, 49):
        assert_close(full[i, :, i], single[i])
        assert not full[i, :, (i + 1) % 50].any()


def test_hessians_of_several_arguments_and_pytrees():
    def func(p: dict[str, Tensor], y: Tensor) -> Tensor:
        return (p["a"].sin() * y).sum() + (p["b"] ** 3).sum()

    p = {"a": rand(3), "b": rand(2)}
    y = rand(3)
    ours = hessian(func, (0, 1))(p, y)
    theirs = torch.func.hessian(func, (0, 1))(p, y)
    torch.testing.assert_close(ours, theirs)


def test_hessians_with_aux_keywords_and_chunks():
    x = rand(4)

    def func(x: Tensor, *, power: int) -> tuple[Tensor, str]:
        return (x**power).sum() * x[0], "aux"

    expected = torch.func.hessian(lambda x: func(x, power=3)[0])(x)
    for chunk_size in (None, 1, 3):
        result, aux = hessian(func, has_aux=True, chunk_size=chunk_size)(x, power=3)
        assert aux == "aux"
        assert_close(result, expected)


def test_third_derivative_by_every_mix_of_modes():
    x = torch.tensor([0.3, -0.7], dtype=F64)

    def func(x: Tensor) -> Tensor:
        return (x.prod() * x.exp()).sum()

    expected = central_jacobian(lambda x: torch.func.hessian(func)(x), x)
    for a, b, c in itertools.product(MODES.values(), repeat=3):
        assert_close(a(b(c(func)))(x), expected, rtol=1e-5, atol=1e-6)


def test_a_derivative_along_a_direction_of_a_gradient():
    x, v = rand(4), rand(4)

    def func(x: Tensor) -> Tensor:
        return (x**4).sum() * x[0]

    _, product = jvp(grad(func), (x,), (v,))
    assert_close(product, torch.func.hessian(func)(x) @ v)
