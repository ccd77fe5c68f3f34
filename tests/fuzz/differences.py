"""Central differences under the names of the transforms of first order."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fuzz import reference

_FIRST_ORDER = re.compile(
    r"(apply_vjp\(|apply_linear\()?L\.(jacfwd|jacrev|jacobian|value_and_jacobian|jvp|vjp|grad|grad_and_value|linearize)\((total\(f\)|f)[,)].*"
)


def has(action: str) -> bool:
    """Tell whether a transform can be answered."""
    return _FIRST_ORDER.fullmatch(action) is not None and "hessian" not in action


def _copied(x: Tensor) -> Tensor:
    """Return a copy that lies in memory as ``x`` does, whose elements may be written to one by one."""
    return x.clone() if 0 in x.stride() else reference.copied(x)


class Library:
    """The transforms, with one step."""

    def __init__(self, step: float, reset: Callable[..., Any]) -> None:
        self.step = step
        self.reset = reset  # puts what f changes back

    def _value(
        self, func: Callable[..., Any], leaves: list[Tensor], spec: Any
    ) -> tuple[list[Tensor], Any]:
        self.reset()
        with torch.no_grad():
            out = func(*tree_unflatten([_copied(x) for x in leaves], spec))
        flat, out_spec = tree_flatten(out)
        return [y.clone() for y in flat], out_spec

    def _jacobians(
        self, func: Callable[..., Any], args: tuple[Any, ...]
    ) -> tuple[list[list[Tensor]], list[Tensor], Any, list[Tensor], Any]:
        leaves, spec = tree_flatten(args)
        leaves = [_copied(x.detach()) for x in leaves]
        outputs, out_spec = self._value(func, leaves, spec)
        found: list[list[Tensor]] = [[] for _ in outputs]
        for x in leaves:
            real = torch.view_as_real(x) if x.is_complex() else x
            columns = []
            for index in itertools.product(*map(range, real.shape)):
                before = real[index].item()
                real[index] = before + self.step
                up, _ = self._value(func, leaves, spec)
                real[index] = before - self.step
                down, _ = self._value(func, leaves, spec)
                real[index] = before
                columns.append([(a - b) / (2 * self.step) for a, b in zip(up, down, strict=True)])
            shape = (*x.shape, 2) if x.is_complex() else tuple(x.shape)
            for number, y in enumerate(outputs):
                dtype = torch.promote_types(y.dtype, x.dtype)
                parts = [c[number] for c in columns]
                joined = torch.stack(parts, -1) if parts else torch.zeros((*y.shape, 0))
                found[number].append(joined.reshape((*y.shape, *shape)).to(dtype))
        self.reset()
        return found, outputs, out_spec, leaves, spec

    def _columns(
        self, func: Callable[..., Any], args: tuple[Any, ...], argnums: Any
    ) -> tuple[Any, Any]:
        found, outputs, out_spec, _, spec = self._jacobians(func, args)
        trees = []
        for row in found:
            by_argument = tree_unflatten(row, spec)
            picked = tuple(
                by_argument[k] for k in (argnums if isinstance(argnums, tuple) else (argnums,))
            )
            trees.append(picked if isinstance(argnums, tuple) else picked[0])
        return tree_unflatten(outputs, out_spec), tree_unflatten(trees, out_spec)

    def jacrev(
        self, func: Callable[..., Any], argnums: Any = 0, **options: Any
    ) -> Callable[..., Any]:
        return lambda *args: self._columns(func, args, argnums)[1]

    jacfwd = jacobian = jacrev

    def value_and_jacobian(
        self, func: Callable[..., Any], argnums: Any = 0, **options: Any
    ) -> Callable[..., Any]:
        return lambda *args: self._columns(func, args, argnums)

    def jvp(self, func: Callable[..., Any], primals: Any, tangents: Any) -> tuple[Any, Any]:
        found, outputs, out_spec, leaves, _ = self._jacobians(func, primals)
        results = []
        for y, row in zip(outputs, found, strict=True):
            result = torch.zeros_like(y)
            for x, jac, t in zip(leaves, row, tree_flatten(tangents)[0], strict=True):
                direction = torch.view_as_real(t.resolve_conj()) if x.is_complex() else t
                flat = jac.reshape(y.numel(), direction.numel()) @ direction.reshape(-1).to(
                    jac.dtype
                )
                result = result + (
                    flat if y.is_complex() else flat.real if flat.is_complex() else flat
                ).reshape(y.shape)
            results.append(result)
        return tree_unflatten(outputs, out_spec), tree_unflatten(results, out_spec)

    def linearize(self, func: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
        value, _ = self.jvp(func, primals, primals)
        return value, lambda *tangents: self.jvp(func, primals, tangents)[1]

    def vjp(self, func: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
        found, outputs, out_spec, leaves, spec = self._jacobians(func, primals)

        def pullback(cotangents: Any) -> Any:
            results = []
            for number, x in enumerate(leaves):
                size = x.numel() * (2 if x.is_complex() else 1)
                result = torch.zeros(size, dtype=torch.float64)
                for y, row, c in zip(outputs, found, tree_flatten(cotangents)[0], strict=True):
                    jac = row[number].reshape(y.numel(), size)
                    result = (
                        result
                        + (
                            c.reshape(-1).conj().to(torch.complex128) @ jac.to(torch.complex128)
                        ).real
                    )
                if x.is_complex():
                    results.append(torch.view_as_complex(result.reshape(-1, 2)).reshape(x.shape))
                else:
                    results.append(result.reshape(x.shape))
            return tree_unflatten(results, spec)

        return tree_unflatten(outputs, out_spec), pullback

    def grad_and_value(
        self, func: Callable[..., Any], argnums: Any = 0, **options: Any
    ) -> Callable[..., Any]:
        def call(*args: Any) -> tuple[Any, Any]:
            value, pullback = self.vjp(func, *args)
            found = pullback(torch.ones_like(value))
            return (
                tuple(found[k] for k in argnums) if isinstance(argnums, tuple) else found[argnums]
            ), value

        return call

    def hessian(
        self, func: Callable[..., Any], argnums: Any = 0, **options: Any
    ) -> Callable[..., Any]:
        return self.jacrev(reference.jacrev(func, argnums), argnums)

    def hvp(self, func: Callable[..., Any], primals: Any, vectors: Any) -> tuple[Any, Any]:
        numbers = tuple(range(len(primals)))
        (_, value), (product, _) = self.jvp(
            reference.grad_and_value(func, numbers), primals, vectors
        )
        return value, product

    def grad(
        self, func: Callable[..., Any], argnums: Any = 0, **options: Any
    ) -> Callable[..., Any]:
        return lambda *args: self.grad_and_value(func, argnums)(*args)[0]
