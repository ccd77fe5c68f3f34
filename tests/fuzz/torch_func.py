"""PyTorch's own transforms under the names of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.func import grad, grad_and_value, jvp, linearize, vjp

__all__ = [
    "grad", "grad_and_value", "hessian", "hvp", "jacfwd", "jacobian", "jacrev", "jvp", "linearize",
    "value_and_jacobian", "vjp", "vmap",
]  # fmt: skip


def jacfwd(func: Callable[..., Any], argnums: Any = 0, **options: Any) -> Callable[..., Any]:
    if argnums == -1:  # for which torch.func gives zeros
        return lambda *args: torch.func.jacfwd(func, len(args) - 1)(*args)
    return torch.func.jacfwd(func, argnums)


def jacrev(func: Callable[..., Any], argnums: Any = 0, **options: Any) -> Callable[..., Any]:
    return torch.func.jacrev(func, argnums)


def hessian(func: Callable[..., Any], argnums: Any = 0, **options: Any) -> Callable[..., Any]:
    return torch.func.hessian(func, argnums)


jacobian = jacrev


def vmap(func: Callable[..., Any], in_dims: Any = 0) -> Callable[..., Any]:
    return torch.func.vmap(func, in_dims=in_dims)


def value_and_jacobian(func: Callable[..., Any], argnums: Any = 0) -> Callable[..., Any]:
    return lambda *args: (func(*args), torch.func.jacrev(func, argnums)(*args))


def hvp(func: Callable[..., Any], primals: Any, vectors: Any) -> Any:
    numbers = tuple(range(len(primals)))
    return func(*primals), jvp(grad(func, argnums=numbers), primals, vectors)[1]
