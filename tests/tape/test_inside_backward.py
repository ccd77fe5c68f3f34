"""Transforms called inside a backward pass of autograd: of a custom function, of a hook, of ``torch.func``."""

import pytest
import torch
from oracles import assert_close
from torch import Tensor

import pushforward as pf

F64 = torch.float64


class Square(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, y_bar):
        return 2 * ctx.saved_tensors[0] * y_bar


def func(x: Tensor) -> Tensor:
    """Copies into a view, an operator without a rule of ours, and a custom function."""
    y = x.clone()
    y[1:3] = x[:2] ** 2
    y[-1] = 5.0
    return torch.special.erfcx(y) * Square.apply(x)


def scalar(x: Tensor) -> Tensor:
    return func(x).sum()


TRANSFORMS = {
    "jacfwd": lambda x: pf.jacfwd(func)(x),
    "jacrev": lambda x: pf.jacrev(func)(x),
    "hessian": lambda x: pf.hessian(scalar)(x),
    "vjp": lambda x: pf.vjp(func, x)[1](x)[0],
    "jvp": lambda x: pf.jvp(func, (x,), (x,))[1],
    "linearize": lambda x: pf.linearize(func, x)[1](x),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_inside_a_custom_backward(name):
    found = []

    class Outer(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.sum()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, y_bar):
            (x,) = ctx.saved_tensors
            found.append(TRANSFORMS[name](x.detach()))
            return y_bar * x

    x = torch.rand(4, dtype=F64)
    expected = TRANSFORMS[name](x)
    tracked = x.clone().requires_grad_()
    for _ in range(3):
        torch.autograd.grad(Outer.apply(tracked), tracked)
        Outer.apply(tracked).backward()
        torch.func.grad(Outer.apply)(x)
        pf.grad(Outer.apply)(x)
    assert len(found) >= 12
    for each in found:
        assert_close(each, expected)


def test_inside_a_hook():
    found = []
    x = torch.rand(4, dtype=F64)
    tracked = x.clone().requires_grad_()
    y = tracked.sin()
    y.register_hook(lambda g: found.append(pf.jacrev(func)(x)))
    torch.autograd.grad(y.sum(), tracked)
    assert_close(found[0], pf.jacrev(func)(x))
