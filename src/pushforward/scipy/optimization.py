"""``scipy.optimize`` under its own names: the function is one of tensors, and derivatives come along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy import optimize

from pushforward.compiling.backends import Backend
from pushforward.errors import ArgumentValueError, message
from pushforward.scipy.arrays import Form
from pushforward.scipy.curve import Curve
from pushforward.scipy.given import adapted, refuse, start, starting_once
from pushforward.scipy.scalar_function import ScalarFunction
from pushforward.scipy.vector_function import VectorFunction

# What SciPy's methods take.
WITHOUT_GRADIENT = ("nelder-mead", "powell", "cobyla", "cobyqa")
WITH_PRODUCTS = ("newton-cg", "trust-ncg", "trust-krylov", "trust-constr")
WITH_HESSIAN = ("dogleg", "trust-exact", *WITH_PRODUCTS)
WITH_JACOBIAN = ("hybr", "lm")


def least_squares(
    fun: Callable[..., Any] | VectorFunction,
    x0: Any,
    *,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    output: Form = "dense",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    compile: bool | Backend = False,
    **options: Any,
) -> Any:
    """Call ``scipy.optimize.least_squares`` with residuals computed by PyTorch, and their Jacobian.

    Args:
        fun: The residuals, as in `VectorFunction`; or one of these, made and compiled once.
        x0: As in SciPy; a tensor will do.
        args: Further arguments of ``fun``; arrays come as tensors.
        kwargs: Likewise, by name.
        output: The form of the Jacobian, as in `VectorFunction`; SciPy solves by LSMR unless it is dense.
        dtype: As in `VectorFunction`.
        device: As in `VectorFunction`.
        compile: As in `VectorFunction`.
        **options: Those of SciPy but ``jac``.

    Returns:
        What SciPy returns.

    Raises:
        TypeError: As `VectorFunction`.
        ValueError: ``jac`` or ``jac_sparsity`` is given; as `VectorFunction`, and as SciPy.

    Example:
        >>> float(least_squares(lambda x: x**2 - 2, [1.0]).x[0].round(6))
        1.414214
    """
    name = "least_squares"
    refuse(name, options, "jac", "jac_sparsity")
    f = adapted(
        VectorFunction, name, fun, output=output, dtype=dtype, device=device, compile=compile
    )
    return optimize.least_squares(
        f.fun, start(x0), jac=f.jac, args=args, kwargs=kwargs or {}, **options
    )


def root(
    fun: Callable[..., Any] | VectorFunction,
    x0: Any,
    args: tuple[Any, ...] = (),
    method: str = "hybr",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    compile: bool | Backend = False,
    **options: Any,
) -> Any:
    """Call ``scipy.optimize.root`` with equations computed by PyTorch, and their Jacobian.

    Args:
        fun: The left-hand sides of ``fun(x) = 0``, as in `VectorFunction`; or one of these.
        x0: As in SciPy; a tensor will do.
        args: Further arguments of ``fun``; arrays come as tensors.
        method: As in SciPy. ``'hybr'`` and ``'lm'`` take a Jacobian, the others none.
        dtype: As in `VectorFunction`.
        device: As in `VectorFunction`.
        compile: As in `VectorFunction`.
        **options: Those of SciPy but ``jac``.

    Returns:
        What SciPy returns.

    Raises:
        TypeError: As `VectorFunction`.
        ValueError: ``jac`` is given; as SciPy.

    Example:
        >>> float(root(lambda x: x**2 - 2, [1.0]).x[0].round(6))
        1.414214
    """
    refuse("root", options, "jac")
    f = adapted(VectorFunction, "root", fun, dtype=dtype, device=device, compile=compile)
    fun, jac = f.fun, None
    if method.lower() in WITH_JACOBIAN:
        fun, jac = starting_once(f.fun), starting_once(f.jac)
    if method.lower() != "lm":  # the others follow Broyden
        f.pending.expect_values()
    return optimize.root(fun, start(x0), args=args, method=method, jac=jac, **options)


def minimize(
    fun: Callable[..., Any] | ScalarFunction,
    x0: Any,
    args: tuple[Any, ...] = (),
    method: str | Callable[..., Any] | None = None,
    *,
    output: Form | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    compile: bool | Backend = False,
    **options: Any,
) -> Any:
    """Call ``scipy.optimize.minimize`` with an objective computed by PyTorch, and what derivatives the method takes.

    Args:
        fun: The objective, as in `ScalarFunction`; or one of these, made and compiled once.
        x0: As in SciPy; a tensor will do.
        args: Further arguments of ``fun``; arrays come as tensors.
        method: As in SciPy.
        output: The form of the Hessian, as in `ScalarFunction`, as far as SciPy's method takes it. Left out, methods
            that take products with it (``'Newton-CG'``, ``'trust-ncg'``, ``'trust-krylov'``, ``'trust-constr'``) get
            these, so that no Hessian is formed; ``'dogleg'`` and ``'trust-exact'`` get a dense one.
        dtype: As in `VectorFunction`.
        device: As in `VectorFunction`.
        compile: As in `VectorFunction`.
        **options: Those of SciPy but ``jac``, ``hess`` and ``hessp``. `NonlinearConstraint` makes constraints.

    Returns:
        What SciPy returns.

    Raises:
        TypeError: As `ScalarFunction`.
        ValueError: ``jac``, ``hess`` or ``hessp`` is given; as `ScalarFunction`, and as SciPy.

    Example:
        >>> minimize(lambda x: ((x - 3) ** 2).sum(), [0.0, 1.0], method="trust-ncg").x
        array([3., 3.])
    """
    name = "minimize"
    refuse(name, options, "jac", "hess", "hessp")
    f = adapted(
        ScalarFunction,
        name,
        fun,
        output=output or "dense",
        dtype=dtype,
        device=device,
        compile=compile,
    )
    given: dict[str, Any] = {}
    kind = method.lower() if isinstance(method, str) else None
    if kind not in WITHOUT_GRADIENT:
        given["jac"] = f.jac
    if callable(method):
        given |= {"hess": f.hess, "hessp": f.hessp}
    elif kind in WITH_PRODUCTS and output is None:
        given["hessp"] = f.hessp
    elif kind in WITH_HESSIAN:
        given["hess"] = f.hess
    return optimize.minimize(f.fun, start(x0), args=args, method=method, **given, **options)


def NonlinearConstraint(
    fun: Callable[..., Any] | VectorFunction,
    lb: Any,
    ub: Any,
    *,
    output: Form = "dense",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    compile: bool | Backend = False,
    **options: Any,
) -> Any:
    """Return a ``scipy.optimize.NonlinearConstraint`` of a function of PyTorch, with its derivatives, for `minimize`.

    Args:
        fun: What has to stay between the bounds, as in `VectorFunction`; or one of these.
        lb: As in SciPy.
        ub: As in SciPy.
        output: The form of Jacobian and Hessian, as in `VectorFunction`.
        dtype: As in `VectorFunction`.
        device: As in `VectorFunction`.
        compile: As in `VectorFunction`.
        **options: Those of SciPy but ``jac``. Methods other than ``'trust-constr'`` use no ``hess`` and warn: give
            them ``hess=scipy.optimize.BFGS()``, which is SciPy's default.

    Returns:
        What SciPy makes of it.

    Raises:
        TypeError: As `VectorFunction`.
        ValueError: ``jac`` is given, or ``output`` is ``'operator'``; as `VectorFunction`.

    Example:
        >>> circle = NonlinearConstraint(lambda x: (x**2).sum(), 0, 2)
        >>> minimize(lambda x: -x.sum(), [0.5, 1.0], method="trust-constr", constraints=circle).x.round(3)
        array([1., 1.])
    """
    name = "NonlinearConstraint"
    refuse(name, options, "jac")
    f = adapted(
        VectorFunction, name, fun, output=output, dtype=dtype, device=device, compile=compile
    )
    if f.output == "operator":
        raise ArgumentValueError(
            message(name, "output", "'operator'", "a matrix, as SciPy takes no other", "Use 'csr'.")
        )
    options.setdefault("hess", f.hess)
    return optimize.NonlinearConstraint(f.fun, lb, ub, jac=f.jac, **options)


def curve_fit(
    f: Callable[..., Any] | Curve,
    xdata: Any,
    ydata: Any,
    p0: Any = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    compile: bool | Backend = False,
    **options: Any,
) -> Any:
    """Call ``scipy.optimize.curve_fit`` with a model computed by PyTorch, and its derivatives.

    Args:
        f: The model ``f(xdata, a, b, ...)``, as in `Curve`; or one of these, made and compiled once.
        xdata: As in SciPy; a tensor will do, here and below.
        ydata: As in SciPy.
        p0: As in SciPy.
        dtype: As in `VectorFunction`.
        device: As in `VectorFunction`.
        compile: As in `VectorFunction`.
        **options: Those of SciPy but ``jac``.

    Returns:
        What SciPy returns.

    Raises:
        TypeError: As `Curve`.
        ValueError: ``jac`` is given; as SciPy.

    Example:
        >>> x = torch.linspace(0, 1, 20)
        >>> seen = 2 * torch.exp(-3 * x)
        >>> found, covariance = curve_fit(lambda x, a, b: a * torch.exp(b * x), x, seen, [1, 0])
        >>> found.round(4)
        array([ 2., -3.])
    """
    refuse("curve_fit", options, "jac")
    c = adapted(Curve, "curve_fit", f, dtype=dtype, device=device, compile=compile)
    return optimize.curve_fit(
        c.fun, start(xdata), start(ydata), None if p0 is None else start(p0), jac=c.jac, **options
    )
