"""SciPy's solvers under our names: the same solutions as with differences, in fewer calls."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import integrate, optimize

import pushforward.scipy as ours


def residuals(x):
    return torch.cat([1 - x[:-1], 10 * (x[1:] - x[:-1] ** 2)])


def objective(x):
    return residuals(x).square().sum()


def of_arrays(func):
    return lambda *args: func(*map(torch.as_tensor, args)).numpy()


class Counted:
    def __init__(self, func):
        self.func, self.calls, self.points = func, 0, []

    def __call__(self, *args):
        self.calls += 1
        self.points.append(args[0])
        return self.func(*args)


START = np.array([-1.2, 1.0, 0.5])


@pytest.mark.parametrize("output", ["dense", "csr", "operator"])
@pytest.mark.parametrize("compile", [False, "eager"])
def test_least_squares(output, compile):
    f = Counted(residuals)
    found = ours.least_squares(f, START, output=output, compile=compile, xtol=1e-12)
    np.testing.assert_allclose(found.x, 1, atol=1e-6)
    if not compile:
        assert f.calls <= found.nfev + 1
    by_differences = Counted(of_arrays(residuals))
    assert found.cost < 1e-12
    optimize.least_squares(by_differences, START)
    assert compile or f.calls < by_differences.calls or output != "dense"


@pytest.mark.parametrize(
    ("method", "loss"),
    [("trf", "linear"), ("trf", "soft_l1"), ("dogbox", "cauchy"), ("lm", "linear")],
)
def test_least_squares_with_options_of_scipys(method, loss):
    def target(x, t, k, *, shift):
        return k * torch.exp(-x[0] * t) + x[1] - shift

    t = np.linspace(0, 1, 10)
    shift = 2 * torch.exp(torch.tensor(-1.5 * t))
    found = ours.least_squares(
        target,
        [0.0, 0.0],
        args=(t, 2.0),
        kwargs={"shift": shift},
        method=method,
        loss=loss,
    )
    np.testing.assert_allclose(found.x, [1.5, 0], atol=1e-6)


@pytest.mark.parametrize("method", ["hybr", "lm", "krylov", "broyden1"])
def test_root(method):
    def f(x, k):
        return torch.stack([x[0] + k * (x[0] - x[1]) ** 3 - 1, k * (x[1] - x[0]) ** 3 + x[1]])

    found = ours.root(f, torch.tensor([0.5, 0.2]), args=(0.5,), method=method)
    assert found.success
    np.testing.assert_allclose(found.x, [0.8411639, 0.1588361], atol=1e-5)


def test_root_takes_our_jacobian():
    f = Counted(lambda x: x**3 + x + torch.arange(len(x)) - 2)
    found = ours.root(f, np.ones(20))
    by_differences = Counted(of_arrays(f.func))
    expected = optimize.root(by_differences, np.ones(20))
    np.testing.assert_allclose(found.x, expected.x, atol=1e-9)
    assert f.calls < by_differences.calls - 15


@pytest.mark.parametrize(("method", "calls"), [("hybr", 2), ("lm", 1)])
def test_root_evaluates_the_start_once(method, calls):
    """SciPy's own calls, for shapes, are answered by what was computed; ``hybr`` asks for the Jacobian apart."""
    f = Counted(lambda x, a: x**2 - a)
    found = ours.root(f, [2.0, 3.0], args=(3.0,), method=method)
    np.testing.assert_allclose(found.x, 3**0.5)
    begun = [tuple(x.tolist()) for x in f.points].count((2.0, 3.0))
    assert begun == calls


