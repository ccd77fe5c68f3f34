"""What SciPy calls: values and derivatives next to SciPy's own differences, what is computed once, errors."""

import threading

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.optimize import approx_fprime
from scipy.optimize._numdiff import approx_derivative
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor

import pushforward.scipy as ours
from pushforward import UnsupportedError

X = np.array([0.3, -1.2, 0.7, 2.0])


def residuals(x, scale=1.0):
    return torch.cat([1 - x[:-1], 10 * scale * (x[1:] - x[:-1] ** 2)])


def objective(x, *args):
    return residuals(x, *args).square().sum()


def by_differences(f, x, *args):
    return approx_derivative(f, x, method="3-point", args=args)


def dense(matrix):
    if isinstance(matrix, LinearOperator):
        return matrix @ np.eye(matrix.shape[1])
    return matrix.toarray() if scipy.sparse.issparse(matrix) else matrix


class Counted:
    """A function that counts its calls."""

    def __init__(self, func):
        self.func, self.calls = func, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.func(*args, **kwargs)


# ---- VectorFunction ----


@pytest.mark.parametrize("output", ["dense", "csr", "csc", "coo", "bsr", "operator"])
@pytest.mark.parametrize("compile", [False, "eager"])
def test_value_and_jacobian_in_every_form(output, compile):
    f = ours.VectorFunction(residuals, output=output, compile=compile)
    for x in (X, 2 * X, X - 1, X):
        np.testing.assert_allclose(f.fun(x), residuals(torch.from_numpy(x)).numpy())
        jac = f.jac(x)
        np.testing.assert_allclose(dense(jac), by_differences(f.fun, x), atol=1e-7)
    if output not in ("dense", "operator"):
        assert jac.format == output
        assert isinstance(jac, scipy.sparse.sparray)
        assert output == "bsr" or jac.nnz == 9
    if output == "operator":
        np.testing.assert_allclose(jac.T @ np.eye(6), dense(jac).T)
        assert aslinearoperator(jac) is jac


def test_weighted_hessian_for_constraints():
    weights = np.arange(6) + 1.0
    for output in ("dense", "csr", "operator"):
        f = ours.VectorFunction(residuals, output=output)
        expected = by_differences(lambda x, f=f: dense(f.jac(x)).T @ weights, X)
        np.testing.assert_allclose(dense(f.hess(X, weights)), expected, atol=1e-6)


def test_trees_and_fields_are_one_vector():
    f = ours.VectorFunction(lambda x: {"a": x.reshape(2, 2) ** 2, "b": (x.sum(), x[:1])})
    np.testing.assert_allclose(f.fun(X), [*X**2, X.sum(), X[0]])
    np.testing.assert_allclose(f.jac(X), by_differences(f.fun, X), atol=1e-7)
    number = ours.VectorFunction(lambda x: x.prod())
    assert number.fun(X).shape == (1,)
    assert number.jac(X).shape == (1, 4)


def test_arguments_are_passed_on_as_tensors_and_numbers():
    met = []

    def func(x, a, b, *, k):
        met.append((a, b, k))
        return x * a * b * k

    f = ours.VectorFunction(func)
    a, k = np.arange(4) + 1.0, torch.ones(4, dtype=torch.float64)
    np.testing.assert_allclose(f.fun(X, a, np.float64(2), k=k), 2 * X * a)
    np.testing.assert_allclose(f.jac(X, a, np.float64(2), k=k), np.diag(2 * a))
    assert isinstance(met[0][0], Tensor)
    assert type(met[0][1]) is float
    assert met[0][2] is k
    indices = ours.VectorFunction(lambda x, i: x[i])
    np.testing.assert_allclose(indices.jac(X, np.array([2, 0])), np.eye(4)[[2, 0]])


