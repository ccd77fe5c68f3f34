"""``scipy.integrate`` under its own names: the functions are of tensors, and derivatives come along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy import integrate

from pushforward.compiling.backends import Backend
from pushforward.errors import ArgumentValueError, message
from pushforward.scipy.arrays import Form
from pushforward.scipy.boundary_problem import BoundaryProblem
from pushforward.scipy.given import adapted, refuse, start
from pushforward.scipy.rates import Rates

IMPLICIT = (integrate.Radau, integrate.BDF, integrate.LSODA)


def solve_ivp(
    fun: Callable[..., Any] | Rates,
    t_span: Any,
    y0: Any,
    method: Any = "RK45",
    *,
    args: tuple[Any, ...] | None = None,
    output: Form = "dense",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    compile: bool | Backend = False,
    **options: Any,
) -> Any:
    """Call ``scipy.integrate.solve_ivp`` with rates computed by PyTorch, and their Jacobian for implicit methods.

    Args:
        fun: The rates ``fun(t, y, *args)``, as in `Rates`; or one of these, made and compiled once.
        t_span: As in SciPy.
        y0: As in SciPy; a tensor will do.
        method: As in SciPy. ``'Radau'``, ``'BDF'`` and ``'LSODA'`` get a Jacobian.
        args: Further arguments of ``fun``; arrays come as tensors.
        output: The form of the Jacobian, as in `VectorFunction`; ``'csc'`` for large systems.
        dtype: As in `VectorFunction`.
        device: As in `VectorFunction`.
        compile: As in `VectorFunction`.
        **options: Those of SciPy but ``jac``, ``jac_sparsity``, ``vectorized``, ``lband`` and ``uband``.

    Returns:
        What SciPy returns.

    Raises:
        TypeError: As `Rates`.
        ValueError: One of these is given, or ``output`` is none that the method can solve with; as `Rates`, and as
            SciPy.

    Example:
        >>> solution = solve_ivp(lambda t, y: -y, (0, 1), [1.0], method="BDF", rtol=1e-8)
        >>> float(solution.y[0, -1].round(4))
        0.3679
    """
    name = "solve_ivp"
    refuse(name, options, "jac", "jac_sparsity", "vectorized", "lband", "uband")
    r = adapted(Rates, name, fun, output=output, dtype=dtype, device=device, compile=compile)
    kind = getattr(integrate, method, method) if isinstance(method, str) else method
    if isinstance(kind, type) and issubclass(kind, IMPLICIT):
        output = r.output
        if output == "operator" or (output != "dense" and issubclass(kind, integrate.LSODA)):
            raise ArgumentValueError(
                message(
                    name,
                    "output",
                    f"{output!r} with method {kind.__name__}",
                    "a matrix that it can factorize",
                    "Use 'csc' with 'BDF' and 'Radau', and 'dense' with 'LSODA'.",
                )
            )
        options["jac"] = r.jac
    return integrate.solve_ivp(r.fun, t_span, start(y0), method=method, args=args, **options)


def solve_bvp(
    fun: Callable[..., Any],
    bc: Callable[..., Any],
    x: Any,
    y: Any,
    p: Any = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    compile: bool | Backend = False,
    **options: Any,
) -> Any:
    """Call ``scipy.integrate.solve_bvp`` with rates and conditions computed by PyTorch, and all their derivatives.

    Args:
        fun: The rates ``fun(x, y)`` or ``fun(x, y, p)`` at all nodes, as in `BoundaryProblem`.
        bc: The conditions ``bc(ya, yb)`` or ``bc(ya, yb, p)``, as in `BoundaryProblem`.
        x: As in SciPy; a tensor will do, here and below.
        y: As in SciPy.
        p: As in SciPy.
        dtype: As in `VectorFunction`.
        device: As in `VectorFunction`.
        compile: As in `VectorFunction`.
        **options: Those of SciPy but ``fun_jac`` and ``bc_jac``.

    Returns:
        What SciPy returns.

    Raises:
        TypeError: As `BoundaryProblem`.
        ValueError: ``fun_jac`` or ``bc_jac`` is given; as `BoundaryProblem`, and as SciPy.

    Example:
        >>> x = torch.linspace(0, 1, 5)
        >>> bending = solve_bvp(
        ...     lambda x, y: (y[1], -torch.exp(y[0])), lambda ya, yb: (ya[0], yb[0]), x, torch.zeros(2, 5)
        ... )
        >>> float(bending.sol(0.5)[0].round(3))
        0.141
    """
    refuse("solve_bvp", options, "fun_jac", "bc_jac")
    b = BoundaryProblem(fun, bc, dtype=dtype, device=device, compile=compile, name="solve_bvp")
    given = (b.fun, b.bc, start(x), start(y), None if p is None else start(p))
    return integrate.solve_bvp(*given, fun_jac=b.fun_jac, bc_jac=b.bc_jac, **options)
