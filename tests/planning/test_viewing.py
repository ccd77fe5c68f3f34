"""Viewing: views of views become one, or none, and have the same elements however tensors lie in memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pushforward.planning.kernels import Replay, written


def _written(compute: Callable[..., Any], *values: Tensor) -> Replay:
    replay = written(values, lambda: compute(*values))
    assert replay is not None
    return replay


def _num_calls(replay: Replay) -> int:
    return sum("(" in line for line in (replay.__doc__ or "").splitlines()[1:])


CHAINS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {  # and how many calls are left
    "an axis and back": (lambda x: x[None].cos().reshape(1, 4, 6)[0].sin(), 4),
    "an axis, reshaped, and back": (
        lambda x: x.sin()[None].reshape(1, 24)[0].reshape(4, 6).cos(),
        2,
    ),
    "two axes at once": (lambda x: x.sin()[None][:, None].cos(), 3),
    "permuted twice": (
        lambda x: x.sin().reshape(2, 2, 6).permute(1, 2, 0).permute(2, 1, 0).cos(),
        4,
    ),
    "permuted back": (lambda x: x.sin().t().permute(1, 0).cos(), 2),
    "copied and back": (lambda x: x.sin().t().reshape(24).reshape(6, 4).t().cos(), 2),
    "a part twice": (lambda x: x.sin()[1][2:][None][0].cos() + 1, 5),
    "the same part": (lambda x: x.sin()[1:3][0] * x.sin()[1], 4),
    "spread": (lambda x: x.sin().sum(0)[None].expand(3, 6)[None][0].cos(), 5),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_views(name: str) -> None:
    compute, count = CHAINS[name]
    x = torch.randn(4, 6)
    replay = _written(lambda x: [[compute(x)]], x)
    assert _num_calls(replay) == count
    for y in (torch.randn(4, 6), torch.randn(6, 4).t(), torch.randn(4, 12)[:, ::2]):
        torch.testing.assert_close(replay([y])[0][0], compute(y), rtol=0, atol=0)


def _viewed(x: Tensor, draw: random.Random) -> Tensor:
    """Return a view of a tensor of 24 elements or fewer, drawn from many."""
    for _ in range(draw.randrange(1, 7)):
        kind = draw.randrange(7)
        if kind == 0:
            x = x.permute(draw.sample(range(x.dim()), x.dim()))
        elif kind == 1:
            sizes = [d for d in (1, 2, 3, 4, 6, 12) if x.numel() % d == 0]
            first = draw.choice(sizes)
            x = x.reshape(first, x.numel() // first)
        elif kind == 2:
            x = x.unsqueeze(draw.randrange(x.dim() + 1))
        elif kind == 3 and x.dim() > 1:
            x = x.select(0, draw.randrange(x.shape[0]))
        elif kind == 4 and x.shape[0] > 1:
            x = x[draw.randrange(x.shape[0] - 1) :: draw.choice((1, 2))]
        elif kind == 5:
            x = x[None].expand(2, *x.shape)[draw.randrange(2)]
        elif kind == 6:
            x = x.squeeze()[None]
    return x


@pytest.mark.parametrize("seed", range(40))
def test_drawn_views(seed: int) -> None:
    def compute(x: Tensor, y: Tensor) -> list[list[Tensor]]:
        draw = random.Random(seed)
        base = x.sin()
        views = [_viewed(base, draw) for _ in range(3)] + [_viewed(y, draw) for _ in range(2)]
        return [[view.cos() for view in views], [views[0], views[3]]]

    torch.manual_seed(seed)
    replay = _written(compute, torch.randn(4, 6), torch.randn(2, 3, 4))
    for _ in range(2):
        x, y = torch.randn(6, 4).t(), torch.randn(4, 3, 2).permute(2, 1, 0)
        for found, expected in zip(replay([x, y]), compute(x, y), strict=True):
            for f, e in zip(found, expected, strict=True):
                torch.testing.assert_close(f, e, rtol=0, atol=0)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.t().view(24).cos(),
        lambda x: x.as_strided((4, 6), (6, 1)).cos(),
        lambda x: x.as_strided((24,), (1,)).reshape(4, 6).cos(),
        lambda x: torch.permute(input=x, dims=(1, 0))[None][0].cos(),
        lambda x: torch.mul(input=torch.reshape(input=x, shape=(4, 6)).sin(), other=x),
    ],
)
def test_what_depends_on_memory_is_left_alone(compute: Callable[[Tensor], Tensor]) -> None:
    replay = _written(lambda x: [[compute(x)]], torch.randn(6, 4).t())
    y = torch.randn(6, 4).t()
    torch.testing.assert_close(replay([y])[0][0], compute(y), rtol=0, atol=0)


def test_what_is_returned_twice_stays_two_tensors() -> None:
    replay = _written(
        lambda x: [[(y := x.sin()), y[None][0], y.reshape(6, 2).reshape(3, 4)]], torch.randn(3, 4)
    )
    first, second, third = replay([torch.randn(3, 4)])[0]
    assert first is not second
    assert second is not third


def test_values_are_returned_as_views() -> None:
    x = torch.randn(3, 4)
    replay = _written(lambda x: [[x[None][0]]], torch.randn(3, 4))
    assert replay([x])[0][0] is not x