def test_lists_numbers_and_integers_are_points():
    f = ours.VectorFunction(lambda x: x**2)
    np.testing.assert_allclose(f.fun([1, 2]), [1.0, 4.0])
    np.testing.assert_allclose(f.jac([1, 2]), [[2, 0], [0, 4]])
    assert f.fun(np.array([1, 2], dtype=np.float32)).dtype == np.float64


def test_single_precision_inside_double_outside():
    met = []

    def func(x):
        met.append(x.dtype)
        return x.exp()

    f = ours.VectorFunction(func, dtype=torch.float32)
    value, jac = f.fun(X), f.jac(X)
    assert set(met) == {torch.float32}
    assert value.dtype == jac.dtype == np.float64
    np.testing.assert_allclose(value, np.exp(X), rtol=1e-6)
    np.testing.assert_allclose(jac, np.diag(np.exp(X)), rtol=1e-6)
    half = ours.VectorFunction(func, dtype=torch.bfloat16)
    np.testing.assert_allclose(half.fun(X), np.exp(X), rtol=2e-2)


def test_adapters_are_compiled_once():
    f = ours.ScalarFunction(objective, compile="eager")
    g = ours.VectorFunction(residuals, compile="eager")
    r = ours.Rates(oscillator, compile="eager")
    for number in range(12):
        x = X + number
        f.fun(x), f.jac(x), f.hess(x), f.hessp(x, X), f.hessp(x, x)
        g.fun(x), g.jac(x), g.hess(x, np.ones(6) * number)
        r.fun(0.1 * number, x[:2]), r.jac(0.1 * number, x[:2])
    for compiled in (f._both, f._hessian, f._product, g._both, g._hessian, r._jacobian):
        assert len(compiled.compiled.programs()) <= 1


# ---- What is computed once ----


@pytest.mark.parametrize("make", [ours.VectorFunction, ours.ScalarFunction])
def test_value_and_derivative_of_a_point_are_one_call(make):
    func = Counted(residuals if make is ours.VectorFunction else objective)
    f = make(func)
    for number in range(1, 6):
        x = X + number
        f.fun(x)
        assert func.calls == number
        derivative = f.jac(x)
        assert func.calls == number
        np.testing.assert_allclose(derivative, make(func.func).jac(x))


def test_values_alone_are_computed_where_derivatives_are_not_asked_for():
    f = ours.VectorFunction(residuals)
    computed = []
    both = f._both
    f._both = lambda *args: computed.append(1) or both(*args)
    for number in range(10):
        f.fun(X + number)
    assert len(computed) == 1  # the first
    f.jac(X)
    for number in range(10):  # few derivatives for many values, as Broyden's method asks
        f.fun(X + number)
    assert len(computed) == 2


def test_one_rejected_step_does_not_change_the_way():
    func = Counted(residuals)
    f = ours.VectorFunction(func)
    for number in range(8):
        f.fun(X - number - 10)
        f.jac(X - number - 10)
    before = func.calls
    f.fun(X)  # rejected
    f.fun(X + 1)
    f.jac(X + 1)
    assert func.calls == before + 2


def test_a_point_that_is_written_to_is_another_point():
    f, x = ours.VectorFunction(lambda x: x**2), X.copy()
    f.fun(x)
    x[0] = 5
    np.testing.assert_allclose(f.jac(x), np.diag(2 * x))


@pytest.mark.parametrize("make", [ours.VectorFunction, ours.ScalarFunction])
def test_other_arguments_are_another_point(make):
    f = make(lambda x, k: (k * x**2).sum())
    for first, second in (
        (2.0, 3.0),
        (np.array([2.0]), np.array([3.0])),
        (torch.tensor(2.0), torch.tensor(3.0)),
        ([2.0], [3.0]),
    ):
        if isinstance(first, list):
            f = make(lambda x, k: (k[0] * x**2).sum())
        f.fun(X, first)
        np.testing.assert_allclose(f.jac(X, second).reshape(-1), 6 * X)


