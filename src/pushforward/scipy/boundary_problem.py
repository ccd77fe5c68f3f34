"""BoundaryProblem: an ordinary differential equation with conditions at both ends, and all derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.compiling.backends import Backend
from pushforward.errors import ArgumentTypeError, ArgumentValueError, message
from pushforward.scipy.arrays import Array, Arrays
from pushforward.scipy.holomorphic import holomorphic
from pushforward.transforms.jacobian import jacobian
from pushforward.transforms.linearize import linearize


class BoundaryProblem:
    """``y' = func(x, y, p)`` with ``bc(y(a), y(b), p) = 0``, as SciPy's ``solve_bvp`` calls them.

    ``solve_bvp(b.fun, b.bc, x, y, p, fun_jac=b.fun_jac, bc_jac=b.bc_jac)``

    Args:
        func: As SciPy wants it, for all nodes at once: ``func(x, y)``, or ``func(x, y, p)`` with unknown parameters,
            takes nodes ``(m,)``, states ``(n, m)`` and parameters ``(k,)``, and returns tensors (any pytree) that make
            up ``(n, m)``. Rates at a node depend on the state at that node only.
        bc: ``bc(ya, yb)``, or ``bc(ya, yb, p)``; takes states ``(n,)`` at both ends and returns tensors (any pytree)
            with ``n + k`` numbers.
        dtype: As in `VectorFunction`.
        device: As in `VectorFunction`.
        compile: As in `VectorFunction`.
        name: What errors call it.

    Raises:
        TypeError: ``func`` or ``bc`` cannot be called, or, when called, return something else than tensors.
        ValueError: When called: they return other shapes.
        UnsupportedError: When called: complex states of which a function is not holomorphic.

    Example:
        >>> b = BoundaryProblem(lambda x, y: torch.stack([y[1], -y[0]]), lambda ya, yb: (ya[0], yb[0] - 1))
        >>> b.fun_jac([0.0, 1.0], [[0.0, 1.0], [1.0, 1.0]]).shape
        (2, 2, 2)
        >>> b.bc_jac([0.0, 1.0], [1.0, 1.0])[1]
        array([[0., 0.],
               [1., 0.]])
    """

    def __init__(
        self,
        func: Callable[..., Any],
        bc: Callable[..., Any],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        compile: bool | Backend = False,
        name: str = "BoundaryProblem",
    ) -> None:
        """Compute nothing yet."""
        self._arrays = arrays = Arrays(name, func, "dense", dtype, device, compile)
        if not callable(bc):
            raise ArgumentTypeError(
                message(name, "bc", repr(bc), "a function of tensors", "Pass it second.")
            )

        def rates(x: Tensor, y: Tensor, *p: Tensor) -> Tensor:
            return _checked(name, "func", _stacked(arrays, func(x, y, *p), y), tuple(y.shape))

        def conditions(ya: Tensor, yb: Tensor, *p: Tensor) -> Tensor:
            num = len(ya) + sum(len(q) for q in p)
            return _checked(name, "bc", arrays.joined(bc(ya, yb, *p)), (num,))

        def columns(x: Tensor, y: Tensor, *p: Tensor) -> Tensor:
            """Return the derivatives at all nodes: along each number of the state at all nodes at once, then of p."""
            _, linear = linearize(lambda *given: rates(x, *given), y, *p)
            num, of_p = len(y), sum(len(q) for q in p)
            seeds = torch.eye(num + of_p, num, dtype=y.dtype, device=y.device)
            along_p = [torch.eye(num + of_p, dtype=q.dtype, device=q.device)[:, num:] for q in p]
            seeds = seeds[:, :, None].expand(-1, -1, len(x))
            pushed: Tensor = linear.batched(seeds, *along_p)
            if y.is_complex():
                turned: Tensor = linear.batched(1j * seeds, *[1j * q for q in along_p])
                pushed = torch.stack([pushed, turned], -1)
            return pushed.transpose(0, 1)  # (n, n + k, m), of complex numbers along both directions

        self._rates = arrays.compiled_value(rates)
        self._conditions = arrays.compiled_value(conditions)
        self._columns = arrays.compiled(columns)
        by_ends = [jacobian(conditions, argnums) for argnums in ((0, 1), (0, 1, 2))]
        self._by_ends = [arrays.compiled(function) for function in by_ends]

    def fun(self, x: Any, y: Any, p: Any = None, /) -> Array:
        """Return the rates ``(n, m)``."""
        given = self._given(x, y, p)
        return self._arrays.array(self._rates(*given), given[1].is_complex())

    def bc(self, ya: Any, yb: Any, p: Any = None, /) -> Array:
        """Return what is to be zero ``(n + k,)``."""
        given = self._given(ya, yb, p)
        return self._arrays.array(self._conditions(*given), given[0].is_complex())

    def fun_jac(self, x: Any, y: Any, p: Any = None, /) -> Any:
        """Return the derivatives of the rates: ``(n, n, m)``, and with parameters ``(n, k, m)`` as well."""
        given = self._given(x, y, p)
        is_complex, num = given[1].is_complex(), len(given[1])
        with torch.no_grad():
            columns = self._columns(*given)
            if is_complex:
                columns = holomorphic(self._arrays.name, columns)
        found = self._arrays.array(columns, is_complex)
        return found if p is None else (found[:, :num], found[:, num:])

    def bc_jac(self, ya: Any, yb: Any, p: Any = None, /) -> tuple[Array, ...]:
        """Return the derivatives of the conditions: ``(n + k, n)`` twice, and with parameters ``(n + k, k)``."""
        given = self._given(ya, yb, p)
        is_complex = given[0].is_complex()
        with torch.no_grad():
            found = self._by_ends[len(given) - 2](*given)
            if is_complex:
                found = [
                    holomorphic(self._arrays.name, parts) if x.is_complex() else parts
                    for parts, x in zip(found, given, strict=True)
                ]
        return tuple(self._arrays.array(each, is_complex) for each in found)

    def _given(self, first: Any, second: Any, p: Any) -> list[Tensor]:
        arrays = self._arrays
        return [arrays.tensor(each) for each in (first, second, *([] if p is None else [p]))]


def _stacked(arrays: Arrays, result: Any, y: Tensor) -> Tensor:
    """Return rates as one tensor; a sequence of those of each number of the state may be given."""
    if isinstance(result, (tuple, list)) and all(isinstance(r, Tensor) for r in result):
        return torch.stack([r.expand(y.shape[1:]) for r in result])
    if not isinstance(result, Tensor):
        raise arrays.is_no_tensor(result)
    return result


def _checked(name: str, what: str, found: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(found.shape) != shape:
        raise ArgumentValueError(
            message(
                name,
                f"shape of what {what} returned",
                tuple(found.shape),
                f"{shape}",
                "Return torch.stack of one tensor for each.",
            )
        )
    return found
