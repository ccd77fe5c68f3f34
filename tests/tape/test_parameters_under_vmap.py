"""Gradients per sample: what has no batch gets none, so that all of the batch goes through one call with it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pushforward as pf

BATCH, CALLS = 5, 4
TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "grad": lambda f: pf.grad(lambda w, x: f(w, x).sum()),
    "jacrev": pf.jacrev,
    "jacfwd": pf.jacfwd,
    "jacobian": pf.jacobian,
}
LAYERS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "linear": (torch.nn.functional.linear, (3, 4), (4,)),
    "conv1d": (torch.nn.functional.conv1d, (2, 3, 2), (3, 6)),
    "conv2d": (torch.nn.functional.conv2d, (2, 3, 2, 2), (3, 4, 4)),
    "conv_transpose2d": (torch.nn.functional.conv_transpose2d, (3, 2, 2, 2), (3, 3, 3)),
    "matmul": (lambda x, w: x @ w, (4, 3), (2, 4)),
}


class _Shapes(TorchDispatchMode):
    """Notes the shapes of what the function is computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= {tuple(a.shape) for a in args if isinstance(a, Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_not_repeated(name: str, transform: str) -> None:
    layer, weight_shape, shape = LAYERS[name]
    seen: list[set[tuple[int, ...]]] = []

    def f(w: Tensor, x: Tensor) -> Tensor:
        with _Shapes() as shapes:
            y = layer(x, w)
        seen.append(shapes.seen)
        return y.sin()

    ours = pf.vmap(TRANSFORMS[transform](f), in_dims=(None, 0))
    for _ in range(CALLS):
        w = torch.randn(weight_shape, dtype=torch.float64)
        xs = torch.randn(BATCH, *shape, dtype=torch.float64)
        found = ours(w, xs)
        for one, x in zip(found, xs, strict=True):
            expected = torch.autograd.functional.jacobian(lambda w, x=x: layer(x, w).sin(), w)
            if transform == "grad":
                expected = expected.sum(tuple(range(expected.dim() - w.dim())))
            torch.testing.assert_close(one, expected)
    assert all((BATCH, *weight_shape) not in shapes for shapes in seen)
    assert seen
