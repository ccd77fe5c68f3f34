"""Circular padding: copies around a circle, of which nothing has to be asked at every call."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pushforward as pf
from pushforward.tape import probing

F64 = torch.float64
CASES = [
    ((1, 2, 5), (1, 2)),
    ((2, 5), (5, 5)),
    ((2, 4, 5), (1, 1, 0, 2)),
    ((1, 2, 4, 5), (0, 3, 2, 0)),
    ((2, 3, 4, 5), (1, 0, 2, 1, 0, 3)),
    ((1, 2, 5), (-1, 2)),
    ((1, 2, 5), (0, 0)),
]


@pytest.mark.parametrize(("shape", "pad"), CASES)
def test_values_and_derivatives_are_pytorchs(shape: tuple[int, ...], pad: tuple[int, ...]):
    def func(x: Tensor) -> Tensor:
        return F.pad(x, pad, mode="circular") ** 2

    for transform in (pf.jacfwd, pf.jacrev, pf.jacobian):
        for _ in range(3):
            x = torch.rand(shape, dtype=F64)
            got, value = transform(lambda x: (func(x), func(x)), has_aux=True)(x)
            assert torch.equal(value, func(x))
            torch.testing.assert_close(got, torch.autograd.functional.jacobian(func, x))


def test_modules_and_vmap_and_hessians():
    conv = torch.nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", dtype=F64)
    x = torch.rand(2, 1, 3, 4, dtype=F64)
    got = torch.func.vmap(pf.jacfwd(lambda x: conv(x).tanh()))(x)
    expected = torch.func.vmap(torch.func.jacrev(lambda x: conv(x).tanh()))(x)
    torch.testing.assert_close(got, expected)

    def energy(x: Tensor) -> Tensor:
        return (F.pad(x, (1, 1, 1, 1), mode="circular") ** 3).sum()

    torch.testing.assert_close(pf.hessian(energy)(x[0]), torch.func.hessian(energy)(x[0]))


def test_no_node_is_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probing, "_taken", lambda *_: pytest.fail("a node was asked"))
    x = torch.rand(1, 2, 5, dtype=F64)
    pf.jacfwd(lambda x: F.pad(x, (1, 2), mode="circular") ** 2)(x)


@pytest.mark.parametrize(("shape", "pad"), [((1, 2, 5), (6, 0)), ((5,), (1, 1))])
def test_what_pytorch_refuses_is_refused(shape: tuple[int, ...], pad: tuple[int, ...]):
    x = torch.rand(shape)
    with pytest.raises((RuntimeError, NotImplementedError)) as expected:
        F.pad(x, pad, mode="circular")
    with pytest.raises(type(expected.value)):
        pf.jacfwd(lambda x: F.pad(x, pad, mode="circular"))(x)
