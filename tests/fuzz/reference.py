"""Derivatives by loops over torch.autograd.grad, which nest; and by central differences.

The names and the shapes of results are those of pushforward.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten


class TooCostly(Exception):
    """More passes than the machine has time for."""


MAX_SECONDS = 0.2  # of the processor, for one evaluation
_since = 0.0


def restart() -> None:
    """Count time from zero."""
    global _since
    _since = time.process_time()


def _check_time(ahead: float = 0.0) -> None:
    """Give up when the time is over, or will be: ``ahead`` is what is sure to follow."""
    if time.process_time() - _since + ahead > MAX_SECONDS:
        raise TooCostly


_depth = 0  # functions under way that somebody differentiates


@contextlib.contextmanager
def differentiated() -> Iterator[None]:
    """Keep graphs of derivatives, because these are differentiated again."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def _is_active(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _start(x: Any) -> Any:
    """Return a leaf, or what a reference around this one differentiates, and a copy that may be written to."""
    if not _is_active(x):
        return x, x
    leaf = x if x.requires_grad else x.detach().clone().requires_grad_()
    # An alias of its own, so that its gradient is not that of other uses of the tensor.
    leaf = leaf.view_as(leaf) if x.requires_grad else leaf
    copy = leaf.clone()
    copy.data = copied(x)
    return leaf, copy


def copied(x: Tensor) -> Tensor:
    """Return a copy that lies in memory as ``x`` does, with what lies around it."""
    with torch.no_grad():
        memory = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).clone()
        return memory.as_strided(x.shape, x.stride(), x.storage_offset())


class _Recorded:
    """The function's outputs, and the inputs they are differentiated by."""

    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...], argnums: Any) -> None:
        self.numbers = argnums if isinstance(argnums, tuple) else (argnums,)
        self.is_one = not isinstance(argnums, tuple)
        self.leaves: list[list[Any]] = []
        self.specs = []
        given = list(args)
        self.written: list[tuple[Tensor, Tensor]] = []
        self.grad_mode = torch.is_grad_enabled()
        with torch.enable_grad():
            for number in self.numbers:
                flat, spec = tree_flatten(args[number])
                pairs = [_start(x) for x in flat]
                self.leaves.append([leaf for leaf, _ in pairs])
                self.specs.append(spec)
                given[number] = tree_unflatten([copy for _, copy in pairs], spec)
            with differentiated():
                self.output = func(*given)
        self.outputs, self.out_spec = tree_flatten(self.output)

    def value(self) -> Any:
        return tree_unflatten([self.freed(y) for y in self.outputs], self.out_spec)

    def freed(self, y: Any) -> Any:
        return y if self.grad_mode or not isinstance(y, Tensor) else y.detach()

    def pulled(self, cotangents: list[Tensor]) -> list[list[Tensor]]:
        """Return the gradient of every input."""
        _check_time()
        flat = [x for leaves in self.leaves for x in leaves if _is_active(x)]
        pairs = [(y, c) for y, c in zip(self.outputs, cotangents, strict=True) if y.requires_grad]
        with torch.enable_grad():
            if pairs:
                found = torch.autograd.grad(
                    [y for y, _ in pairs],
                    flat,
                    [c for _, c in pairs],
                    create_graph=_depth > 0,
                    retain_graph=True,
                    allow_unused=True,
                )
            else:
                found = (None,) * len(flat)
        grads = iter(
            [torch.zeros_like(x) if g is None else g for x, g in zip(flat, found, strict=True)]
        )
        return [[next(grads) if _is_active(x) else None for x in leaves] for leaves in self.leaves]

    def tree(self, values: list[list[Any]]) -> Any:
        trees = tuple(tree_unflatten(v, s) for v, s in zip(values, self.specs, strict=True))
        return trees[0] if self.is_one else trees


def _unit_rows(y: Tensor) -> list[Tensor]:
    """Return the cotangents of the elements; of complex ones, of their real and then of their imaginary parts."""
    rows = list(torch.eye(y.numel(), dtype=y.dtype).reshape(y.numel(), *y.shape))
    return rows + [1j * row for row in rows] if y.is_complex() else rows


def _jacobian(recorded: _Recorded, number: int) -> list[list[Any]]:
    """Return the Jacobian of one output by all inputs."""
    y = recorded.outputs[number]
    others = [torch.zeros_like(z) for z in recorded.outputs]
    rows: list[list[list[Tensor]]] = []
    units = _unit_rows(y)
    for row in units:
        cotangents = [*others[:number], row, *others[number + 1 :]]
        start = time.process_time()
        rows.append(recorded.pulled(cotangents))
        if len(rows) == 2:  # the first may have prepared something
            _check_time(ahead=(len(units) - 2) * (time.process_time() - start))
    result: list[list[Any]] = []
    for i, leaves in enumerate(recorded.leaves):
        result.append([])
        for j, x in enumerate(leaves):
            if not _is_active(x):
                result[-1].append(None if not isinstance(x, Tensor) else x)
                continue
            dtype = torch.promote_types(y.dtype, x.dtype)
            shape = (*y.shape, *x.shape)
            if not rows:
                shape = (*shape, 2) if x.is_complex() else shape
                result[-1].append(torch.zeros(shape, dtype=dtype))
                continue
            grads = torch.stack([row[i][j] for row in rows])
            if x.is_complex():
                grads = torch.view_as_real(grads)
                shape = (*shape, 2)
            if y.is_complex():
                half = grads.shape[0] // 2
                grads = torch.complex(grads[:half], grads[half:])
            result[-1].append(recorded.freed(grads.to(dtype).reshape(shape)))
    return result


