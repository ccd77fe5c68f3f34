"""The cases on which jacfwd is measured against torch.func.jacfwd, with the ratios it must reach."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Case:
    """A function at a point, and the target for our time over theirs."""

    name: str
    label: str
    make: Callable[[], tuple[Callable[[Tensor], Tensor], Tensor]]
    target: float
    with_memory: bool = False
    is_slow: bool = False  # torch.func needs a minute and 10 GB; left out by --quick


def _sin_5() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    return torch.sin, torch.randn(5)


def _chain_50() -> tuple[Callable[[Tensor], Tensor], Tensor]:
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


def _mlp_small() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    return _mlp(64, 128, 128, 10), torch.randn(64)


def _mlp_wide() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    return _mlp(512, 512, 512, 512), torch.randn(512)


def _sin_2000() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    return torch.sin, torch.randn(2000)


def _sum_sin_3000() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    return lambda x: torch.sum(torch.sin(x)), torch.randn(3000)


def _images() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    return _mlp(784, 128, 10), torch.randn(64, 784)


CASES = [
    Case("sin_5", "sin on 5 numbers", _sin_5, 0.15),
    Case("chain_50", "chain of 50 sines on 5 numbers", _chain_50, 0.60),
    Case("mlp_small", "MLP 64-128-128-10 (tanh)", _mlp_small, 0.25),
    Case("mlp_wide", "MLP 512-512-512-512 (tanh)", _mlp_wide, 0.60),
    Case("sin_2000", "sin on 2000 numbers", _sin_2000, 0.40, with_memory=True),
    Case("sum_sin_3000", "sum(sin(x)) on 3000 numbers", _sum_sin_3000, 0.02, with_memory=True),
    Case("images", "64 images through 784-128-10", _images, 0.05, with_memory=True, is_slow=True),
]
