"""What programs, and the scripts printed of them, have in scope."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

import pushforward as P
from fuzz import reference as R
from fuzz import torch_func as T

__all__ = [
    "P", "R", "T", "Tensor", "apply_linear", "apply_vjp", "backpropagated", "nn", "ones_like", "set_training",
    "stacked", "tangents", "total",
]  # fmt: skip


def tangents(args: Any, scale: float = 0.7) -> Any:
    """Return directions for all tensors of a tree."""

    def one(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        flat = torch.cos(scale + torch.arange(x.numel(), dtype=torch.float64))
        made = torch.complex(flat, flat.flip(0)) if x.is_complex() else flat
        return made.to(x.dtype).reshape(x.shape)

    return tree_map(one, args)


def ones_like(tree: Any) -> Any:
    return tree_map(lambda x: torch.ones_like(x) if isinstance(x, Tensor) else x, tree)


def total(func: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return the function's outputs as one real number."""

    def summed(*args: Any) -> Tensor:
        leaves = [y for y in tree_flatten(func(*args))[0] if isinstance(y, Tensor)]
        sums = [
            ((y.real**2 + y.imag).sum() if y.is_complex() else (y * y + y).sum()) for y in leaves
        ]
        result = sums[0]
        for term in sums[1:]:
            result = result + term
        return result

    return summed


def apply_vjp(made: tuple[Any, ...]) -> Any:
    """Call the pullback that a vjp made."""
    output, pullback = made
    return output, pullback(tangents(output, 0.3))


def apply_linear(made: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
    """Call the linear function that linearize made."""
    output, linear = made
    return output, linear(*tangents(args))


def stacked(args: Any, batch: int) -> Any:
    """Return arguments with so many batch axes, of length 2, first."""
    for _ in range(batch):
        args = tree_map(
            lambda x: torch.stack([x, x * 0.75 + 0.1]) if isinstance(x, Tensor) else x, args
        )
    return args


def set_training(modules: Sequence[nn.Module], mode: bool) -> None:
    for module in modules:
        module.train(mode)


def one_of_those_alike(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the first of those with the same shape, strides and dtype in place of each."""
    first: dict[Any, Tensor] = {}
    return [first.setdefault((t.shape, t.stride(), t.dtype, t.requires_grad), t) for t in tensors]


def backpropagated(compute: Callable[[], Any], leaves: Sequence[Any]) -> Any:
    """Return a result, and its gradients by what it captures."""
    tensors = [x for m in leaves for x in (m.parameters() if isinstance(m, nn.Module) else [m])]
    tensors = [x for x in tensors if x.requires_grad]
    with R.differentiated():
        result = compute()
    parts = [y for y in tree_flatten(result)[0] if isinstance(y, Tensor) and y.requires_grad]
    if not tensors or not parts:
        return result, [torch.zeros_like(x) for x in tensors]
    number = total(lambda: parts)()
    found = torch.autograd.grad(number, tensors, allow_unused=True)
    zeros = [torch.zeros_like(x) if g is None else g for x, g in zip(tensors, found, strict=True)]
    return tree_map(lambda y: y.detach() if isinstance(y, Tensor) else y, result), zeros
