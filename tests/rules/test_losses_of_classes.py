"""Losses of classes, and gradients by the weights of convolutions: pulled for one output and for several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pushforward as pf

CALLS = 5
SHAPES = {"samples": (5, 4), "one": (4,), "space": (2, 4, 3), "image": (2, 4, 3, 2)}


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 1])
@pytest.mark.parametrize("has_weight", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_cross_entropy(
    shape: tuple[int, ...], has_weight: bool, ignore_index: int, reduction: str
) -> None:
    weight = torch.rand(4, dtype=torch.float64) if has_weight else None
    target = torch.randint(0, 4, (shape[0], *shape[2:]) if len(shape) > 1 else ())
    if not target.dim():
        target = torch.tensor(2)

    def f(x: Tensor) -> Tensor:
        return F.cross_entropy(
            x, target, weight=weight, ignore_index=ignore_index, reduction=reduction
        )

    def loss(x: Tensor) -> Tensor:
        return f(x.sin()).sum()

    for _ in range(CALLS):
        x = torch.randn(shape, dtype=torch.float64)
        gradient, jac = torch.func.grad(loss)(x), torch.func.jacrev(f)(x)
        close(pf.grad(loss)(x), gradient)
        close(pf.jacfwd(f)(x), jac)
        close(pf.jacrev(f)(x), jac)
        hessian = torch.func.hessian(loss)(x)
        close(pf.hessian(loss)(x), hessian)
        close(pf.jacrev(pf.grad(loss))(x), hessian)
        xs = torch.stack([x, 2 * x])
        close(pf.vmap(pf.grad(loss))(xs), torch.func.vmap(torch.func.grad(loss))(xs))


def test_where_all_samples_are_ignored() -> None:
    target = torch.full((3,), 1)

    def f(x: Tensor) -> Tensor:
        return F.cross_entropy(x, target, ignore_index=1, reduction="sum")

    for _ in range(CALLS):
        x = torch.randn(3, 4, dtype=torch.float64)
        close(pf.grad(f)(x), torch.zeros_like(x))
        close(pf.jacfwd(f)(x), torch.zeros_like(x))


CONVOLUTIONS: dict[str, Any] = {
    "plain": (F.conv2d, (4, 2, 3, 3), {}),
    "strided": (F.conv2d, (4, 2, 3, 3), {"stride": 2, "padding": 1}),
    "groups": (F.conv2d, (4, 1, 3, 3), {"groups": 2}),
    "dilated": (F.conv2d, (4, 2, 2, 2), {"dilation": 2}),
    "transposed": (F.conv_transpose2d, (2, 4, 3, 3), {"stride": 2, "output_padding": 1}),
    "transposed groups": (F.conv_transpose2d, (2, 3, 3, 3), {"groups": 2}),
    "pooled": (lambda x, w: F.avg_pool2d(F.conv2d(x, w), 2, ceil_mode=True), (4, 2, 3, 3), {}),
    "adaptive": (lambda x, w: F.adaptive_avg_pool2d(F.conv2d(x, w), 3), (4, 2, 3, 3), {}),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_weights_of_convolutions(name: str, dtype: torch.dtype) -> None:
    function, shape, options = CONVOLUTIONS[name]
    if dtype.is_complex and name in ("pooled", "adaptive"):
        return
    image = torch.randn(3, 2, 7, 7, dtype=dtype)

    def loss(w: Tensor, x: Tensor = image) -> Tensor:
        return (function(x, w, **options).abs() ** 2).sum()

    def three(w: Tensor) -> Tensor:
        return torch.view_as_real(function(image, w, **options).cfloat()).double().mean((2, 3))[0]

    for _ in range(CALLS):
        w = torch.randn(shape, dtype=dtype)
        expected = torch.autograd.grad(loss(p := w.clone().requires_grad_()), p)[0]
        close(pf.grad(loss)(w), expected)
        if not dtype.is_complex:
            by_image = torch.func.grad(loss, 1)(w, image)
            close(pf.grad(loss, 1)(w, image), by_image)
            jac = torch.func.jacrev(three)(w)
            torch.testing.assert_close(pf.jacrev(three)(w), jac, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(pf.jacfwd(three)(w), jac, rtol=1e-5, atol=1e-6)
            close(pf.jacrev(pf.grad(loss))(w), torch.func.hessian(loss)(w))
