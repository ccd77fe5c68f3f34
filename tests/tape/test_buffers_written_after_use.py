"""Captured tensors that are read first, and written to afterwards with what depends on inputs: running statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pushforward as pf

F64 = torch.float64
INDEX = torch.tensor([0])


def assign(buffer: Tensor, key: Any, value: Any) -> None:
    buffer[key] = value


WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add": lambda b, v: b.add_(v),
    "copy": lambda b, v: b.copy_(v),
    "multiply": lambda b, v: b.mul_(v),
    "average": lambda b, v: b.mul_(0.9).add_(v, alpha=0.1),
    "rows by index": lambda b, v: assign(b, INDEX, v[INDEX]),
    "a row": lambda b, v: assign(b, 0, v[0]),
    "index_copy": lambda b, v: b.index_copy_(0, INDEX, v[INDEX]),
    "index_add": lambda b, v: b.index_add_(0, INDEX, v[INDEX]),
    "scatter": lambda b, v: b.scatter_(0, torch.zeros(1, 3, dtype=torch.long), v[:1]),
    "a number": lambda b, v: b.fill_(1.5),
    "twice": lambda b, v: (b.copy_(v), b.add_(b.clone().sin())),
}
BUFFERS: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda base: base.reshape(3, 3).clone(),
    "view": lambda base: base.reshape(3, 3),
    "transposed": lambda base: base.reshape(3, 3).t(),
    "part": lambda base: torch.stack([base, base]).reshape(2, 3, 3)[1],
}
USES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quotient": lambda b, x: b / (x.abs() + 0.7),
    "product": lambda b, x: b * x.sin(),
    "matrices": lambda b, x: b @ x,
    "through a view": lambda b, x: b.t() * x.exp(),
}
TRANSFORMS: dict[str, Callable[[Any, Any], Callable[[Tensor], Tensor]]] = {
    "jacrev": lambda lib, f: lib.jacrev(f),
    "jacfwd": lambda lib, f: lib.jacfwd(f),
    "hessian": lambda lib, f: lib.jacrev(lib.grad(lambda x: f(x).sin().sum())),
}


def world(write: str, buffer: str, use: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return a function that writes to a buffer, and the buffer."""
    held = BUFFERS[buffer](torch.linspace(0.5, 1.5, 9, dtype=F64))

    def f(x: Tensor) -> Tensor:
        value = USES[use](held, x)
        WRITES[write](held, value)
        return value * held + x

    return f, held


def in_a_copy(write: str, use: str, held: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the same function, but for what it writes to."""

    def f(x: Tensor) -> Tensor:
        value, copy = USES[use](held, x), held.clone()
        WRITES[write](copy, value)
        return value * copy + x

    return f


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("buffer", BUFFERS)
@pytest.mark.parametrize("write", WRITES)
def test_derivatives_are_right_and_no_history_is_left(
    write: str, buffer: str, use: str, name: str
) -> None:
    x = torch.linspace(-0.9, 1.1, 9, dtype=F64).reshape(3, 3)
    f, held = world(write, buffer, use)
    start, transform = held.clone(), TRANSFORMS[name]
    expected = transform(torch.func, in_a_copy(write, use, start))(x)
    for _ in range(4):
        with torch.no_grad():
            held.copy_(start)
        found = transform(pf, f)(x)
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad
        assert not held.requires_grad
        assert held.grad_fn is None
        other, same = world(write, buffer, use)
        other(x)
        torch.testing.assert_close(held, same)


def test_a_normalization_with_a_running_scale() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, dtype=F64))
            self.register_buffer("scale", torch.full((3,), 0.5, dtype=F64))

        def forward(self, x: Tensor) -> Tensor:
            y = x / self.scale
            self.scale.mul_(0.9).add_(x.abs(), alpha=0.1)
            return y * self.weight * self.scale

    x = torch.tensor([0.3, -0.8, 1.2], dtype=F64)
    net = Scaled()
    for _ in range(5):
        scale = net.scale.clone()
        jac = pf.jacfwd(net)(x)
        after = 0.9 * scale + 0.1 * x.abs()
        torch.testing.assert_close(net.scale, after)
        expected = ((after + 0.1 * x.abs()) / scale).diag()
        torch.testing.assert_close(jac.detach(), expected)
        (gradient,) = torch.autograd.grad(jac.sum(), net.weight)
        torch.testing.assert_close(gradient, expected.sum(1))
        assert net.scale.grad_fn is None
