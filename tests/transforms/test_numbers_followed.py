"""Numbers keep their precision where autograd, or torch.func, goes back over kernels known from other calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pushforward as pf

F64 = torch.float64
X, TANGENT, COTANGENT = torch.tensor([[-0.93, -0.3], [-0.2, 0.9], [1.1, 0.4]], dtype=F64).unbind()


def steps(x: Tensor) -> Tensor:
    for _ in range(3):
        x = x + 0.1 * x.sin()
    return x


def pushed_gradient(lib: Any, x: Tensor) -> Any:
    def gradient(x: Tensor) -> Tensor:
        return lib.vjp(steps, x)[1](COTANGENT)[0]

    if lib is pf:
        return pf.linearize(gradient, x)[1](TANGENT)
    return torch.func.jvp(gradient, (x,), (TANGENT,))[1]


def backpropagated(lib: Any) -> Tensor:
    x = X.clone().requires_grad_()
    return torch.autograd.grad(pushed_gradient(lib, x).sum(), x)[0]


@pytest.mark.parametrize("is_around", [False, True], ids=["autograd", "torch.func"])
def test_numbers_are_not_rounded_to_the_default_dtype(is_around: bool) -> None:
    assert torch.get_default_dtype() is torch.float32

    def third(lib: Any) -> Tensor:
        if not is_around:
            return backpropagated(lib)
        return torch.func.vjp(lambda x: pushed_gradient(lib, x), X)[1](COTANGENT)[0]

    expected = third(torch.func)
    for _ in range(6):
        torch.testing.assert_close(third(pf), expected, rtol=1e-14, atol=1e-14)
