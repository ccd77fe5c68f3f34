"""VectorFunction: residuals, equations or constraints, with their Jacobian."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.compiling.backends import Backend
from pushforward.operators.jacobian_operator import jacobian_operator
from pushforward.scipy.arrays import Array, Arrays, Form
from pushforward.scipy.pending import Pending
from pushforward.tape.interrupts import in_grad_mode
from pushforward.transforms.hessian import hessian
from pushforward.transforms.jacobian import value_and_jacobian


class VectorFunction:
    """A function of a vector, and its Jacobian, as SciPy calls them: ``least_squares(f.fun, x0, jac=f.jac)``.

    Value and Jacobian of a point come from one evaluation: ``fun`` computes both, ``jac`` at the same point hands the
    other one out. Where the last Jacobian was not asked for, ``fun`` computes the value alone. Between the two calls,
    nothing that ``func`` reads beside its arguments may change.

    Args:
        func: Takes a vector ``(n,)`` and further arguments, and returns tensors (any pytree), which SciPy gets as one
            vector ``(m,)``. Further arrays come as tensors, all else as it is.
        output: ``'dense'``, ``'csr'``, ``'csc'``, ``'coo'`` or ``'bsr'`` for the Jacobian as an array or as sparse
            arrays of SciPy (as in `jacobian`), ``'operator'`` for a ``scipy.sparse.linalg.LinearOperator``, which
            multiplies and forms nothing.
        dtype: In which ``func`` computes, ``torch.float32`` for example; left out, in that of the array, which SciPy
            makes float64. Results are float64.
        device: On which ``func`` computes; left out, the CPU.
        compile: Whether to run graphs made by `compile`: ``True`` or ``'inductor'``; ``'eager'`` compiles in
            milliseconds, and leaves values alone to ``func`` itself. No effect on operators.
        name: What errors call it.

    Raises:
        TypeError: ``func`` cannot be called, or, when called, returns something else than real tensors.
        ValueError: ``output`` is unknown.

    Example:
        >>> f = VectorFunction(lambda x: x**2 - 2)
        >>> f.fun([1.0, 2.0]), f.jac([1.0, 2.0])
        (array([-1.,  2.]), array([[2., 0.],
               [0., 4.]]))
    """

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        output: Form = "dense",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        compile: bool | Backend = False,
        name: str = "VectorFunction",
    ) -> None:
        """Compute nothing yet."""
        self._arrays = arrays = Arrays(name, func, output, dtype, device, compile)
        self.output = output
        self.pending: Pending[Any] = Pending()

        def value(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return arrays.joined(func(x, *args, **kwargs))

        def weighted(x: Tensor, weights: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            found = value(x, *args, **kwargs)
            return (weights.to(found) * found).sum()

        self._of_tensors = value
        self._value = arrays.compiled_value(value)
        if output == "operator":
            self._both: Callable[..., Any] = self._with_operator
        else:
            both = value_and_jacobian(value, output=output, randomness="same")
            self._both = arrays.compiled(both)
        self._weighted = weighted

    @functools.cached_property
    def _hessian(self) -> Callable[..., Any]:
        output = self._arrays.output
        form = "dense" if output == "operator" else output
        return self._arrays.compiled(hessian(self._weighted, output=form))

    def _with_operator(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        operator = jacobian_operator(self._of_tensors, x, *args, **kwargs)
        return operator.value, operator

    def fun(self, x: Any, /, *args: Any, **kwargs: Any) -> Array:
        """Return the values ``(m,)``."""
        key = self.pending.begin(x, args, kwargs)
        if key is None:
            return self._arrays.array(
                self._value(*self._arrays.given(x, args), **self._named(kwargs))
            )
        value, derivative = self._computed(x, args, kwargs)
        self.pending.keep(key, derivative)
        return value

    def jac(self, x: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Return the Jacobian ``(m, n)``, in the form that was asked for."""
        found = self.pending.taken(x, args, kwargs)
        return self._computed(x, args, kwargs)[1] if found is None else found

    def hess(self, x: Any, weights: Any, /, *args: Any) -> Any:
        """Return the Hessian of the values times ``weights`` ``(m,)``, summed, as a constraint needs it."""
        x, weights = self._arrays.tensor(x), self._arrays.tensor(weights)
        with torch.no_grad():
            found = self._hessian(x, weights, *self._arrays.arguments(args))
        return self._arrays.matrix(found)

    def _named(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if not kwargs:
            return kwargs
        return {name: self._arrays.argument(value) for name, value in kwargs.items()}

    def _computed(self, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Array, Any]:
        arrays = self._arrays
        given, named = self._arrays.given(x, args), self._named(kwargs)
        value, derivative = in_grad_mode(False, functools.partial(self._both, *given, **named))
        if arrays.output == "operator":
            return arrays.array(value), derivative.to_scipy()
        return arrays.array(value), arrays.matrix(derivative)
