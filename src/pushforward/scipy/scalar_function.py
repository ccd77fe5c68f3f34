"""ScalarFunction: an objective, with its gradient and Hessian."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.compiling.backends import Backend
from pushforward.errors import ArgumentValueError, message
from pushforward.operators.hessian_operator import HessianOperator, hessian_operator
from pushforward.scipy.arrays import Array, Arrays, Form
from pushforward.scipy.pending import Key, Pending
from pushforward.tape.interrupts import in_grad_mode
from pushforward.transforms.grad import grad_and_value
from pushforward.transforms.hessian import hessian, hvp


class ScalarFunction:
    """An objective with its derivatives, as SciPy calls them: ``minimize(f.fun, x0, jac=f.jac, hessp=f.hessp)``.

    Value and gradient of a point come from one evaluation, as in `VectorFunction`. ``hessp`` records the gradient once
    for a point, and multiplies by it until ``fun`` is called again; compiled, it computes each product from the start.

    Args:
        func: Takes a vector ``(n,)`` and further arguments, and returns one real number as a tensor.
        output: The form of ``hess``, as in `VectorFunction`.
        dtype: As in `VectorFunction`.
        device: As in `VectorFunction`.
        compile: As in `VectorFunction`.
        name: What errors call it.

    Raises:
        TypeError: ``func`` cannot be called, or, when called, returns something else than a real tensor.
        ValueError: ``output`` is unknown; or, when called, ``func`` returns more than one number.

    Example:
        >>> f = ScalarFunction(lambda x: (x**3).sum())
        >>> f.fun([1.0, 2.0]), f.jac([1.0, 2.0]), f.hessp([1.0, 2.0], [1.0, 0.0])
        (9.0, array([ 3., 12.]), array([6., 0.]))
    """

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        output: Form = "dense",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        compile: bool | Backend = False,
        name: str = "ScalarFunction",
    ) -> None:
        """Compute nothing yet."""
        self._arrays = arrays = Arrays(name, func, output, dtype, device, compile)
        self.pending: Pending[Array] = Pending()
        self._curvature: list[tuple[Key | None, HessianOperator]] = []

        def value(x: Tensor, *args: Any) -> Tensor:
            result = func(x, *args)
            if not isinstance(result, Tensor):
                raise arrays.is_no_tensor(result)
            if result.numel() != 1:
                raise ArgumentValueError(
                    message(
                        name,
                        "shape of what the function returned",
                        tuple(result.shape),
                        "one number",
                        "Use .sum(), or least_squares for residuals.",
                    )
                )
            return result.reshape(())

        self._of_tensors = value
        self._value = arrays.compiled_value(value)
        self._both = arrays.compiled(grad_and_value(value))

    @functools.cached_property
    def _hessian(self) -> Callable[..., Any]:
        output = self._arrays.output
        assert output != "operator"
        return self._arrays.compiled(hessian(self._of_tensors, output=output))

    @functools.cached_property
    def _product(self) -> Callable[..., Any]:
        # Without what changes from call to call, which would be compiled in
        value = self._of_tensors

        def product(x: Tensor, p: Tensor, *args: Any) -> Tensor:
            found: Tensor = hvp(lambda x: value(x, *args), (x,), (p,))[1][0]
            return found

        return self._arrays.compiled(product)

    def fun(self, x: Any, /, *args: Any) -> float:
        """Return the value."""
        self._curvature.clear()
        key = self.pending.begin(x, args, {})
        if key is None:
            return float(self._arrays.array(self._value(*self._arrays.given(x, args))))
        gradient, value = self._computed(x, args)
        self.pending.keep(key, gradient)
        return value

    def jac(self, x: Any, /, *args: Any) -> Array:
        """Return the gradient ``(n,)``."""
        found = self.pending.taken(x, args, {})
        return self._computed(x, args)[0] if found is None else found

    def hess(self, x: Any, /, *args: Any) -> Any:
        """Return the Hessian ``(n, n)``, in the form that was asked for."""
        with torch.no_grad():
            if self._arrays.output == "operator":
                return self._operator(x, args).to_scipy()
            return self._arrays.matrix(self._hessian(*self._arrays.given(x, args)))

    def hessp(self, x: Any, p: Any, /, *args: Any) -> Array:
        """Return the Hessian times ``p`` ``(n,)``."""
        arrays = self._arrays
        if arrays.is_compiled:
            given, further = arrays.given(x, args), arrays.tensor(p)
            with torch.no_grad():
                return arrays.array(self._product(given[0], further, *given[1:]))
        key = Pending.key(x, args, {})
        try:
            known, operator = self._curvature.pop()  # no other thread has it meanwhile
        except IndexError:
            known, operator = None, None
        with torch.no_grad():
            if operator is None or known is None or known != key:
                operator = self._operator(x, args)
            product = arrays.array(operator @ arrays.tensor(p))
        self._curvature[:] = [(key, operator)]
        return product

    def _operator(self, x: Any, args: tuple[Any, ...]) -> HessianOperator:
        return hessian_operator(self._of_tensors, *self._arrays.given(x, args))

    def _computed(self, x: Any, args: tuple[Any, ...]) -> tuple[Array, float]:
        both = functools.partial(self._both, *self._arrays.given(x, args))
        gradient, value = in_grad_mode(False, both)
        return self._arrays.array(gradient), float(self._arrays.array(value))
