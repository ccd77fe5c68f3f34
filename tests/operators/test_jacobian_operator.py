"""jacobian_operator: products with the Jacobian and its transpose, next to PyTorch's own Jacobians."""

import numpy as np
import pytest
import torch
from oracles import assert_close, central_jacobian
from torch import Tensor, nn

from pushforward import UnsupportedError, compile, jacfwd, jacobian, jacobian_operator, vmap

F64, C128 = torch.float64, torch.complex128


def rand(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def stencil(x):
    return x[1:] * x[:-1].sin() + x[1:] ** 2


def mixing(x):  # another shape, and axes
    return torch.stack([(x @ x.mT).tanh(), (x @ x.mT).exp() * 0.1])


def values(x):
    return torch.linalg.inv(x @ x.mT + torch.eye(3, dtype=x.dtype)).sum(0)


CASES = {
    "stencil": (stencil, (6,)),
    "axes": (mixing, (3, 2)),
    "a column": (lambda x: x.cos(), (4, 1)),
    "inverse": (values, (3, 5)),
    "number": (lambda x: (x**3).sum(), (5,)),
    "of a number": (lambda x: torch.stack([x, x**2, x.sin()]), ()),
    "identity": (lambda x: x, (3,)),
    "constant": (lambda x: torch.ones(2, dtype=F64), (3,)),
    "empty": (lambda x: x[:0], (3,)),
    "of nothing": (lambda x: x.sum()[None].expand(2), (0,)),
}


@pytest.fixture(params=CASES)
def case(request):
    func, shape = CASES[request.param]
    x = rand(*shape)
    J = jacobian_operator(func, x)
    expected = central_jacobian(func, x)
    return J, expected.reshape(J.shape)


def test_products_are_those_of_the_matrix(case):
    J, expected = case
    m, n = J.shape
    for _ in range(3):  # the third time by kernels
        v, w, columns, rows = rand(n), rand(m), rand(n, 4), rand(m, 3)
        assert_close(J @ v, expected @ v)
        assert_close(J @ columns, expected @ columns)
        for transposed in (J.T, J.mT, J.H, J.mH):
            assert transposed.shape == (n, m)
            assert_close(transposed @ w, expected.mT @ w)
            assert_close(transposed @ rows, expected.mT @ rows)
        assert_close(w @ J, w @ expected)
        assert_close(rows.mT @ J, rows.mT @ expected)


def test_the_matrix_itself_dense_and_sparse(case):
    J, expected = case
    assert_close(J.to_dense(), expected)
    assert J.to_csr().layout is torch.sparse_csr
    assert_close(J.to_csr().to_dense(), expected)
    assert_close(J.T.to_dense(), expected.mT)
    assert_close(J.T.to_csr().to_dense(), expected.mT)
    assert (J.dtype, J.device) == (F64, torch.device("cpu"))


def test_no_columns_and_no_rows_are_products_too():
    J = jacobian_operator(stencil, rand(6))
    assert (J @ rand(6, 0)).shape == (5, 0)
    assert (J.T @ rand(5, 0)).shape == (6, 0)


def test_a_product_is_a_tensor_of_its_own():
    J = jacobian_operator(lambda x: x, rand(3))
    v = rand(3)
    for product in (J @ v, J.T @ v):
        before = v.clone()
        product.add_(1)
        assert torch.equal(v, before)


def test_sparse_entries_are_those_of_the_structure():
    n = 50
    J = jacobian_operator(stencil, rand(n))
    found = J.to_csr()
    assert found.values().numel() == 2 * (n - 1)
    reference = jacobian(stencil, output="csr")(rand(n))
    assert torch.equal(found.col_indices(), reference.col_indices())


def test_the_function_is_called_once_and_its_value_kept():
    calls = []

    def f(x):
        calls.append(1)
        return {"y": x.sin(), "z": (x.sum(),)}

    x = rand(4)
    J = jacobian_operator(f, x)
    J @ rand(4), J.T @ rand(5), J.to_dense(), J.to_csr(), (J.T @ J) @ rand(4)
    assert len(calls) == 1
    assert torch.equal(J.value["y"], x.sin())
    assert torch.equal(J.value["z"][0], x.sum())


def trees(parameters, x):
    hidden = parameters["w"] @ x + parameters["b"]
    return {"h": hidden.tanh(), "s": (hidden.sum(), parameters["b"][:1] * x[0])}


def test_pytrees_are_one_vector_and_may_be_multiplied_as_they_are():
    parameters, x = {"w": rand(3, 2), "b": rand(3)}, rand(2)
    J = jacobian_operator(trees, parameters, x, argnums=(0, 1))
    assert J.shape == (5, 11)
    direction = ({"w": rand(3, 2), "b": rand(3)}, rand(2))
    _, expected = torch.func.jvp(trees, (parameters, x), direction)
    product = J @ direction
    assert set(product) == {"h", "s"}
    assert_close(product["h"], expected["h"])
    assert_close(product["s"][1], expected["s"][1])
    flat = J @ J.inputs.flatten(direction)
    assert torch.equal(flat, J.outputs.flatten(product))
    cotangent = {"h": rand(3), "s": (rand(), rand(1))}
    _, pull = torch.func.vjp(trees, parameters, x)
    by_parameters, by_x = J.T @ cotangent
    assert_close(by_parameters["w"], pull(cotangent)[0]["w"])
    assert_close(by_x, pull(cotangent)[1])
    again, _ = J.T @ (J @ direction)
    assert again["w"].shape == (3, 2)
    step = (J.T @ J).add_diagonal(0.1) @ direction
    assert step[0]["b"].shape == (3,)


def test_blocks_of_pytrees_stand_where_their_coordinates_are():
    parameters, x = {"w": rand(3, 2), "b": rand(3)}, rand(2)
    J = jacobian_operator(trees, parameters, x, argnums=(0, 1))
    columns = [J.outputs.flatten(J @ J.inputs.unflatten(e)) for e in torch.eye(11, dtype=F64)]
    assert_close(J.to_dense(), torch.stack(columns, 1))
    assert_close(J.to_csr().to_dense(), torch.stack(columns, 1))


def test_argnums_choose_as_in_jacobian():
    x, y = rand(3), rand(4)

    def f(x, y):
        return torch.outer(x, y).sum(0) * y

    for argnums in (0, 1, -1):
        expected = torch.func.jacrev(f, argnums % 2)(x, y)
        assert_close(jacobian_operator(f, x, y, argnums=argnums).to_dense(), expected)


def test_keywords_and_constants_are_passed_on():
    J = jacobian_operator(lambda p, *, k: p[0] * p[1] * k, (rand(3), 2.0), k=3)
    assert J.shape == (3, 3)
    assert_close(J.to_dense(), 6 * torch.eye(3, dtype=F64))
    product = J.T @ rand(3)
    assert J.inputs.unflatten(product)[1] is None


def test_dtypes_are_promoted():
    x, y = rand(3, dtype=torch.float32), rand(3)
    J = jacobian_operator(lambda x, y: x.double() * y, x, y, argnums=(0, 1))
    assert J.dtype == F64
    assert (J @ rand(6)).dtype == F64
    assert_close(J @ torch.arange(6), torch.arange(3) * y + torch.arange(3, 6) * x)
    single = jacobian_operator(torch.sin, x)
    assert (single @ rand(3)).dtype == torch.float32  # as linearize converts


# ---- Complex numbers ----


def holomorphic(z):
    return z[1:] * z[:-1] + z[1:].exp()


def mixed(z):  # complex and real results
    return z * z.conj().roll(1), z.abs() ** 2, (z.real * 2).sum()


def complex_matrix(func, z):
    """By PyTorch: a row for each number that comes out, a column for each real number that goes in."""
    parts = torch.view_as_real(z).reshape(-1) if z.is_complex() else z

    def of_parts(parts):
        given = torch.view_as_complex(parts.reshape(*z.shape, 2)) if z.is_complex() else parts
        found = func(given)
        found = found if isinstance(found, tuple) else (found,)
        return torch.cat([t.to(C128).reshape(-1) for t in found])

    real = torch.func.jacrev(lambda p: of_parts(p).real)(parts)
    imaginary = torch.func.jacrev(lambda p: of_parts(p).imag)(parts)
    return torch.complex(real, imaginary)


@pytest.mark.parametrize("func", [holomorphic, mixed, lambda z: z.abs(), lambda x: (1j * x).exp()])
@pytest.mark.parametrize("dtype", [C128, F64])
def test_complex_operators_are_matrices(func, dtype):
    z = rand(4, dtype=dtype)
    J = jacobian_operator(func, z)
    expected = complex_matrix(func, z)
    m, n = J.shape
    assert (m, n) == expected.shape
    v, w = rand(n, dtype=C128), rand(m, dtype=C128)
    columns, rows = rand(n, 3, dtype=C128), rand(m, 2, dtype=C128)
    assert_close(J @ v, expected @ v)
    assert_close(J @ v.real, expected @ v.real.to(C128))
    assert_close(J @ columns, expected @ columns)
    assert_close(J.H @ w, expected.mH @ w)
    assert_close(J.H @ rows, expected.mH @ rows)
    assert_close(J.T @ w, expected.mT @ w)
    assert_close(J.T.T @ v, expected @ v)
    assert_close(J.conj() @ v, expected.conj() @ v)
    assert_close((J.H @ J) @ v, expected.mH @ expected @ v)
    assert_close(J.to_dense(), expected)
    assert_close(J.to_csr().to_dense(), expected)
    assert_close(J.mT.to_dense(), expected.mT)
    assert_close(J.T.to_csr().to_dense(), expected.mT)
    assert_close((J.H @ J).to_csr().to_dense(), expected.mH @ expected)


def test_pytrees_of_complex_numbers_go_in():
    z = rand(3, dtype=C128)
    J = jacobian_operator(lambda p: (holomorphic(p[0]),), (z,))
    direction = (rand(3, dtype=C128),)
    _, expected = torch.func.jvp(holomorphic, (z,), direction)
    assert_close((J @ direction)[0], expected)


# ---- In company ----


@pytest.mark.parametrize(
    ("by_operator", "by_matrix"),
    [
        (lambda J, v, d: J @ v, lambda A, v, d: A @ v),
        (lambda J, v, d: J.T @ v, lambda A, v, d: A.mT @ v),
        (
            lambda J, v, d: (J.T @ J).add_diagonal(d) @ v,
            lambda A, v, d: A.mT @ (A @ v) + d * v,
        ),
        (lambda J, v, d: (d.sum() * J - J.T) @ v, lambda A, v, d: d.sum() * A @ v - A.mT @ v),
    ],
)
def test_autograd_reaches_vectors_point_and_parameters(by_operator, by_matrix):
    x, v, w, d = (rand(3).requires_grad_() for _ in range(4))

    def f(x):
        return (w * x).sin() * x.sum()

    given = (x, v, w, d)
    found = by_operator(jacobian_operator(f, x), v, d)
    expected = by_matrix(torch.func.jacrev(f)(x), v, d)
    assert_close(found, expected)
    slopes = torch.autograd.grad(found.square().sum(), given, allow_unused=True)
    by_torch = torch.autograd.grad(expected.square().sum(), given, allow_unused=True)
    for slope, reference in zip(slopes, by_torch, strict=True):
        assert (slope is None) == (reference is None)
        if slope is not None:
            assert_close(slope, reference)


def test_values_of_sparse_and_dense_results_are_differentiable():
    x = rand(4).requires_grad_()
    J = jacobian_operator(lambda x: x**3, x)
    (found,) = torch.autograd.grad(J.to_csr().values().sum(), x)
    assert_close(found, 6 * x)
    (found,) = torch.autograd.grad((J.T @ J).to_csr().values().sum(), x)
    assert_close(found, 36 * x**3)
    (found,) = torch.autograd.grad(J.to_dense().sum(), x)
    assert_close(found, 6 * x)


def test_operators_inside_transforms():
    x, v = rand(3), rand(3)
    found = jacfwd(lambda x: jacobian_operator(torch.sin, x) @ v)(x)
    assert_close(found, torch.diag(-x.sin() * v))
    batch, directions = rand(5, 3), rand(5, 3)
    found = vmap(lambda x, v: jacobian_operator(torch.sin, x) @ v)(batch, directions)
    assert_close(found, batch.cos() * directions)
    found = vmap(lambda x, v: jacobian_operator(torch.sin, x).T @ v)(batch, directions)
    assert_close(found, batch.cos() * directions)
    found = vmap(lambda x: jacobian_operator(torch.sin, x).to_dense())(batch)
    assert_close(found, torch.diag_embed(batch.cos()))
    found = torch.func.grad(lambda x: (jacobian_operator(torch.sin, x) @ v).sum())(x)
    assert_close(found, -x.sin() * v)
    with pytest.raises(UnsupportedError, match=r"jacobian_operator: to_csr: .*to_dense"):
        vmap(lambda x: jacobian_operator(torch.sin, x).to_csr())(batch)


def test_operators_are_compiled_with_what_uses_them():
    def gauss_newton(x, v):
        J = jacobian_operator(stencil, x)
        return (J.T @ J).add_diagonal(0.5) @ v

    x, v = rand(6), rand(6)
    fast = compile(gauss_newton, backend="eager")
    for _ in range(2):
        assert_close(fast(x, v), gauss_newton(x, v))
    blocks = compile(
        lambda x, y: jacobian_operator(lambda x, y: (x * y, x), x, y, argnums=(0, 1)).to_csr(),
        backend="eager",
    )
    assert_close(blocks(x, v).to_dense(), blocks.compiled.func(x, v).to_dense())


def test_a_module_and_its_parameters():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, parameters = rand(7, 3), dict(net.named_parameters())
    J = jacobian_operator(lambda p: torch.func.functional_call(net, p, (x,)), parameters)
    assert J.shape == (14, 26)
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    _, expected = torch.func.jvp(
        lambda p: torch.func.functional_call(net, p, (x,)), (parameters,), (tangents,)
    )
    assert_close(J @ tangents, expected)


def test_no_caller_state_is_changed():
    x = rand(4)
    before = x.clone()
    J = jacobian_operator(lambda x: x.mul_(2).sin(), x.clone())
    J = jacobian_operator(torch.sin, x)
    J @ rand(4)
    assert torch.equal(x, before)
    assert x.grad is None
    assert not x.requires_grad
    x.zero_()
    assert_close(J @ torch.ones(4, dtype=F64), before.cos())


# ---- SciPy's operators ----


def test_to_scipy_multiplies_arrays():
    from scipy.sparse.linalg import lsmr, svds

    x = rand(6)
    J = jacobian_operator(stencil, x)
    A, dense = J.to_scipy(), J.to_dense().numpy()
    v, w, columns = rand(6).numpy(), rand(5).numpy(), rand(6, 3).numpy()
    np.testing.assert_allclose(A @ v, dense @ v)
    np.testing.assert_allclose(A.T @ w, dense.T @ w)
    np.testing.assert_allclose(A @ columns, dense @ columns)
    np.testing.assert_allclose(A.H @ columns[:5], dense.T @ columns[:5])
    np.testing.assert_allclose(A @ v[:, None], dense @ v[:, None])
    assert A.dtype == np.float64
    solution = lsmr(A, w, atol=1e-12, btol=1e-12)[0]
    np.testing.assert_allclose(solution, np.linalg.lstsq(dense, w, rcond=None)[0], atol=1e-8)
    found = np.sort(svds(A, k=2)[1])
    np.testing.assert_allclose(found, np.sort(np.linalg.svd(dense)[1])[-2:])


def test_to_scipy_of_complex_operators():
    z = rand(4, dtype=C128)
    J = jacobian_operator(holomorphic, z)
    A, dense = J.to_scipy(), J.to_dense().numpy()
    w = rand(3, dtype=C128).numpy()
    np.testing.assert_allclose(A.H @ w, dense.conj().T @ w)
    np.testing.assert_allclose(A.T @ w, dense.T @ w)
    assert A.dtype == np.complex128


# ---- Errors ----


@pytest.mark.parametrize("bad", [(4,), (3, 2), (2, 2, 2), ()])
def test_vectors_of_another_length_are_refused(bad):
    J = jacobian_operator(lambda x: x[:2] ** 2, rand(2, 1)[:, 0])
    with pytest.raises(ValueError, match=r"LinearOperator: shape .*expected \(2,\), or \(2, k\)"):
        J @ rand(*bad)


def test_arrays_and_numbers_are_refused():
    J = jacobian_operator(torch.sin, rand(2))
    for bad in (np.ones(2), 2.0, None):
        with pytest.raises(TypeError, match=r"LinearOperator: right operand.*to_scipy"):
            J @ bad
    with pytest.raises(TypeError, match=r"LinearOperator: left operand of @: got ndarray"):
        np.ones(2) @ J


def test_pytrees_of_another_structure_are_refused():
    J = jacobian_operator(lambda p: p["a"], {"a": rand(2)})
    with pytest.raises(TypeError, match="Space: structure"):
        J @ {"b": rand(2)}
    with pytest.raises(ValueError, match=r"Space: shape: got \(3,\), expected \(2,\)"):
        J @ {"a": rand(3)}
    with pytest.raises(TypeError, match="Space: leaf: got float"):
        J @ {"a": 1.0}
    with pytest.raises(TypeError, match="Space: dtype"):
        J @ {"a": rand(2, dtype=C128)}
    with pytest.raises(ValueError, match="Space: shape"):
        J.inputs.unflatten(rand(3))
    with pytest.raises(TypeError, match=r"Space: dtype: got torch.complex128, expected real"):
        J.inputs.unflatten(rand(2, dtype=C128))


def test_what_cannot_be_differentiated_is_refused():
    with pytest.raises(TypeError, match=r"jacobian_operator: .*int64"):
        jacobian_operator(torch.abs, torch.arange(3))
    with pytest.raises(TypeError, match="jacobian_operator: func"):
        jacobian_operator(3, rand(3))
    with pytest.raises(ValueError, match=r"jacobian_operator: .*argnum=1"):
        jacobian_operator(torch.sin, rand(3), argnums=1)


def test_what_was_saved_must_not_be_written_to():
    w = rand(3)
    J = jacobian_operator(lambda x: x * w, rand(3))
    w.zero_()
    with pytest.raises(RuntimeError, match="in place"):
        J @ rand(3)
