"""Curve: a model of data that depends on a few numbers, with the derivatives along these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pushforward.compiling.backends import Backend
from pushforward.scipy.arrays import Array
from pushforward.scipy.vector_function import VectorFunction
from pushforward.transforms.arguments import named_after


class Curve:
    """A model ``func(xdata, a, b, ...)``, as SciPy calls it: ``curve_fit(c.fun, xdata, ydata, jac=c.jac)``.

    Args:
        func: Takes data, an array that comes as a tensor, and numbers, which come as tensors without axes. It returns
            a tensor with one value for each datum.
        dtype: As in `VectorFunction`.
        device: As in `VectorFunction`.
        compile: As in `VectorFunction`.
        name: What errors call it.

    Raises:
        TypeError: ``func`` cannot be called, or, when called, returns something else than real tensors.

    Example:
        >>> c = Curve(lambda x, a, b: a * torch.exp(b * x))
        >>> import numpy
        >>> c.jac(numpy.zeros(2), 1.0, 0.5)
        array([[1., 0.],
               [1., 0.]])
    """

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        compile: bool | Backend = False,
        name: str = "Curve",
    ) -> None:
        """Compute nothing yet."""

        def of_vector(parameters: Tensor, xdata: Any) -> Any:
            return func(xdata, *parameters.unbind())

        inner = VectorFunction(
            of_vector if callable(func) else func,
            dtype=dtype,
            device=device,
            compile=compile,
            name=name,
        )

        def fun(xdata: Any, *parameters: Any) -> Array:
            return inner.fun(np.array(parameters, dtype=float), xdata)

        def jac(xdata: Any, *parameters: Any) -> Array:
            found: Array = inner.jac(np.array(parameters, dtype=float), xdata)
            return found

        # curve_fit counts the parameters in the signature.
        self.fun, self.jac = named_after(func, fun), named_after(func, jac)
