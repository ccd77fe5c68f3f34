"""Rules that treat few numbers otherwise than many: both ways, in every precision, against autograd in float64."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pushforward as pf

F = torch.nn.functional
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.04, torch.float16: 5e-3}
SHAPES = [(), (0,), (1,), (6,), (3, 1), (2, 3), (4096,), (4097,), (3, 3000)]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "gelu by tanh": functools.partial(F.gelu, approximate="tanh"),
}


@pytest.mark.parametrize("is_strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_slopes_of_few_and_of_many_numbers_agree_with_autograd_in_double_precision(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], is_strided: bool
) -> None:
    """Pushed and pulled, at the same rounded point."""
    function = FUNCTIONS[name]
    torch.manual_seed(0)
    x = (2 * torch.randn(*shape, 2, dtype=torch.float64)).to(dtype)[..., 0]
    x = x if is_strided else x.contiguous()
    direction = torch.randn_like(x)
    wide = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(function(wide), wide, direction.double())
    pushed = pf.jvp(function, (x,), (direction,))[1]
    (pulled,) = pf.vjp(function, x)[1](direction)
    for found in (pushed, pulled):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=4 * ROUNDING[dtype])


SCANS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "cumprod": lambda x, axis: x.cumprod(axis),
    "cumprod with zeros": lambda x, axis: (x * (x > -1)).cumprod(axis),
    "logcumsumexp": lambda x, axis: x.logcumsumexp(axis),
    "prod": lambda x, axis: x.prod(axis, keepdim=True).expand(x.shape),
    "prod with zeros": lambda x, axis: (x * (x > -1)).prod(axis, keepdim=True).expand(x.shape),
}


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((), 0), ((1,), 0), ((5,), -1), ((2, 3, 4), 0), ((2, 3, 4), 1), ((140,), 0), ((3, 80, 2), 1)],
    ids=str,
)
@pytest.mark.parametrize("name", SCANS)
def test_scans_of_few_and_of_many_numbers_agree_with_autograd(
    name: str, shape: tuple[int, ...], axis: int
) -> None:
    """The Jacobian both ways, and the gradient of a gradient."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, *shape, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        return SCANS[name](x, axis)

    expected = torch.autograd.functional.jacobian(function, x)
    torch.testing.assert_close(pf.jacfwd(function)(x), expected)
    torch.testing.assert_close(pf.jacrev(function)(x), expected)
    torch.testing.assert_close(
        pf.hvp(lambda x: (function(x) * weight).sum(), (x,), (weight,))[1][0],
        torch.autograd.functional.vhp(lambda x: (function(x) * weight).sum(), x, weight)[1],
    )
