"""Gradients by the weights of convolutions in float32, which take other ways than those in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pushforward

# In channels, out channels, taps along each axis, padding.
SIZES = (
    (4, 9, 5, 0),
    (6, 16, 5, 2),
    (15, 12, 7, 3),
    (5, 10, 5, 6),
    (3, 16, 5, 2),
    (16, 16, 5, 2),
    (6, 16, 3, 1),
)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_gradients_by_weights_are_those_of_autograd(
    size: tuple[int, ...], dtype: torch.dtype
) -> None:
    num_in, num_out, taps, padding = size
    torch.manual_seed(0)
    image = torch.randn(3, num_in, 9, 8, dtype=dtype)
    weight = torch.randn(num_out, num_in, taps, taps, dtype=dtype)

    def function(w: Tensor) -> Tensor:
        y = F.conv2d(image.to(w.dtype), w, padding=padding)
        return torch.stack((y.abs().square().mean(), y.real.sum()))

    wide = weight.to(torch.complex128 if dtype.is_complex else torch.float64)
    expected = torch.stack(
        [
            torch.autograd.grad(function(w)[i], w)[0]
            for i in (0, 1)
            for w in [wide.clone().requires_grad_()]
        ]
    )
    if not dtype.is_complex:
        found = pushforward.jacrev(function)(weight)
        torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=2e-4)
    for i in (0, 1):
        one = pushforward.grad(lambda w, i=i: function(w)[i])(weight)
        torch.testing.assert_close(one.to(expected.dtype), expected[i], rtol=2e-4, atol=2e-4)
        assert one.is_contiguous()


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}, {"groups": 2}, {}], ids=str)
def test_other_convolutions_keep_their_way(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 8, 14, 14)
    weight = torch.randn(10, 8 // options.get("groups", 1), 5, 5)

    def function(w: Tensor) -> Tensor:
        return F.conv2d(image.to(w.dtype), w, padding=2, **options).square().mean()

    wide = weight.double().requires_grad_()
    (expected,) = torch.autograd.grad(function(wide), wide)
    torch.testing.assert_close(
        pushforward.grad(function)(weight).double(), expected, rtol=2e-4, atol=2e-4
    )
