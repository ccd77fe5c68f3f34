"""Small systems of equations are taken apart: pivots are those of PyTorch, and so is what cannot be solved."""

import pytest
import torch
import torch.func as tf
from torch.fx.experimental.proxy_tensor import make_fx

import pushforward as pf
from pushforward.compiling import systems
from pushforward.compiling.straight import straight

f64 = torch.float64
# Diagonals of zeros, for which rows must change places in several orders.
MATRICES = [
    torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 3.0], [4.0, 1.0, 0.0]], dtype=f64),
    torch.tensor([[1e-9, 1.0, 2.0], [3.0, 4.0, -5.0], [-6.0, 7.0, 8.0]], dtype=f64),
    torch.tensor([[5.0, 1.0, 1.0], [1.0, 4.0, 1.0], [1.0, 1.0, 3.0]], dtype=f64),
    torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0], [1e-20, 0.0, 0.0]], dtype=f64),
]
B = torch.tensor([[1.0, -2.0], [0.5, 3.0], [2.0, 1.0]], dtype=f64)


def by_factors(a, left, adjoint):
    lu, pivots, _ = torch.linalg.lu_factor_ex(a)
    b = B if left else B.mT
    return torch.linalg.lu_solve(lu, pivots, b * a[0, 1], left=left, adjoint=adjoint)


def batched(a):
    both = torch.stack([a, a.mT + 0.1])
    return torch.linalg.solve(both, B * both[:, :1, :2])


SOLVED = {
    "vector": lambda a: torch.linalg.solve(a, B[:, 0] * a[0]),
    "matrix": lambda a: torch.linalg.solve(a, B),
    "from the right": lambda a: torch.linalg.solve(a, B.mT * a[:2], left=False),
    "batched": batched,
    "inverse": lambda a: torch.linalg.inv(a),
    "factors": lambda a: by_factors(a, True, False),
    "adjoint factors": lambda a: by_factors(a, True, True),
    "factors from the right": lambda a: by_factors(a, False, False),
    "adjoint factors from the right": lambda a: by_factors(a, False, True),
    "logarithm": lambda a: torch.stack(torch.linalg.slogdet(a)),
}
TRIANGULAR = {
    f"{'upper' if upper else 'lower'}, {'left' if left else 'right'}, {unit}": (
        lambda a, upper=upper, left=left, unit=unit: torch.linalg.solve_triangular(
            a, B if left else B.mT, upper=upper, left=left, unitriangular=unit
        )
    )
    for upper in (False, True)
    for left in (False, True)
    for unit in (False, True)
}
CHOLESKY = {
    f"upper: {upper}": lambda a, upper=upper: torch.linalg.cholesky(a @ a.mT, upper=upper)
    for upper in (False, True)
}


@pytest.mark.parametrize("program", SOLVED.values(), ids=SOLVED)
def test_solutions_and_their_derivatives(without_inductor, program):
    compiled, value = pf.compile(pf.jacrev(program)), pf.compile(program)
    for a in MATRICES:
        torch.testing.assert_close(value(a), program(a))
        torch.testing.assert_close(compiled(a), tf.jacrev(program)(a))


@pytest.mark.parametrize(
    "program", [*TRIANGULAR.values(), *CHOLESKY.values()], ids=[*TRIANGULAR, *CHOLESKY]
)
def test_triangular_matrices(without_inductor, program):
    a = MATRICES[2]
    torch.testing.assert_close(pf.compile(program)(a), program(a))
    torch.testing.assert_close(pf.compile(pf.jacrev(program))(a), tf.jacrev(program)(a))


def test_single_precision_and_second_derivatives(without_inductor):
    def program(a):
        return torch.linalg.solve(a, a[0].sin()).square().sum()

    compiled = pf.compile(pf.hessian(program))
    for a in MATRICES[:3]:
        torch.testing.assert_close(compiled(a), tf.hessian(program)(a))
    a = MATRICES[0].float()
    torch.testing.assert_close(pf.compile(pf.jacfwd(program))(a), tf.jacrev(program)(a))


SINGULAR = {
    "zero": torch.zeros(3, 3, dtype=f64),
    "equal rows": MATRICES[0][[0, 0, 2]],
    "a sum of rows": torch.arange(9.0, dtype=f64).reshape(3, 3),
}


def outcome(program, a):
    try:
        return program(a, B).tolist()
    except torch.linalg.LinAlgError as error:
        return str(error)


