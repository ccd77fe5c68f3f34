"""Functions that are known from calls without dual numbers, differentiated once more by PyTorch's forward mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, layer_norm

import pushforward as pf

Func = Callable[[Tensor], Tensor]

X = torch.linspace(-1, 2, 6, dtype=torch.float64).square().reshape(3, 2)


def _by_steps(x: Tensor, axis: int) -> Tensor:
    centred = x - x.mean(axis, keepdim=True)
    return centred / (centred.square().mean(axis, keepdim=True) + 1e-5).sqrt()


CASES: dict[str, tuple[Func, Func]] = {
    "layer_norm": (lambda x: layer_norm(x, (2,)), lambda x: _by_steps(x, 1)),
    "batch_norm": (
        lambda x: batch_norm(x, None, None, training=True),
        lambda x: _by_steps(x, 0),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("inner", [pf.jacfwd, pf.jacrev, pf.hessian])
def test_normalizations(name: str, inner: Callable[[Func], Func]) -> None:
    func, by_steps = ((lambda x, f=f: f(x).sin().sum()) for f in CASES[name])
    for _ in range(4):  # until it is known
        pf.hessian(func)(X)
        pf.jacrev(func)(X)
        torch.func.jacrev(torch.func.jacrev(pf.jacrev(func)))(X)
    found = torch.func.jacfwd(torch.func.jacfwd(inner(func)))
    expected = torch.func.jacrev(torch.func.jacrev(inner(by_steps)))(X)
    for _ in range(3):
        torch.testing.assert_close(found(X), expected)


def test_determinant_of_a_singular_matrix() -> None:
    """Math: the slopes of the cofactors of a 3x3 matrix are its elements."""
    a = torch.arange(9, dtype=torch.float64).reshape(3, 3)
    try:
        torch.func.jvp(torch.linalg.det, (a,), (a,))
    except torch.linalg.LinAlgError:
        pytest.skip("PyTorch's own forward mode of det solves with the matrix from 2.15 on")
    for _ in range(4):
        pf.jacrev(torch.linalg.det)(a)
    found = torch.func.jacfwd(pf.jacrev(torch.linalg.det))(a)

    def by_rows(a: Tensor) -> Tensor:
        return (a[0] * torch.linalg.cross(a[1], a[2])).sum()

    expected = torch.func.hessian(by_rows)(a)
    torch.testing.assert_close(found, expected)
