"""A checkpoint computes again out of sight of torch.func's transforms: never a silent zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pushforward import UnsupportedError, jacfwd, jacobian, jacrev, jvp, vjp

X = torch.linspace(-1, 1, 3, dtype=torch.float64)


def plain(x: Tensor) -> Tensor:
    return x.sin() * x


def checkpointed(x: Tensor) -> Tensor:
    result: Tensor = checkpoint(plain, x, use_reentrant=False)
    return result


INNER: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "jacfwd": jacfwd,
    "jacrev": jacrev,
    "jacobian": jacobian,
    "vjp": lambda f: lambda x: vjp(f, x)[1](torch.ones_like(x))[0],
}


@pytest.mark.parametrize("inner", INNER)
def test_forward_mode_of_torch_func_outside_is_refused(inner: str) -> None:
    func = INNER[inner](checkpointed)
    with pytest.raises(UnsupportedError, match="checkpoint"):
        torch.func.jvp(func, (X,), (X,))
    with pytest.raises(UnsupportedError, match="checkpoint"):
        torch.func.jacfwd(func)(X)


@pytest.mark.parametrize("inner", INNER)
def test_ours_outside_is_right(inner: str) -> None:
    func, expected = INNER[inner](checkpointed), torch.func.jacrev(INNER[inner](plain))(X)
    torch.testing.assert_close(jacfwd(func)(X), expected)
    torch.testing.assert_close(jacrev(func)(X), expected)
    torch.testing.assert_close(jvp(func, (X,), (X,))[1], expected @ X)


@pytest.mark.parametrize("inner", INNER)
def test_a_batch_of_torch_func_outside_is_refused(inner: str) -> None:
    func, batch = INNER[inner](checkpointed), torch.stack([X, 2 * X])
    with pytest.raises(UnsupportedError, match=r"checkpoint below a transform of torch\.func"):
        torch.func.vmap(func)(batch)


@pytest.mark.parametrize("inner", INNER)
def test_a_checkpoint_of_what_has_no_batch_is_right_in_one(inner: str) -> None:
    def func(x: Tensor) -> Tensor:
        return x * checkpointed(X)

    batch = torch.stack([X, 2 * X])
    expected = torch.func.vmap(torch.func.jacrev(lambda x: x * plain(X)))(batch)
    if inner == "vjp":
        expected = expected.sum(-2)
    torch.testing.assert_close(torch.func.vmap(INNER[inner](func))(batch), expected)