@pytest.mark.parametrize("a", SINGULAR.values(), ids=SINGULAR)
@pytest.mark.parametrize("program", [torch.linalg.solve, lambda a, b: torch.linalg.inv(a) @ b])
def test_what_pytorch_calls_singular_is(without_inductor, a, program):
    compiled = pf.compile(program)
    torch.testing.assert_close(compiled(MATRICES[0], B), program(MATRICES[0], B))
    assert outcome(compiled, a) == outcome(program, a)
    torch.testing.assert_close(compiled(MATRICES[1], B), program(MATRICES[1], B))


@pytest.mark.parametrize("a", SINGULAR.values(), ids=SINGULAR)
@pytest.mark.parametrize(
    "program", [torch.linalg.solve, lambda a, b: pf.jacfwd(torch.linalg.solve)(a, b)]
)
def test_graphs_without_inductor_raise_too(a, program):
    compiled = pf.compile(program, backend="eager")
    torch.testing.assert_close(compiled(MATRICES[0], B), program(MATRICES[0], B))
    with pytest.raises(torch.linalg.LinAlgError):
        compiled(a, B)


def test_determinants_of_singular_matrices(without_inductor):
    compiled = pf.compile(torch.linalg.det)
    for a in [*SINGULAR.values(), *MATRICES]:
        torch.testing.assert_close(compiled(a), torch.linalg.det(a))


def test_what_is_not_positive_definite(without_inductor):
    compiled = pf.compile(torch.linalg.cholesky)
    compiled(MATRICES[2])
    for a in (
        -MATRICES[2],
        torch.full((3, 3), float("nan"), dtype=f64),
        torch.ones(3, 3, dtype=f64),
    ):
        with pytest.raises(torch.linalg.LinAlgError):
            torch.linalg.cholesky(a)
        with pytest.raises(torch.linalg.LinAlgError):
            compiled(a)


@pytest.mark.parametrize("n", [2, 5, 8])
def test_errors_are_those_of_lapack(without_inductor, n):
    """Residuals stay as small as LAPACK's for ill-conditioned matrices, too."""
    compiled = pf.compile(torch.linalg.solve)
    generator = torch.Generator().manual_seed(n)
    places = torch.arange(n, dtype=f64)
    hilbert = 1 / (1 + places[:, None] + places)
    for exponent in (0, 4, 8, 11):
        left, right = (
            torch.linalg.qr(torch.randn(n, n, dtype=f64, generator=generator))[0] for _ in range(2)
        )
        scales = torch.logspace(0, -exponent, n, dtype=f64)
        for a in (left * scales @ right, hilbert, hilbert * scales, scales[:, None] * left):
            b = torch.randn(n, 3, dtype=f64, generator=generator)
            x, expected = compiled(a, b), torch.linalg.solve(a, b)
            residuals = [
                (a @ y - b).abs().max() / (a.abs().max() * y.abs().max()) for y in (x, expected)
            ]
            assert residuals[0] <= 4 * residuals[1] + 1e-15


check = torch.ops.aten._linalg_check_errors


def test_many_unknowns_and_pivots_that_are_asked_for_are_left_to_pytorch():
    n = systems.MAX_UNKNOWNS + 1
    for program, size in [
        (lambda a: [torch.linalg.inv(a)], n),
        (lambda a: [torch.linalg.lu_factor(a)[1]], 3),
        (lambda a: [torch.linalg.solve_ex(a, a)[1]], 3),
        (lambda a: [a, check(a[0].int(), "solve", is_matrix=False)][:1], 3),
    ]:
        a = torch.eye(size, dtype=f64)
        graph = make_fx(program, tracing_mode="fake")(a)
        assert straight(graph, [a]) is None


def test_not_a_number_comes_out_as_one(without_inductor):
    compiled = pf.compile(lambda a: torch.linalg.solve(a, B))
    a = MATRICES[0].clone()
    a[0, 0] = torch.nan
    assert compiled(a).isnan().any()


def test_autograd_follows(without_inductor):
    compiled = pf.compile(pf.jacfwd(SOLVED["matrix"]))
    a = MATRICES[0].clone().requires_grad_()
    (found,) = torch.autograd.grad(compiled(a).sin().sum(), a)
    (expected,) = torch.autograd.grad(tf.jacrev(SOLVED["matrix"])(a).sin().sum(), a)
    torch.testing.assert_close(found, expected)