@pytest.mark.parametrize("k", [np.array([2.0]), torch.tensor([2.0]), [2.0]])
def test_arguments_that_are_written_to_are_other_arguments(k):
    f = ours.VectorFunction(lambda x, k: k[0] * x**2)
    f.fun(X, k)
    k[0] = 3.0
    np.testing.assert_allclose(f.jac(X, k), np.diag(6 * X))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex128])
def test_tensors_that_numpy_writes_to_are_other_arguments(dtype):
    f = ours.VectorFunction(lambda x, k: k[0].abs() * x**2)
    k = torch.tensor([2.0, 1.0], dtype=dtype)
    shared = k.view(torch.int16).numpy() if dtype is torch.bfloat16 else k.numpy()
    for given in (k, k.conj()):
        f.fun(X, given)
        np.testing.assert_allclose(f.jac(X, given), np.diag(2 * X) * k[0].abs().item())
        f.fun(X, given)
        shared[0] = shared[1]
        np.testing.assert_allclose(f.jac(X, given), np.diag(2 * X))


def test_zeros_of_the_other_sign_are_other_arguments():
    f = ours.VectorFunction(lambda x, k: x / k)
    f.fun(X, 0.0)
    assert f.jac(X, -0.0)[0, 0] == -np.inf


@pytest.mark.parametrize("compile", [False, "eager"])
def test_what_the_function_reads_may_change_between_solves(compile):
    k = torch.tensor(2.0, dtype=torch.float64)
    f = ours.ScalarFunction(lambda x: k * (x**2).sum(), compile=compile)
    for number in (2.0, 3.0, 5.0):  # a solver ends at X, the next one begins there
        k.fill_(number)
        assert f.fun(X) == pytest.approx(number * (X**2).sum())
        np.testing.assert_allclose(f.jac(X), 2 * number * X)
        np.testing.assert_allclose(f.hessp(X, X), 2 * number * X)
        f.fun(X)


def test_results_are_the_callers_own():
    kept = torch.ones(4, dtype=torch.float64)
    f = ours.VectorFunction(lambda x: kept if x is None else kept + 0 * x)
    same = ours.VectorFunction(lambda x: x)
    for g, x in ((f, X), (same, X.copy())):
        before = x.copy()
        for found in (g.fun(x), g.jac(x), g.fun(x)):
            found[...] = 7
        np.testing.assert_allclose(x, before)
        np.testing.assert_allclose(g.jac(x), np.eye(4) if g is same else np.zeros((4, 4)))
    assert torch.equal(kept, torch.ones(4, dtype=torch.float64))


def test_functions_that_write_to_their_input_do_not_reach_scipys_arrays():
    f, x = ours.VectorFunction(lambda x: x.mul_(2).sin()), X.copy()
    for _ in range(3):
        np.testing.assert_allclose(f.fun(x), np.sin(2 * X))
        np.testing.assert_allclose(f.jac(x), np.diag(2 * np.cos(2 * X)))
    np.testing.assert_array_equal(x, X)


def test_parameters_that_require_grad_are_constants():
    w = torch.ones(4, dtype=torch.float64, requires_grad=True)
    f = ours.VectorFunction(lambda x: w * x)
    for _ in range(3):
        np.testing.assert_allclose(f.fun(X), X)
        np.testing.assert_allclose(f.jac(X), np.eye(4))
    assert w.grad is None


