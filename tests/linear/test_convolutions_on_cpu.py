"""Convolutions are made in the way that takes least time: each way gives the numbers of PyTorch's own."""

import itertools

import pytest
import torch

from pushforward.linear.kinds.convolve import convolve

SHAPES = {  # stride, padding, dilation, kernel
    "plain": (1, 1, 1, 3),
    "wide": (1, 0, 1, 5),
    "dilated": (1, 2, 2, 3),
    "strided": (2, 1, 1, 3),
    "padded far": (1, 3, 1, 3),
    "of one point": (1, 0, 1, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_same_as_pytorch(name, transposed, dtype):
    stride, padding, dilation, size = SHAPES[name]
    torch.manual_seed(0)
    for num_axes, (before, after), groups in itertools.product((1, 2, 3), ((2, 4), (4, 2)), (1, 2)):
        first, second = (before, after // groups) if transposed else (after, before // groups)
        weight = torch.randn(first, second, *(size,) * num_axes, dtype=dtype)
        x = torch.randn(3, before, *(9, 8, 7)[:num_axes], dtype=dtype)
        extras = (0, 1) if transposed and max(stride, dilation) > 1 else (0,)
        for extra in extras:
            each = [(n,) * num_axes for n in (stride, padding, dilation, extra)]
            options = (*each[:3], transposed, each[3], groups)
            found = convolve(x, weight, *options)
            expected = _expected(x, weight, options)
            tolerance = 1e-4 if dtype is torch.float32 else None
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def _expected(x, weight, options):
    if not x.is_complex():
        return torch.convolution(x, weight, None, *options)
    of_x, of_weight = (torch.view_as_real(t).movedim(-1, 0) for t in (x, weight))
    parts = [[torch.convolution(a, b, None, *options) for b in of_weight] for a in of_x]
    return torch.complex(parts[0][0] - parts[1][1], parts[0][1] + parts[1][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_same_under_vmap(axes, transposed, dtype):
    x, weight = torch.randn(5, 2, 3, 6, dtype=dtype), torch.randn(5, 3, 3, 3, dtype=dtype)
    given = [t if axis == 0 else t[0] for t, axis in zip((x, weight), axes, strict=True)]
    options = ((1,), (1,), (1,), transposed, (0,), 1)
    found = torch.func.vmap(lambda a, w: convolve(a, w, *options), axes)(*given)
    for i in range(5):
        pair = [t[i] if axis == 0 else t for t, axis in zip(given, axes, strict=True)]
        torch.testing.assert_close(found[i], torch.convolution(*pair, None, *options))
