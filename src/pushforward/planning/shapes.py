"""Shapes of what common operators give for shadows, without PyTorch's own functions of the meta device.

Those are written in Python: they take a hundred times as long, and the first imports PyTorch's compiler, for a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from pushforward.linear.axes import broadcast
from pushforward.tape.interrupts import under_modes
from pushforward.tape.private_torch import OperatorMode, bare

aten = torch.ops.aten
_META = torch.device("meta")

T = TypeVar("T")


class Shapes(OperatorMode):
    """While it is on, some operators of meta tensors give tensors of the right shape, strides and dtype at once."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Answer, or let PyTorch do so."""
        kwargs = kwargs or {}
        if func is aten.eye.default and kwargs.get("device") == _META:
            return torch.empty(args[0], args[0], dtype=kwargs.get("dtype"), device=_META)
        if not kwargs and args and isinstance(args[0], Tensor) and args[0].is_meta:
            answer = _ANSWERS.get(func)
            found = None if answer is None else answer(*args)
            if found is not None:
                return found
        return func(*args, **kwargs)


def of_shadows(compute: Callable[[], T]) -> T:
    """Return ``compute()`` of shadows."""
    with bare():
        return under_modes((), (Shapes(),), compute)


def _elementwise(x: Tensor, y: Any = None) -> Tensor:
    """Return what an elementwise operator gives."""
    shape: tuple[int, ...] = x.shape
    dtype, given = x.dtype, [x]
    if y is not None:
        dtype = torch.result_type(x, y)
    if isinstance(y, Tensor):
        shape = broadcast(shape, y.shape)
        given.append(y)
    if all(t.is_contiguous() and t.shape == shape for t in given):
        return torch.empty(shape, dtype=dtype, device=_META)
    order = _order(shape, [t.expand(shape).stride() for t in given])
    strides, step = [0] * len(shape), 1
    for axis in order:
        strides[axis] = step
        step *= max(shape[axis], 1)
    return torch.empty_strided(shape, strides, dtype=dtype, device=_META)


def _order(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Return the axes of an elementwise result, the one with the smallest stride first: as they are in the operands.

    The first operand decides that is broadcast along neither of two axes.
    """

    def is_smaller(a: int, b: int) -> bool | None:
        for of_axes in strides:
            if not of_axes[a] or not of_axes[b]:
                continue
            if of_axes[a] != of_axes[b]:
                return of_axes[a] < of_axes[b]
            if shape[a] > shape[b]:
                return False
        return None

    order = list(range(len(shape)))[::-1]
    for start in range(1, len(order)):
        place = start
        for before in range(start - 1, -1, -1):
            found = is_smaller(order[before], order[place])
            if found:
                break
            if found is False:
                order[before], order[place] = order[place], order[before]
                place = before
    return order


def _diag_embed(x: Tensor, offset: int = 0, first: int = -2, second: int = -1) -> Tensor | None:
    """Return what ``diag_embed`` gives."""
    if offset or min(first, second) < 0:
        return None
    sizes = list(x.shape[:-1])
    for axis in sorted((first, second)):
        sizes.insert(axis, x.shape[-1])
    return torch.empty(sizes, dtype=x.dtype, device=_META)


def _mv(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return what a matrix times a vector gives."""
    dtype = torch.result_type(matrix, vector)
    return torch.empty(matrix.shape[0], dtype=dtype, device=_META)


def _product(left: Tensor, right: Tensor) -> Tensor | None:
    """Return what a product of two matrices, or of as many, gives."""
    if left.dtype is not right.dtype or left.shape[-1] != right.shape[-2]:
        return None
    return torch.empty((*left.shape[:-1], right.shape[-1]), dtype=left.dtype, device=_META)


_ANSWERS: dict[Any, Callable[..., Tensor | None]] = {
    aten.add.Tensor: _elementwise,
    aten.sub.Tensor: _elementwise,
    aten.mul.Tensor: _elementwise,
    aten.neg.default: _elementwise,
    aten.diag_embed.default: _diag_embed,
    aten.mv.default: _mv,
    aten.mm.default: _product,
    aten.bmm.default: _product,
}