def test_functions_that_differentiate_inside():
    f = ours.VectorFunction(lambda x: torch.func.grad(objective)(x))
    np.testing.assert_allclose(f.jac(X), by_differences(f.fun, X), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("is_enabled", [False, True])
def test_grad_mode_is_what_it_was(is_enabled):
    def failing(x):
        raise KeyError

    with torch.set_grad_enabled(is_enabled):
        for f in (ours.VectorFunction(residuals), ours.ScalarFunction(objective)):
            f.fun(X), f.jac(X + 1)
            assert torch.is_grad_enabled() is is_enabled
        for f in (ours.VectorFunction(failing), ours.ScalarFunction(failing)):
            with pytest.raises(KeyError):
                f.jac(X)
            assert torch.is_grad_enabled() is is_enabled
        rates = ours.Rates(lambda t, y: failing(y))
        with pytest.raises(KeyError):
            rates.jac(0.0, X)
        assert torch.is_grad_enabled() is is_enabled


def test_negated_views_and_results_in_other_orders_become_arrays():
    def function(x):
        return torch.complex(x, x).conj().imag

    f = ours.VectorFunction(function)
    np.testing.assert_array_equal(f.fun(X), -X)
    np.testing.assert_array_equal(f.jac(X), -np.eye(4))


def test_threads_may_share_a_function():
    f = ours.ScalarFunction(objective)
    g = ours.VectorFunction(residuals)
    wrong = []

    def work(seed):
        points = np.random.default_rng(seed).normal(size=(40, 4))
        for x in [*points, X, X, X]:
            slope = 2 * by_hand(x).T @ residuals(torch.from_numpy(x)).numpy()
            f.fun(x)
            g.fun(x)
            if not np.allclose(f.jac(x), slope) or not np.allclose(g.jac(x), by_hand(x)):
                wrong.append(x)
            if not np.allclose(f.hessp(x, X), hessian_by_hand(x) @ X):
                wrong.append(x)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def by_hand(x):
    jac = np.zeros((6, 4))
    for i in range(3):
        jac[i, i] = -1
        jac[3 + i, i], jac[3 + i, i + 1] = -20 * x[i], 10
    return jac


def hessian_by_hand(x):
    found = 2 * by_hand(x).T @ by_hand(x)
    for i in range(3):
        found[i, i] -= 400 * (x[i + 1] - x[i] ** 2)
    return found


# ---- ScalarFunction ----


@pytest.mark.parametrize("compile", [False, "eager"])
def test_objective_with_gradient_hessian_and_products(compile):
    for output in ("dense", "csr", "csc", "operator"):
        f = ours.ScalarFunction(objective, output=output, compile=compile)
        for x in (X, X + 1, X):
            assert type(f.fun(x)) is float
            assert f.fun(x) == pytest.approx(objective(torch.from_numpy(x)).item())
            np.testing.assert_allclose(f.jac(x), approx_fprime(x, f.fun, 1e-8), rtol=1e-4)
            np.testing.assert_allclose(dense(f.hess(x)), hessian_by_hand(x))
            np.testing.assert_allclose(f.hessp(x, X), hessian_by_hand(x) @ X)


def test_products_at_one_point_record_once():
    func = Counted(objective)
    f = ours.ScalarFunction(func)
    f.fun(X)
    before = func.calls
    for number in range(5):
        f.hessp(X, X + number)
    assert func.calls == before + 1
    f.hessp(X + 1, X)
    assert func.calls == before + 2


def test_one_number_may_have_axes():
    f = ours.ScalarFunction(lambda x: (x**2).sum(0, keepdim=True))
    assert f.fun(X) == pytest.approx((X**2).sum())
    np.testing.assert_allclose(f.jac(X), 2 * X)
    np.testing.assert_allclose(f.hess(X), 2 * np.eye(4))


# ---- Rates, boundary problems and curves ----


def oscillator(t, y, k=1.0):
    return torch.stack([y[1], -k * y[0] * t.cos() + y[0] ** 3 / 6])


@pytest.mark.parametrize("output", ["dense", "csr", "csc", "operator"])
@pytest.mark.parametrize("compile", [False, "eager"])
def test_rates_and_their_jacobian(output, compile):
    r = ours.Rates(oscillator, output=output, compile=compile)
    for t in (0.0, 0.5, 1.5):
        y = np.array([t + 1, -t])
        np.testing.assert_allclose(r.fun(t, y, 2.0), [-t, -2 * y[0] * np.cos(t) + y[0] ** 3 / 6])
        expected = by_differences(lambda y, t=t: r.fun(t, y, 2.0), y)
        np.testing.assert_allclose(dense(r.jac(t, y, 2.0)), expected, atol=1e-7)


def test_times_are_tensors_and_can_be_compared():
    def switched(t, y):
        return -y if t < 1 else (y[0] * t, y[1] * 0)

    r = ours.Rates(switched)
    np.testing.assert_allclose(r.jac(0.5, [1.0, 2.0]), -np.eye(2))
    np.testing.assert_allclose(r.jac(2.0, [1.0, 2.0]), [[2, 0], [0, 0]])
    np.testing.assert_allclose(r.fun(2.0, [1.0, 2.0]), [2, 0])


def test_rates_of_complex_states():
    r = ours.Rates(lambda t, y: 1j * y**2 * t)
    y = np.array([1 + 2j, 0.5 - 1j])
    assert r.fun(2.0, y).dtype == np.complex128
    np.testing.assert_allclose(r.jac(2.0, y), np.diag(4j * y))
    with pytest.raises(UnsupportedError, match=r"Rates: .*not holomorphic.*view_as_real"):
        ours.Rates(lambda t, y: y.conj()).jac(0.0, y)
    with pytest.raises(UnsupportedError, match="'csc' of a complex state"):
        ours.Rates(lambda t, y: y, output="csc").jac(0.0, y)


def bvp(x, y, p=None):
    k = 1.0 if p is None else p[0]
    return torch.stack([y[1], -k * y[0].exp() * x, y[2] * y[0]])


def ends(ya, yb, p=None):
    found = [ya[0], yb[1] * yb[0], ya[2] - 1]
    return torch.stack(found if p is None else [*found, p[0] * ya[1] - 2])


@pytest.mark.parametrize("compile", [False, "eager"])
@pytest.mark.parametrize("p", [None, np.array([0.7])])
def test_boundary_problems(p, compile):
    b = ours.BoundaryProblem(bvp, ends, compile=compile)
    rng = np.random.default_rng(0)
    x, y = np.linspace(0, 1, 5), rng.normal(size=(3, 5))
    given = () if p is None else (p,)
    np.testing.assert_allclose(
        b.fun(x, y, *given),
        bvp(*map(torch.from_numpy, (x, y, *given))).numpy(),
    )
    of_y = b.fun_jac(x, y, *given)
    of_y, of_p = (of_y, None) if p is None else of_y
    for node in range(5):
        slope = by_differences(
            lambda v, n=node: b.fun(x[n : n + 1], v[:, None], *given)[:, 0], y[:, node]
        )
        np.testing.assert_allclose(of_y[:, :, node], slope, atol=1e-7)
    ya, yb = y[:, 0], y[:, -1]
    found = b.bc_jac(ya, yb, *given)
    np.testing.assert_allclose(
        found[0], by_differences(lambda v: b.bc(v, yb, *given), ya), atol=1e-7
    )
    np.testing.assert_allclose(
        found[1], by_differences(lambda v: b.bc(ya, v, *given), yb), atol=1e-7
    )
    if p is not None:
        for node in range(5):
            slope = by_differences(
                lambda v, n=node: b.fun(x[n : n + 1], y[:, n : n + 1], v)[:, 0], p
            )
            np.testing.assert_allclose(of_p[:, :, node], slope, atol=1e-7)
        np.testing.assert_allclose(
            found[2], by_differences(lambda v: b.bc(ya, yb, v), p), atol=1e-7
        )


def test_boundary_problems_of_complex_states():
    b = ours.BoundaryProblem(
        lambda x, y: (y[1], 1j * y[0] ** 2), lambda ya, yb: (ya[0] ** 2, yb[0] - 1j)
    )
    y = np.array([[1 + 1j, 2.0], [0.5, 1j]])
    found = b.fun_jac([0.0, 1.0], y)
    np.testing.assert_allclose(found[1, 0], 2j * y[0])
    np.testing.assert_allclose(b.bc_jac(y[:, 0], y[:, 1])[0], [[2 + 2j, 0], [0, 0]])
    bad = ours.BoundaryProblem(lambda x, y: y.conj(), lambda ya, yb: ya.abs())
    with pytest.raises(UnsupportedError, match="not holomorphic"):
        bad.fun_jac([0.0, 1.0], y)


def test_curves_with_derivatives_along_each_number():
    def model(t, a, b, c):
        return a * torch.exp(-b * t) + c

    curve, t = ours.Curve(model), np.linspace(0, 2, 7)
    numbers = np.array([2.0, 0.7, 0.1])
    np.testing.assert_allclose(curve.fun(t, *numbers), 2 * np.exp(-0.7 * t) + 0.1)
    expected = by_differences(lambda p: curve.fun(t, *p), numbers)
    np.testing.assert_allclose(curve.jac(t, *numbers), expected, atol=1e-7)
    constant = ours.Curve(lambda t, a: a)
    assert constant.jac(t, 1.0).shape == (1, 1)


# ---- Errors ----


@pytest.mark.parametrize(
    "make",
    [ours.VectorFunction, ours.ScalarFunction, ours.Rates, ours.Curve],
    ids=lambda make: make.__name__,
)
def test_what_is_no_function_is_refused(make):
    with pytest.raises(TypeError, match=f"{make.__name__}: func: got 3"):
        make(3)
    with pytest.raises(TypeError, match=f"{make.__name__}: dtype: got torch.int64"):
        make(torch.sin, dtype=torch.int64)
    if make is not ours.Curve:
        with pytest.raises(ValueError, match=f"{make.__name__}: output: got 'sparse'"):
            make(torch.sin, output="sparse")


def test_what_is_no_tensor_is_refused():
    for bad in (lambda x: x.detach().numpy(), lambda x: 2.0, lambda x: (x, 1.0)):
        f = ours.VectorFunction(bad)
        for call in (f.fun, f.jac):
            with pytest.raises(TypeError, match=r"VectorFunction: what the function returned: got"):
                call(X)
    with pytest.raises(TypeError, match=r"ScalarFunction: what the function returned: got float"):
        ours.ScalarFunction(lambda x: 1.0).fun(X)
    with pytest.raises(ValueError, match=r"ScalarFunction: shape .*\(4,\), expected one number"):
        ours.ScalarFunction(torch.sin).fun(X)
    with pytest.raises(ValueError, match=r"Rates: shape .*\(3,\), expected \(4,\)"):
        ours.Rates(lambda t, y: y[:3]).fun(0, X)
    b = ours.BoundaryProblem(lambda x, y: y[:1], lambda ya, yb: ya[:1])
    with pytest.raises(ValueError, match=r"BoundaryProblem: shape of what func returned"):
        b.fun([0.0, 1.0], np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"what bc returned: got \(1,\), expected \(2,\)"):
        b.bc([0.0, 1.0], [0.0, 1.0])
    with pytest.raises(TypeError, match="BoundaryProblem: bc"):
        ours.BoundaryProblem(torch.sin, None)


def test_complex_results_of_real_points_are_refused():
    f = ours.VectorFunction(lambda x: 1j * x)
    for call in (f.fun, f.jac):
        with pytest.raises(TypeError, match=r"VectorFunction: result's dtype.*view_as_real"):
            call(X)


def test_texts_are_no_points():
    with pytest.raises(TypeError, match="VectorFunction: an array's dtype"):
        ours.VectorFunction(torch.sin).fun(["a"])


def test_the_functions_own_errors_come_through():
    class OwnError(Exception):
        pass

    def bad(x):
        raise OwnError

    f = ours.VectorFunction(bad)
    for call in (f.fun, f.jac):
        with pytest.raises(OwnError):
            call(X)