METHODS = [
    None, "Nelder-Mead", "Powell", "CG", "BFGS", "Newton-CG", "L-BFGS-B", "TNC", "COBYLA", "SLSQP", "trust-constr",
    "dogleg", "trust-ncg", "trust-exact", "trust-krylov",
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_minimize_by_every_method(method):
    options = {"maxiter": 5000} if method in ("Nelder-Mead", "COBYLA", "Powell") else {}
    found = ours.minimize(bowl, START, method=method, options=options)
    np.testing.assert_allclose(found.x, SOLUTION, atol=2e-3)


def bowl(x):
    return (x - 1).square().sum() + (x**4).sum() / 4 + x.prod() / 10


SOLUTION = optimize.minimize(lambda x: bowl(torch.from_numpy(x)).item(), np.ones(3), tol=1e-12).x


@pytest.mark.parametrize(
    ("method", "output"),
    [
        *[
            (method, "dense")
            for method in ("Newton-CG", "trust-ncg", "trust-exact", "trust-krylov")
        ],
        *[("trust-constr", output) for output in ("dense", "csr", "operator")],
        ("Newton-CG", "csr"),
        ("Newton-CG", "operator"),
    ],
)
def test_minimize_with_a_hessian_of_every_form(method, output):
    found = ours.minimize(bowl, START, method=method, output=output)
    np.testing.assert_allclose(found.x, SOLUTION, atol=1e-4)


def test_minimize_by_a_method_of_the_callers():
    met = {}

    def method(fun, x0, args, jac, hess, hessp, **options):
        met.update(slope=jac(x0), matrix=hess(x0), product=hessp(x0, x0))
        return optimize.OptimizeResult(x=x0, fun=fun(x0))

    ours.minimize(bowl, START, method=method)
    np.testing.assert_allclose(met["matrix"] @ START, met["product"])


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("trust-constr", {}),
        ("trust-constr", {"output": "csr"}),
        ("SLSQP", {"hess": optimize.BFGS()}),
    ],
)
def test_nonlinear_constraints(method, options):
    disk = ours.NonlinearConstraint(lambda x: (x**2).sum(), 0, 1, **options)
    found = ours.minimize(objective, [0.1, 0.1], method=method, constraints=disk)
    expected = optimize.minimize(
        lambda x: objective(torch.from_numpy(x)).item(),
        [0.1, 0.1],
        method="SLSQP",
        constraints=optimize.NonlinearConstraint(lambda x: (x**2).sum(), 0, 1),
    )
    np.testing.assert_allclose(found.x, expected.x, atol=1e-3)


