"""Random programs of writes, run on PyTorch's tensors and, as a reference, on memory without any write in place.

The reference keeps every base as a flat tensor, and a view as positions in one: a write makes a new flat tensor. What
autograd does not follow changes the values there, and leaves the derivative.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import assert_close
from torch import Tensor

from pushforward import hessian, jacfwd, jacobian, jacrev, linearize, vjp

F64 = torch.float64
X = torch.tensor([0.7, -0.4, 1.2, 0.3], dtype=F64)
CAPTURED = torch.tensor([0.5, 1.5, -0.5, 0.25, 2.0, -1.0], dtype=F64)
SHAPES = [(4,), (2, 2), (2, 3), (3, 2), (6,)]
NUM_PROGRAMS = 120


class Actual:
    """PyTorch's tensors, written to in place."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def new(self, value: Tensor) -> Tensor:
        return value.clone()

    def captured(self, tensor: Tensor) -> Tensor:
        return tensor

    def read(self, view: Tensor) -> Tensor:
        return view

    def view(self, view: Tensor, take: Callable[[Tensor], Tensor]) -> Tensor:
        return take(view)

    def write(self, view: Tensor, in_place: Callable[..., Any], value: Tensor, mode: str) -> None:
        if mode == "no_grad":
            with torch.no_grad():
                in_place(view, value)
        elif mode == "detach":
            in_place(view.detach(), value.detach())
        else:
            in_place(view, value)