def _columns(func: Callable[..., Any], args: tuple[Any, ...], argnums: Any) -> tuple[Any, Any]:
    recorded = _Recorded(func, args, argnums)
    parts = [recorded.tree(_jacobian(recorded, k)) for k in range(len(recorded.outputs))]
    return recorded.value(), tree_unflatten(parts, recorded.out_spec)


def jacrev(func: Callable[..., Any], argnums: Any = 0, **options: Any) -> Callable[..., Any]:
    return lambda *args: _columns(func, args, argnums)[1]


jacfwd = jacobian = jacrev


def value_and_jacobian(
    func: Callable[..., Any], argnums: Any = 0, **options: Any
) -> Callable[..., Any]:
    return lambda *args: _columns(func, args, argnums)


def hessian(func: Callable[..., Any], argnums: Any = 0, **options: Any) -> Callable[..., Any]:
    return jacrev(jacrev(func, argnums), argnums)


def _directional(jac: Any, x: Any, t: Any, y: Tensor) -> Tensor:
    if jac is None or not isinstance(t, Tensor):
        return torch.zeros_like(y)
    jac = jac.reshape(y.shape.numel(), x.numel(), *([2] if x.is_complex() else []))
    t = t.reshape(-1)
    if x.is_complex():
        out = jac[..., 0] @ t.real.to(jac.dtype) + jac[..., 1] @ t.imag.to(jac.dtype)
    else:
        out = jac @ t.to(jac.dtype)
    return (
        (out if y.is_complex() or not out.is_complex() else out.real).to(y.dtype).reshape(y.shape)
    )


def jvp(func: Callable[..., Any], primals: Any, tangents: Any) -> tuple[Any, Any]:
    recorded = _Recorded(func, primals, tuple(range(len(primals))))
    return recorded.value(), _pushed(recorded, tangents)


def _pushed(recorded: _Recorded, tangents: Any) -> Any:
    flat_tangents = [tree_flatten(t)[0] for t in tangents]
    results = []
    for number, y in enumerate(recorded.outputs):
        jac = _jacobian(recorded, number)
        found = torch.zeros_like(y)
        for leaves, row, ts in zip(recorded.leaves, jac, flat_tangents, strict=True):
            for x, entry, t in zip(leaves, row, ts, strict=True):
                if _is_active(x):
                    found = found + _directional(entry, x, t, y)
        results.append(recorded.freed(found))
    return tree_unflatten(results, recorded.out_spec)


def linearize(func: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    recorded = _Recorded(func, primals, tuple(range(len(primals))))
    return recorded.value(), lambda *tangents: _pushed(recorded, tangents)


def vjp(func: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    recorded = _Recorded(func, primals, tuple(range(len(primals))))

    def pullback(cotangents: Any) -> Any:
        values = recorded.pulled(tree_flatten(cotangents)[0])
        return recorded.tree([[recorded.freed(v) for v in vs] for vs in values])

    return recorded.value(), pullback


def grad(func: Callable[..., Any], argnums: Any = 0, **options: Any) -> Callable[..., Any]:
    return lambda *args: grad_and_value(func, argnums)(*args)[0]


def grad_and_value(
    func: Callable[..., Any], argnums: Any = 0, **options: Any
) -> Callable[..., Any]:
    def call(*args: Any) -> tuple[Any, Any]:
        recorded = _Recorded(func, args, argnums)
        values = recorded.pulled([torch.ones_like(recorded.outputs[0])])
        return recorded.tree([[recorded.freed(v) for v in vs] for vs in values]), recorded.value()

    return call


def hvp(func: Callable[..., Any], primals: Any, vectors: Any) -> tuple[Any, Any]:
    numbers = tuple(range(len(primals)))
    (_, value), (product, _) = jvp(grad_and_value(func, numbers), primals, vectors)
    return value, product


def _member(leaf: Any, axis: int, index: int) -> Any:
    return leaf.select(axis, index) if isinstance(leaf, Tensor) else leaf


def vmap(func: Callable[..., Any], in_dims: Any = 0) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
        results = []
        for i in range(2):
            picked = [
                a if d is None else tree_map(functools.partial(_member, axis=d, index=i), a)
                for a, d in zip(args, dims, strict=True)
            ]
            results.append(func(*picked))
        flat = [tree_flatten(r) for r in results]
        columns = zip(*[leaves for leaves, _ in flat], strict=True)
        return tree_unflatten([torch.stack(column) for column in columns], flat[0][1])

    return call
