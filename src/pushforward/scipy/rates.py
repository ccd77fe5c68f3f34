"""Rates: the right-hand side of an ordinary differential equation, with its Jacobian."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.compiling.backends import Backend
from pushforward.errors import ArgumentValueError, UnsupportedError, message
from pushforward.operators.jacobian_operator import jacobian_operator
from pushforward.scipy.arrays import Array, Arrays, Form
from pushforward.scipy.holomorphic import holomorphic
from pushforward.tape.interrupts import in_grad_mode
from pushforward.transforms.jacobian import jacobian


class Rates:
    """The rates ``y' = func(t, y)``, as SciPy calls them: ``solve_ivp(r.fun, span, y0, method="BDF", jac=r.jac)``.

    Args:
        func: Takes the time, a tensor without axes, the state ``(n,)`` and further arguments, and returns tensors (any
            pytree) with ``n`` numbers.
        output: The form of the Jacobian, as in `VectorFunction`; ``'csc'`` is what SciPy's solvers factorize.
        dtype: As in `VectorFunction`.
        device: As in `VectorFunction`.
        compile: As in `VectorFunction`.
        name: What errors call it.

    Raises:
        TypeError: ``func`` cannot be called, or, when called, returns something else than tensors.
        ValueError: ``output`` is unknown; or, when called, ``func`` returns another number of rates.
        UnsupportedError: When called: a complex state of which ``func`` is not holomorphic, as SciPy requires.

    Example:
        >>> r = Rates(lambda t, y: t * y)
        >>> r.fun(2.0, [1.0, 3.0]), r.jac(2.0, [1.0, 3.0])
        (array([2., 6.]), array([[2., 0.],
               [0., 2.]]))
    """

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        output: Form = "dense",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        compile: bool | Backend = False,
        name: str = "Rates",
    ) -> None:
        """Compute nothing yet."""
        self._arrays = arrays = Arrays(name, func, output, dtype, device, compile)
        self.output = output

        def rates(t: Tensor, y: Tensor, *args: Any) -> Tensor:
            found = arrays.joined(func(t, y, *args))
            if found.shape != y.shape:
                raise ArgumentValueError(
                    message(
                        name,
                        "shape of what the function returned",
                        tuple(found.shape),
                        f"{tuple(y.shape)}, a rate for each number of the state",
                        "Return torch.stack of the rates.",
                    )
                )
            return found

        self._of_tensors = rates
        self._rates = arrays.compiled_value(rates)
        form = "dense" if output == "operator" else output
        self._jacobian = arrays.compiled(jacobian(rates, 1, output=form, randomness="same"))

    def fun(self, t: float, y: Any, /, *args: Any) -> Array:
        """Return the rates ``(n,)``."""
        arrays = self._arrays
        state = arrays.tensor(y)
        found = self._rates(arrays.tensor(t), state, *arrays.arguments(args))
        return arrays.array(found, state.is_complex())

    def jac(self, t: float, y: Any, /, *args: Any) -> Any:
        """Return their Jacobian with respect to the state ``(n, n)``, in the form that was asked for."""
        given = self._given(t, y, args)
        arrays = self._arrays
        is_complex = given[1].is_complex()
        if is_complex and arrays.output != "dense":
            raise UnsupportedError(
                message(
                    arrays.name,
                    "output",
                    f"{arrays.output!r} of a complex state",
                    "'dense'",
                    "Or solve for the real and imaginary parts.",
                )
            )
        if arrays.output == "operator":
            with torch.no_grad():
                return jacobian_operator(self._of_tensors, *given, argnums=1).to_scipy()
        found = in_grad_mode(False, functools.partial(self._jacobian, *given))
        if is_complex:
            found = holomorphic(arrays.name, found)
        return arrays.matrix(found, is_complex)

    def _given(self, t: float, y: Any, args: tuple[Any, ...]) -> list[Any]:
        arrays = self._arrays
        return [arrays.tensor(t), *arrays.given(y, args)]