class Reference:
    """Flat tensors that are replaced."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.bases: list[Tensor] = []

    def new(self, value: Tensor) -> tuple[int, Tensor]:
        self.bases.append(value.reshape(-1))
        return len(self.bases) - 1, torch.arange(value.numel()).reshape(value.shape)

    def captured(self, tensor: Tensor) -> tuple[int, Tensor]:
        return self.new(tensor.clone())

    def read(self, view: tuple[int, Tensor]) -> Tensor:
        return self.bases[view[0]][view[1]]

    def view(
        self, view: tuple[int, Tensor], take: Callable[[Tensor], Tensor]
    ) -> tuple[int, Tensor]:
        return view[0], take(view[1])

    def write(
        self, view: tuple[int, Tensor], in_place: Callable[..., Any], value: Tensor, mode: str
    ) -> None:
        old = self.read(view)
        new = old.clone()
        if in_place is IN_PLACE["out="]:  # autograd does not follow it
            in_place = IN_PLACE["copy_"]
            value = value * (value + 1)
        in_place(new, value)
        if mode != "grad":
            new = old + (new - old).detach()
        base, places = view
        self.bases[base] = self.bases[base].index_put((places,), new)


def _set(part: Any) -> Callable[[Tensor, Tensor], None]:
    def in_place(view: Tensor, value: Tensor) -> None:
        view[part] = value

    return in_place


def _augment(view: Tensor, value: Tensor) -> None:
    view[0] += value[0]
    view[-1] *= value[-1]


def _put(view: Tensor, value: Tensor) -> None:
    view.index_put_((torch.tensor([0, 0]),), value[:1].expand(2, *value.shape[1:]), accumulate=True)


def _every_third(view: Tensor) -> Tensor:
    return (torch.arange(view.numel()) % 3 == 1).reshape(view.shape)


IN_PLACE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add_": lambda y, v: y.add_(v, alpha=0.5),
    "mul_": lambda y, v: y.mul_(v),
    "sin_": lambda y, v: y.sin_(),
    "copy_": lambda y, v: y.copy_(v),
    "+=": lambda y, v: y.__iadd__(v),
    "/=": lambda y, v: y.__itruediv__(v * v + 2),
    "tanh_": lambda y, v: y.tanh_(),
    "addcmul_": lambda y, v: y.addcmul_(v, v),
    "sigmoid_": lambda y, v: torch.sigmoid_(y),
    "lerp_": lambda y, v: y.lerp_(v, 0.3),
    "zero_": lambda y, v: y.zero_(),
    "fill_": lambda y, v: y.fill_(0.7),
    "clamp_": lambda y, v: y.clamp_(-1.5, 1.5),
    "elu": lambda y, v: torch.nn.functional.elu(y, inplace=True),
    "[...]": _set(...),
    "[0]": lambda y, v: _set(0)(y, v[0]),
    "[1:]": lambda y, v: _set(slice(1, None))(y, v[1:]),
    "[::2]": lambda y, v: _set(slice(None, None, 2))(y, v[::2]),
    "[mask]": lambda y, v: _set(torch.arange(y.shape[0]) % 2 == 0)(y, v[::2]),
    "[list]": lambda y, v: _set(torch.tensor([y.shape[0] - 1, 0]))(y, v[:2]),
    "[0] +=": _augment,
    "index_put_": _put,
    "masked_fill_": lambda y, v: y.masked_fill_(_every_third(y), 0.2),
    "out=": lambda y, v: torch.mul(v, v + 1, out=y),
}
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda y: y.reshape(-1),
    "[1:]": lambda y: y[1:] if y.shape[0] > 2 else y,
    "[:2]": lambda y: y[:2],
    "[::2]": lambda y: y[::2] if y.shape[0] > 3 else y,
    "row": lambda y: y[1] if y.dim() > 1 else y,
    "column": lambda y: y[:, 0] if y.dim() > 1 else y,
    "t": lambda y: y.t() if y.dim() > 1 else y,
    "diagonal": lambda y: y.diagonal() if y.dim() > 1 else y,
    "as pairs": lambda y: y.view(2, -1) if y.is_contiguous() and y.numel() % 2 == 0 else y,
    "unsqueeze": lambda y: y.unsqueeze(0).squeeze(0),
    "unbind": lambda y: y.unbind()[1] if y.dim() > 1 else y,
    "chunk": lambda y: y.chunk(2)[0] if y.shape[0] > 3 else y,
}


def program(seed: int, machine: Any) -> Tensor:
    """Run the program with a seed: the random choices depend on it and on shapes alone."""
    choose = random.Random(seed)
    x = machine.x
    views = [machine.new(x * 1), machine.captured(CAPTURED)]
    outputs: list[Tensor] = []
    is_plain = choose.random() < 0.5  # no islands without gradients

    def value(like: Tensor) -> Tensor:
        kind = choose.choice(["x", "read", "read", "product", "constant"])
        if kind == "constant":
            return torch.full(like.shape, choose.uniform(-1, 1), dtype=F64)
        flat = x * choose.uniform(0.5, 1.5)
        if kind != "x":
            read = machine.read(choose.choice(views)).reshape(-1)
            flat = read.cos() if kind == "read" else read * read
        return flat.repeat(like.numel() // flat.numel() + 1)[: like.numel()].reshape(like.shape)

    for _ in range(choose.randint(4, 9)):
        action = choose.choice(["new", "view", "view", "write", "write", "write", "use"])
        if action == "new":
            shape = choose.choice(SHAPES)
            if choose.random() < 0.5:
                views.append(machine.new(torch.zeros(shape, dtype=F64)))
            else:
                views.append(machine.new(value(torch.empty(shape))))
        elif action == "view":
            view = choose.choice(views)
            take = choose.choice(list(VIEWS.values()))
            views.append(machine.view(view, take))
        elif action == "write":
            view = choose.choice(views)
            in_place = choose.choice(list(IN_PLACE.values()))
            mode = "grad" if is_plain else choose.choice(["grad", "grad", "no_grad", "detach"])
            machine.write(view, in_place, value(machine.read(view)), mode)
        else:
            read = machine.read(choose.choice(views))
            outputs.append(read.exp().sum() if choose.random() < 0.5 else (read * read).sum())
    outputs += [(machine.read(view) * (i + 1)).sum() for i, view in enumerate(views)]
    return torch.stack(outputs)


def _actual(seed: int) -> Callable[[Tensor], Tensor]:
    before = CAPTURED.clone()

    def f(x: Tensor) -> Tensor:
        CAPTURED.copy_(before)
        return program(seed, Actual(x))

    return f


def _reference(seed: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value, the Jacobian and the Hessian of the sum of squares, by rows of autograd."""
    leaf = x.clone().requires_grad_()
    y = program(seed, Reference(leaf))
    rows = [torch.autograd.grad(v, leaf, create_graph=True)[0] for v in y]
    total = sum(2 * v * row for v, row in zip(y, rows, strict=True))
    assert isinstance(total, Tensor)
    second = [torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in total]
    return y.detach(), torch.stack(rows).detach(), torch.stack(second)


@pytest.fixture(autouse=True)
def _captured_again() -> Any:
    before = CAPTURED.clone()
    yield
    assert not CAPTURED.requires_grad
    CAPTURED.copy_(before)


@pytest.mark.parametrize("seed", range(NUM_PROGRAMS))
def test_derivatives_of_a_random_program_are_those_of_the_program_without_writes(seed):
    y, jac, hess = _reference(seed, X)
    f = _actual(seed)
    for _ in range(3):  # the later calls repeat kernels
        assert_close(jacfwd(f)(X), jac)
        assert_close(jacrev(f)(X), jac)
        assert_close(jacobian(f)(X), jac)
    out, push = linearize(f, X)
    assert_close(out, y)
    assert_close(push(X), jac @ X)
    assert_close(vjp(f, X)[1](y)[0], y @ jac)
    square = lambda x: (f(x) ** 2).sum()  # noqa: E731
    for _ in range(2):
        assert_close(hessian(square)(X), hess)
        assert_close(jacfwd(jacrev(square))(X), hess)
