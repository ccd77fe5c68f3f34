"""Functions of factors that are fixed only up to phases or a basis, and of singular matrices."""

from collections.abc import Callable

import pytest
import torch
from oracles import STEP
from torch import Tensor

from pushforward import jacfwd, jacrev, jvp, vjp

DTYPES = (torch.float64, torch.complex128)
SHAPES = ((3, 3), (4, 2), (2, 5), (2, 3, 2))


def _span(u: Tensor, size: int) -> Tensor:
    """Weigh the projectors on the first columns and on the others: independent of the bases chosen."""
    first, second = u[..., :size], u[..., size:]
    weights = torch.linspace(1, 2, u.shape[-2], dtype=u.dtype)
    return weights * (first @ first.mH) + 3 * second @ second.mH


def complete_q(x: Tensor) -> Tensor:
    """The columns that complete Q, as a subspace."""
    return _span(torch.linalg.qr(x, "complete")[0], min(x.shape[-2:]))


def complete_r(x: Tensor) -> Tensor:
    """R below a tall matrix's has zeros."""
    return torch.linalg.qr(x, "complete")[1] ** 2


def only_r(x: Tensor) -> Tensor:
    """R without Q."""
    return torch.linalg.qr(x, "r")[1]


def full_u(x: Tensor) -> Tensor:
    """All left singular vectors."""
    return _span(torch.linalg.svd(x, full_matrices=True)[0], min(x.shape[-2:]))


def full_v(x: Tensor) -> Tensor:
    """All right singular vectors."""
    return _span(torch.linalg.svd(x, full_matrices=True)[2].mH, min(x.shape[-2:]))


def first_vectors(x: Tensor) -> Tensor:
    """A product of the first singular vectors on both sides."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return u[..., :1] @ vh[..., :1, :] * s[..., :1, None] ** 2


def reflectors(x: Tensor) -> Tensor:
    """The vectors and R in one matrix."""
    return torch.geqrf(x)[0]


def reflector_scales(x: Tensor) -> Tensor:
    """How long the reflectors are."""
    return torch.geqrf(x)[1]


def eigen_projector(x: Tensor) -> Tensor:
    """The spectral projector of the eigenvalue with the largest real part."""
    values, vectors = torch.linalg.eig(x @ x.mT)
    place = values.real.argmax(-1, keepdim=True)
    left = torch.linalg.inv(vectors)
    right = torch.take_along_dim(vectors, place[..., None, :], -1)
    return right @ torch.take_along_dim(left, place[..., None], -2)


def eigenvalues(x: Tensor) -> Tensor:
    """Symmetric functions of the eigenvalues."""
    values = torch.linalg.eigvals(x @ x.mT)
    return torch.stack([(values**3).sum(-1), values.exp().prod(-1)], -1)


def fitted_singular_values(x: Tensor) -> Tensor:
    """What the driver gelsd gives beside the solution."""
    return torch.linalg.lstsq(x, x[..., :1], driver="gelsd")[3]


FUNCTIONS = (
    complete_q, complete_r, only_r, full_u, full_v, first_vectors, reflectors, reflector_scales, eigen_projector,
    eigenvalues, fitted_singular_values,
)  # fmt: skip


def _difference(func: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    return (func(x + STEP * v) - func(x - STEP * v)) / (2 * STEP)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).sum().real


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("func", FUNCTIONS, ids=lambda f: f.__name__)
def test_derivatives_do_not_depend_on_the_gauge(
    func: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """First derivatives both ways, and second ones in three nestings, against central differences."""
    x, v, u = (torch.randn(shape, dtype=dtype) for _ in range(3))
    out, tangent = jvp(func, (x,), (v,))
    torch.testing.assert_close(tangent, _difference(func, x, v), rtol=1e-5, atol=1e-5)
    w = torch.randn_like(out)
    torch.testing.assert_close(_dot(vjp(func, x)[1](w)[0], v), _dot(w, tangent))

    def slope(x: Tensor) -> Tensor:
        return _dot(w, jvp(func, (x,), (v,))[1])

    def gradient(x: Tensor) -> Tensor:
        return vjp(func, x)[1](w)[0]

    expected = _difference(slope, x, u)
    one = torch.ones((), dtype=torch.float64)
    second = (
        jvp(slope, (x,), (u,))[1],
        _dot(vjp(slope, x)[1](one)[0], u),
        _dot(jvp(gradient, (x,), (u,))[1], v),
    )
    for found in second:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_lu_of_a_singular_square_matrix_has_a_derivative() -> None:
    """Nothing is divided by the last pivot."""
    x = torch.tensor([[2.0, 1.0], [4.0, 2.0]], dtype=torch.float64)
    lower, upper = jacfwd(lambda a: torch.linalg.lu(a)[1:])(x)
    # L₂₁ = a₁₁ / a₂₁: by a₁₁ 1/4, by a₂₁ -2/16
    assert torch.equal(lower[1, 0], torch.tensor([[0.25, 0.0], [-0.125, 0.0]]).double())
    # U₂₂ = a₁₂ - a₁₁ a₂₂ / a₂₁
    assert torch.equal(upper[1, 1], torch.tensor([[-0.5, 1.0], [0.25, -0.5]]).double())


@pytest.mark.parametrize("name", ["svd", "eig"])
def test_vectors_of_repeated_values_have_no_derivative(name: str) -> None:
    """They are not a function of the matrix there: nan or inf, never a plausible number."""
    function = getattr(torch.linalg, name)
    place = {"svd": 0, "eig": 1}[name]
    jac = jacfwd(lambda a: function(a)[place])(torch.eye(2, dtype=torch.float64))
    assert not jac.isfinite().all()


def test_values_at_repeated_values_move_by_their_vectors() -> None:
    """The derivative of a sum over repeated singular values or eigenvalues is defined."""
    x = torch.eye(3, dtype=torch.float64)
    for function in (torch.linalg.svdvals, torch.linalg.eigvals, torch.linalg.eigvalsh):
        (slope,) = vjp(lambda a, f=function: f(a).real.sum(), x)[1](x.new_ones(()))
        torch.testing.assert_close(slope, x)


def test_a_matrix_that_cannot_be_diagonalized_has_no_eigenvalue_derivative() -> None:
    """λ moves as the square root of the perturbation."""
    x = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    jac = jacfwd(torch.linalg.eigvals)(x)
    assert not jac.isfinite().all() or jac.abs().max() > 1e6


@pytest.mark.parametrize("upper", [False, True])
def test_cholesky_solve_below_forward_mode_of_torch_func_and_vmap(upper):
    """PyTorch's own forward derivative of it is wrong there."""

    def f(x):
        matrix = torch.outer(x, x.cos()) + torch.diag(x.abs() + 3)
        triangle = torch.linalg.cholesky(matrix @ matrix.mT, upper=upper)
        return torch.cholesky_solve(matrix, triangle, upper)

    x = torch.tensor([[0.3, -0.5], [0.8, 1.1]], dtype=torch.float64)
    for inner in (jacfwd, jacrev):
        for _ in range(3):
            found = torch.func.jacfwd(torch.func.vmap(inner(f)))(x)
            expected = torch.autograd.functional.jacobian(
                lambda x, inner=inner: torch.stack([inner(f)(row) for row in x]),
                x,
            )
            torch.testing.assert_close(found, expected)
