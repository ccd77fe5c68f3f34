"""Averages over windows that part the image are spread at once; all others by PyTorch's operator."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pushforward

POOLS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "windows that part": (lambda x: F.avg_pool2d(x, 2), (2, 3, 6, 8)),
    "no batch": (lambda x: F.avg_pool2d(x, 2), (3, 6, 8)),
    "another divisor": (lambda x: F.avg_pool2d(x, (2, 3), divisor_override=5), (2, 1, 6, 9)),
    "one by one": (lambda x: F.avg_pool2d(x, 1), (1, 2, 5, 6)),
    "volumes": (lambda x: F.avg_pool3d(x, (2, 1, 3)), (2, 1, 4, 2, 6)),
    "a rest": (lambda x: F.avg_pool2d(x, 2), (1, 2, 7, 8)),
    "a rest counted": (lambda x: F.avg_pool2d(x, 2, ceil_mode=True), (1, 2, 5, 6)),
    "strides and padding of the same sizes": (lambda x: F.avg_pool2d(x, 2, 3, 1), (2, 1, 4, 4)),
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pulls(name: str, dtype: torch.dtype) -> None:
    pool, shape = POOLS[name]

    def loss(x: Tensor) -> Tensor:
        y = pool(x)
        return (y.sin() * y).sum()

    for _ in range(4):
        x = torch.randn(shape, dtype=dtype, requires_grad=True)
        found, expected = pushforward.grad(loss)(x), torch.func.grad(loss)(x)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(g.square().sum(), x)[0] for g in (found, expected))
        )
        x = x.detach()
        torch.testing.assert_close(pushforward.grad(loss)(x), expected)
        torch.testing.assert_close(pushforward.jacrev(pool)(x), torch.func.jacrev(pool)(x))
    xs = torch.randn((2, *shape), dtype=dtype)
    expected = torch.func.vmap(torch.func.grad(loss))(xs)
    torch.testing.assert_close(torch.func.vmap(pushforward.grad(loss))(xs), expected)
