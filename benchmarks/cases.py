"""What is measured: a function at a point, what of ours, against which peers, and the ratio it must reach."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pushforward

Made = tuple[Callable[[Tensor], Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Case:
    """A function at a point, and the target for our time over that of the fastest peer."""

    name: str
    label: str
    make: Callable[[], Made]
    target: float
    ours: str = "jacfwd"  # of SIDES
    peers: tuple[str, ...] = ("torch.jacfwd",)
    with_memory: bool = False
    is_slow: bool = False  # torch.func needs a minute and 10 GB; left out by --quick


SIDES: dict[str, Callable[..., Any]] = {
    "jacfwd": pushforward.jacfwd,
    "jacobian": pushforward.jacobian,
    "forward": functools.partial(pushforward.jacobian, mode="forward"),
    "reverse": functools.partial(pushforward.jacobian, mode="reverse"),
    "cross": functools.partial(pushforward.jacobian, mode="cross"),
    "hessian": pushforward.hessian,
    "grad": pushforward.grad,
    "torch.jacfwd": torch.func.jacfwd,
    "torch.jacrev": torch.func.jacrev,
    "torch.hessian": torch.func.hessian,
    "torch.grad": torch.func.grad,
}
BOTH = ("torch.jacfwd", "torch.jacrev")
PURE = ("forward", "reverse")


def _sin_5() -> Made:
    return torch.sin, torch.randn(5)


def _chain_50() -> Made:
    def chain(x: Tensor) -> Tensor:
        for _ in range(50):
            x = torch.sin(x)
        return x

    return chain, torch.randn(5)


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


def _mlp_small() -> Made:
    return _mlp(64, 128, 128, 10), torch.randn(64)


def _mlp_wide() -> Made:
    return _mlp(512, 512, 512, 512), torch.randn(512)


def _sin_2000() -> Made:
    return torch.sin, torch.randn(2000)


def _sum_sin_3000() -> Made:
    return lambda x: torch.sum(torch.sin(x)), torch.randn(3000)


def _images() -> Made:
    return _mlp(784, 128, 10), torch.randn(64, 784)


def _mlp_in() -> Made:
    return _mlp(1000, 256, 256, 256, 10), torch.randn(1000)


def _mlp_out() -> Made:
    return _mlp(10, 256, 256, 256, 1000), torch.randn(10)


def _bottleneck() -> Made:
    return _mlp(1000, 256, 10, 256, 1000), torch.randn(1000)


def _bottleneck_wide() -> Made:
    return _mlp(1000, 512, 10, 512, 1000), torch.randn(1000)


def _bottleneck_short() -> Made:
    return _mlp(1000, 10, 1000), torch.randn(1000)


def _scalar(made: Made) -> Made:
    func, x = made
    return lambda x: func(x).sum(), x


def _energy() -> Made:
    return _scalar((_mlp(50, 64, 64, 1), torch.randn(50)))


def _quartic() -> Made:
    return lambda x: (x**4).sum(), torch.randn(1000)


def _sum_sin_2000() -> Made:
    return lambda x: torch.sum(torch.sin(x)), torch.randn(2000)


CASES = [
    Case("sin_5", "sin on 5 numbers", _sin_5, 0.15),
    Case("chain_50", "chain of 50 sines on 5 numbers", _chain_50, 0.60),
    Case("mlp_small", "MLP 64-128-128-10 (tanh)", _mlp_small, 0.25),
    Case("mlp_wide", "MLP 512-512-512-512 (tanh)", _mlp_wide, 0.60),
    Case("sin_2000", "sin on 2000 numbers", _sin_2000, 0.40, with_memory=True),
    Case("sum_sin_3000", "sum(sin(x)) on 3000 numbers", _sum_sin_3000, 0.02, with_memory=True),
    Case("images", "64 images through 784-128-10", _images, 0.05, with_memory=True, is_slow=True),
    Case("jac_small", "MLP 64-128-128-10", _mlp_small, 0.20, "jacobian", BOTH),
    Case("jac_wide", "MLP 512-512-512-512", _mlp_wide, 0.60, "jacobian", BOTH),
    Case("jac_in", "MLP 1000-256-256-256-10", _mlp_in, 1.15, "jacobian", PURE),
    Case("jac_out", "MLP 10-256-256-256-1000", _mlp_out, 1.15, "jacobian", PURE),
    Case("bottleneck", "bottleneck 1000-256-10-256-1000", _bottleneck, 0.2, "cross", PURE),
    Case(
        "bottleneck_wide", "bottleneck 1000-512-10-512-1000", _bottleneck_wide, 0.2, "cross", PURE
    ),
    Case("bottleneck_3", "bottleneck 1000-10-1000", _bottleneck_short, 0.2, "cross", PURE),
    Case("hess_mlp", "MLP 50-64-64-1", _energy, 0.25, "hessian", ("torch.hessian",)),
    Case("hess_quartic", "sum(x⁴) on 1000", _quartic, 0.05, "hessian", ("torch.hessian",), True),
    Case(
        "hess_sin", "sum(sin(x)) on 2000", _sum_sin_2000, 0.05, "hessian", ("torch.hessian",), True
    ),
    Case("grad_mlp", "MLP 50-64-64-1", _energy, 1.0, "grad", ("torch.grad",)),
    Case("grad_quartic", "sum(x⁴) on 1000", _quartic, 1.0, "grad", ("torch.grad",)),
    Case(
        "grad_wide",
        "sum of MLP 512-512-512-512",
        lambda: _scalar(_mlp_wide()),
        1.0,
        "grad",
        ("torch.grad",),
    ),
    Case(
        "grad_small",
        "sum of MLP 64-128-128-10",
        lambda: _scalar(_mlp_small()),
        1.0,
        "grad",
        ("torch.grad",),
    ),
]
