"""A user's module under strict checks: what the signatures of pushforward tell of a function's types."""

from typing import Any, assert_type

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

import pushforward as pf
from pushforward import distributed
from pushforward.scipy import Rates, ScalarFunction, least_squares, minimize, solve_ivp


def residuals(x: Tensor, scale: float, *, power: int = 2) -> Tensor:
    return (x * scale) ** power


def with_aux(x: Tensor) -> tuple[Tensor, str]:
    return x.sin(), "aux"


def tree(x: Tensor) -> dict[str, Tensor]:
    return {"sin": x.sin()}


x = torch.ones(3)

# Jacobians keep the parameters: the comments say what a checker must refuse.
J = pf.jacobian(residuals)(x, 2.0, power=3)
assert_type(J, Any)
pf.jacfwd(residuals)(x, "two")  # expect: error
pf.jacrev(residuals)(x, 2.0, exponent=3)  # expect: error
pf.hessian(residuals)(x)  # expect: error
pf.grad(residuals, argnums=(0,))(x, 2.0)
pf.grad_and_value(residuals)(x, scale=2.0)
pf.value_and_jacobian(residuals, output="csr")(x, 2.0)
pf.jacobian(residuals, output="cube")(x, 2.0)  # expect: error
pf.jacfwd(3)  # expect: error

# Products keep what the function returns.
assert_type(pf.jvp(residuals, (x, x), (x, x)), tuple[Tensor, Tensor])
assert_type(pf.jvp(with_aux, (x,), (x,), has_aux=True), tuple[Tensor, Tensor, str])
output, pullback = pf.vjp(tree, x)
assert_type(output, dict[str, Tensor])
cotangents: tuple[Any, ...] = pullback({"sin": x})
value, linear = pf.linearize(tree, x)
assert_type(value, dict[str, Tensor])
pushed: Any = linear(x)

# compile keeps both.
fast = pf.compile(residuals)
assert_type(fast(x, 2.0, power=3), Tensor)
fast(x, "two")  # expect: error

# Modules are functions, too.
network = nn.Linear(3, 2)
pf.jacfwd(network)(x)

# Operators and patterns.
operator = pf.jacobian_operator(residuals, x, 2.0)
assert_type(operator.shape, tuple[int, int])
assert_type(operator.to_dense(), Tensor)
pattern = pf.Pattern.from_matrix(torch.eye(3))
assert_type(pf.coloring(pattern).num_colors, int)

pf.spy(pattern)
assert_type(pf.explain(residuals, x, 2.0).rows[-1].operator, str)


# SciPy's solvers return what SciPy does.
def rates(t: Tensor, y: Tensor) -> Tensor:
    return -y * t


fitted = least_squares(residuals, [1.0, 2.0], args=(2.0,), output="csr")
least_squares(residuals, [1.0, 2.0], output="cube")  # expect: error
lowest = minimize(ScalarFunction(residuals), [1.0], args=(2.0,))
solution = solve_ivp(Rates(rates, compile="eager"), (0.0, 1.0), [1.0], method="BDF")


def shared(mesh: DeviceMesh) -> None:
    distributed.jacobian(residuals, mesh=mesh, share="rows")(x, 2.0)
    distributed.jacobian(residuals, mesh=mesh, share="cells")  # expect: error
    distributed.jacobian(residuals, share="rows")  # expect: error
    assert_type(distributed.gauss_newton_operator(residuals, x, 2.0, mesh=mesh).gradient, Tensor)
