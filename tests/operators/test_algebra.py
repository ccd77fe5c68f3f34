"""The algebra of operators: random expressions of them, next to the same expressions of matrices."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from pushforward import LinearOperator, gauss_newton_operator, hessian_operator, jacobian_operator

F64, C128 = torch.float64, torch.complex128
SIZE = 4


def leaves() -> list[tuple[LinearOperator, Tensor]]:
    """Operators of 4 × 4, each with its matrix by PyTorch."""
    torch.manual_seed(0)
    x, z = torch.randn(SIZE, dtype=F64), torch.randn(SIZE, dtype=F64)

    def f(x):
        return x.roll(1) * x.sin() + x.sum()

    def g(x):
        return (1j * x).exp() * x.roll(1)

    def loss(x):
        return (x.roll(1) * x**2).sum()

    by_parts = [torch.func.jacrev(lambda x, p=p: getattr(g(x), p))(z) for p in ("real", "imag")]
    jac = torch.func.jacrev(f)(x)
    return [
        (jacobian_operator(f, x), jac),
        (jacobian_operator(g, z), torch.complex(*by_parts)),
        (hessian_operator(loss, x), torch.func.hessian(loss)(x)),
        (gauss_newton_operator(f, x), jac.mT @ jac),
    ]


LEAVES = leaves()
NUMBERS = st.sampled_from([2, -0.5, 1 - 2j, torch.tensor(3.0), torch.tensor(0.5, dtype=C128)])
DIAGONALS = st.sampled_from(
    [1.5, torch.tensor(0.1), torch.arange(SIZE), torch.ones(SIZE, dtype=F64) * 2]
)


def diagonal(d) -> Tensor:
    return torch.diag(torch.as_tensor(d, dtype=F64).expand(SIZE))


def expressions(inner):
    both = st.tuples(inner, inner)
    return st.one_of(
        both.map(lambda p: (p[0][0] @ p[1][0], p[0][1].to(C128) @ p[1][1].to(C128))),
        both.map(lambda p: (p[0][0] + p[1][0], p[0][1] + p[1][1])),
        both.map(lambda p: (p[0][0] - p[1][0], p[0][1] - p[1][1])),
        st.tuples(NUMBERS, inner).map(lambda p: (p[0] * p[1][0], p[0] * p[1][1])),
        st.tuples(inner, NUMBERS).map(lambda p: (p[0][0] / p[1], p[0][1] / p[1])),
        st.tuples(inner, DIAGONALS).map(
            lambda p: (p[0][0].add_diagonal(p[1]), p[0][1] + diagonal(p[1]))
        ),
        inner.map(lambda p: (-p[0], -p[1])),
        inner.map(lambda p: (p[0].T, p[1].mT)),
        inner.map(lambda p: (p[0].mH, p[1].mH)),
        inner.map(lambda p: (p[0].conj(), p[1].conj())),
    )


def assert_same(found: Tensor, expected: Tensor) -> None:
    scale = 1 + expected.abs().max()
    assert found.shape == expected.shape
    assert (found.to(C128) - expected.to(C128)).abs().max() <= 1e-12 * scale


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.sampled_from(LEAVES), expressions, max_leaves=6), st.booleans())
def test_expressions_of_operators_are_those_of_matrices(pair, is_complex):
    operator, matrix = pair
    dtype = C128 if is_complex else F64
    v, columns = torch.randn(SIZE, dtype=dtype), torch.randn(SIZE, 3, dtype=dtype)
    matrix = matrix.to(C128)
    assert_same(operator @ v, matrix @ v.to(C128))
    assert_same(operator @ columns, matrix @ columns.to(C128))
    assert_same(operator.T @ v, matrix.mT @ v.to(C128))
    assert_same(operator.H @ columns, matrix.mH @ columns.to(C128))
    assert_same(v @ operator, v.to(C128) @ matrix)
    assert_same(operator.to_dense(), matrix)
    assert_same(operator.to_csr().to_dense(), matrix)
    assert operator.to_dense().dtype == operator.dtype


def test_operators_print_their_shape():
    operator = LEAVES[0][0]
    assert repr(operator) == "JacobianOperator(4×4, torch.float64)"
    assert repr(operator.T @ operator) == "Product(4×4, torch.float64)"
    assert repr(operator.inputs) == "Space(4: (4,))"


def test_transposing_twice_gives_the_operator_itself():
    real, complex_one, symmetric, _ = (operator for operator, _ in LEAVES)
    assert real.T.T is real
    assert complex_one.mH.mH is complex_one
    assert complex_one.conj().conj() is complex_one
    assert symmetric.T is symmetric


def test_shapes_that_do_not_fit_are_refused():
    wide = jacobian_operator(lambda x: x[:2], torch.zeros(4))
    with pytest.raises(ValueError, match=r"LinearOperator: operands of @: got Jac.*4.*and Jac"):
        wide @ wide
    with pytest.raises(ValueError, match=r"LinearOperator: operands of \+"):
        wide + wide.T
    with pytest.raises(ValueError, match=r"add_diagonal adds to: got \(2, 4\), expected a square"):
        wide.add_diagonal(1)
    with pytest.raises(ValueError, match=r"diagonal's shape: got \(3,\), expected \(\), or \(4,\)"):
        (wide.T @ wide).add_diagonal(torch.ones(3))
    with pytest.raises(TypeError, match=r"diagonal: got ndarray, expected a number or a tensor"):
        (wide.T @ wide).add_diagonal(np.ones(4))
    with pytest.raises(TypeError, match=r"layout of the right operand.*sparse_coo.*to_dense"):
        wide @ torch.ones(4).to_sparse()
    for bad in (torch.ones(2), "a", None):
        with pytest.raises(TypeError):
            wide * bad
        with pytest.raises(TypeError):
            wide + bad
        with pytest.raises(TypeError):
            wide - bad


def test_numbers_of_numpy_are_numbers():
    J = jacobian_operator(torch.sin, torch.zeros(3))
    for factor in (np.float64(2), np.int64(2), np.float32(2)):
        for product in (factor * J, J * factor, J / (1 / factor)):
            assert type(product @ torch.ones(3)) is Tensor
            assert torch.equal(product @ torch.ones(3), 2 * torch.ones(3))
        assert torch.equal(J.add_diagonal(factor) @ torch.ones(3), 3 * torch.ones(3))


def test_single_precision_stays_single():
    J = jacobian_operator(torch.sin, torch.randn(3))
    G = (2 * J.T @ J).add_diagonal(0.5) / 3
    assert G.dtype == torch.float32
    assert (G @ torch.randn(3)).dtype == torch.float32
    assert G.to_csr().dtype == torch.float32