@pytest.mark.parametrize("p0", [None, [1.0, 1.0, 0.0]])
@pytest.mark.parametrize("options", [{}, {"bounds": (-1, 9)}, {"sigma": np.full(30, 0.5)}])
def test_curve_fit(p0, options):
    def model(t, a, b, c):
        return a * torch.exp(-b * t) + c

    t = torch.linspace(0, 3, 30, dtype=torch.float64)
    torch.manual_seed(0)
    seen = model(t, 2.5, 1.3, 0.5) + 0.05 * torch.randn(30)
    found, covariance = ours.curve_fit(model, t, seen, p0, **options)

    def by_numpy(t, a, b, c):
        return a * np.exp(-b * t) + c

    expected, expected_covariance = optimize.curve_fit(
        by_numpy, t.numpy(), seen.numpy(), p0, **options
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(covariance, expected_covariance, rtol=1e-3)


def robertson(t, y, k=1e4):
    a, b, c = y
    slow, fast = -0.04 * a + k * b * c, 3e7 * b * b
    return torch.stack([slow, -slow - fast, fast])


@pytest.mark.parametrize("method", ["RK45", "BDF", "Radau", "LSODA", integrate.BDF])
@pytest.mark.parametrize("compile", [False, "eager"])
def test_solve_ivp(method, compile):
    end = 0.01 if method == "RK45" else 100.0
    given = {"method": method, "rtol": 1e-8, "atol": 1e-10, "args": (2e4,)}
    found = ours.solve_ivp(robertson, (0, end), [1, 0, 0], compile=compile, **given)
    assert found.success
    by_hand = integrate.solve_ivp(of_arrays(robertson), (0, end), [1, 0, 0], **given)
    np.testing.assert_allclose(found.y[:, -1], by_hand.y[:, -1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("output", ["dense", "csr", "csc"])
@pytest.mark.parametrize("method", ["BDF", "Radau"])
def test_solve_ivp_with_sparse_jacobians(output, method):
    def heat(t, u):
        return 400 * (u.roll(1) - 2 * u + u.roll(-1)) - u**3

    f = Counted(heat)
    start = np.sin(2 * np.pi * np.arange(50) / 50)
    found = ours.solve_ivp(f, (0, 1), start, method=method, output=output)
    by_differences = Counted(of_arrays(heat))
    expected = integrate.solve_ivp(by_differences, (0, 1), start, method=method)
    np.testing.assert_allclose(found.y[:, -1], expected.y[:, -1], atol=1e-5)
    assert f.calls < by_differences.calls


def test_solve_ivp_with_events_and_complex_states():
    def falling(t, y):
        return y[1], torch.full_like(t, -9.81)

    def ground(t, y):
        return y[0]

    ground.terminal = True
    found = ours.solve_ivp(falling, (0, 5), [10.0, 0.0], method="Radau", events=ground)
    assert found.t_events[0][0] == pytest.approx((20 / 9.81) ** 0.5, rel=1e-4)
    turned = ours.solve_ivp(lambda t, y: 1j * y, (0, 1), [1 + 0j], method="BDF", rtol=1e-8)
    assert turned.y[0, -1] == pytest.approx(np.exp(1j), rel=1e-5)


def test_solve_bvp_with_and_without_parameters():
    x = np.linspace(0, 1, 9)
    calls = Counted(lambda x, y: (y[1], -torch.exp(y[0])))
    found = ours.solve_bvp(calls, lambda ya, yb: (ya[0], yb[0]), x, np.zeros((2, 9)), tol=1e-8)
    assert found.success
    assert found.sol(0.5)[0] == pytest.approx(0.14053921, abs=1e-6)

    def waves(x, y, p):  # of a string: y'' = -k² y
        return torch.stack([y[1], -(p[0] ** 2) * y[0]])

    def ends(ya, yb, p):
        return torch.stack([ya[0], yb[0], ya[1] - p[0]])

    y = np.zeros((2, 9))
    y[0, [2, 6]] = 1, -1
    for compile in (False, "eager"):
        found = ours.solve_bvp(waves, ends, x, y, p=[6.0], compile=compile)
        assert found.success
        assert found.p[0] == pytest.approx(2 * np.pi, rel=1e-4)


def test_adapters_are_taken_as_they_are():
    f = ours.VectorFunction(residuals, compile="eager")
    for _ in range(2):
        np.testing.assert_allclose(ours.least_squares(f, START).x, 1, atol=1e-6)
    assert ours.root(ours.VectorFunction(lambda x: x**2 - 2), [1.0]).success
    g = ours.ScalarFunction(bowl)
    np.testing.assert_allclose(ours.minimize(g, START).x, SOLUTION, atol=1e-4)
    r = ours.Rates(robertson, output="csc")
    assert ours.solve_ivp(r, (0, 1), [1, 0, 0], method="BDF").success
    with pytest.raises(ValueError, match=r"solve_ivp: output: got 'csc' with method LSODA"):
        ours.solve_ivp(r, (0, 1), [1, 0, 0], method="LSODA")
    with pytest.raises(ValueError, match=r"least_squares: output: got 'csr' beside a Vector"):
        ours.least_squares(f, START, output="csr")


def test_derivatives_of_the_callers_are_refused():
    for call, option in (
        (lambda **o: ours.least_squares(residuals, START, **o), "jac"),
        (lambda **o: ours.root(residuals, START, **o), "jac"),
        (lambda **o: ours.minimize(bowl, START, **o), "hess"),
        (lambda **o: ours.curve_fit(lambda x, a: a * x, START, START, **o), "jac"),
        (lambda **o: ours.solve_ivp(robertson, (0, 1), START, **o), "jac_sparsity"),
        (lambda **o: ours.solve_ivp(robertson, (0, 1), START, **o), "lband"),
        (lambda **o: ours.solve_bvp(robertson, robertson, START, START, **o), "fun_jac"),
        (lambda **o: ours.NonlinearConstraint(residuals, 0, 1, **o), "jac"),
    ):
        with pytest.raises(ValueError, match=rf"\w+: {option}: got '2-point', expected none"):
            call(**{option: "2-point"})
    with pytest.raises(ValueError, match=r"solve_ivp: output: got 'operator' with method BDF"):
        ours.solve_ivp(robertson, (0, 1), [1, 0, 0], method="BDF", output="operator")
    with pytest.raises(ValueError, match=r"NonlinearConstraint: output: got 'operator'"):
        ours.NonlinearConstraint(residuals, 0, 1, output="operator")


def test_errors_name_the_solver():
    with pytest.raises(TypeError, match="minimize: what the function returned: got float"):
        ours.minimize(lambda x: 1.0, START)
    with pytest.raises(TypeError, match="least_squares: func"):
        ours.least_squares(None, START)


# ---- Imports ----


def test_pushforward_alone_imports_no_scipy():
    code = (
        "import sys, pushforward; print('scipy' in sys.modules, 'pushforward.scipy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_without_scipy_an_error_says_how_to_get_it():
    code = """
import sys
sys.modules["scipy"] = None
try:
    import pushforward.scipy
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingPackageError pushforward.scipy: import: got no package")
    assert "pip install 'pushforward[scipy]'" in done.stdout
