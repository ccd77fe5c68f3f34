"""Second and third derivatives of determinants, near singular matrices and at them, against minors."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import pushforward as pf

F64 = torch.float64
TRANSFORMS = {
    "jacfwd of jacfwd": lambda f: pf.jacfwd(pf.jacfwd(f)),
    "jacfwd of jacrev": lambda f: pf.jacfwd(pf.jacrev(f)),
    "jacrev of jacrev": lambda f: pf.jacrev(pf.jacrev(f)),
    "hessian": pf.hessian,
}


def by_minors(a: Tensor) -> Tensor:
    """Math: ∂² det / ∂a_ij ∂a_kl is a minor of n − 2 rows, up to its sign."""
    n = len(a)
    found = torch.zeros(n, n, n, n, dtype=a.dtype)
    for i, j, k, m in itertools.product(range(n), repeat=4):
        if i != k and j != m:
            rows = [r for r in range(n) if r not in (i, k)]
            cols = [c for c in range(n) if c not in (j, m)]
            sign = (-1) ** (i + j + k + m) * (1 if (i < k) == (j < m) else -1)
            found[i, j, k, m] = sign * torch.linalg.det(a[rows][:, cols])
    return found


def of_rank(n: int, rank: int, distance: float = 0.0) -> Tensor:
    noise = distance * torch.randn(n, n, dtype=F64)
    return torch.randn(n, rank, dtype=F64) @ torch.randn(rank, n, dtype=F64) + noise


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e-8])
def test_second_derivatives_at_every_rank(transform: str, distance: float):
    for n in range(1, 7):
        for rank in range(n + 1):
            for _ in range(3):  # also by kernels
                a = of_rank(n, rank, distance)
                found = TRANSFORMS[transform](torch.linalg.det)(a)
                torch.testing.assert_close(found, by_minors(a), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rank", [2, 3, 5])
def test_third_derivatives(rank: int):
    a, v, h = of_rank(5, rank), torch.randn(5, 5, dtype=F64), 1e-4
    third = pf.jacfwd(pf.jacfwd(pf.jacrev(torch.linalg.det)))(a)
    expected = (by_minors(a + h * v) - by_minors(a - h * v)) / (2 * h)
    torch.testing.assert_close((third * v).sum((-1, -2)), expected, rtol=1e-6, atol=1e-6)


def test_zero_columns_and_batches():
    a = torch.randn(3, 4, 4, dtype=F64)
    a[1, :, 0] = 0
    a[2] = 0
    found = pf.vmap(pf.hessian(torch.linalg.det))(a)
    torch.testing.assert_close(found, torch.stack([by_minors(m) for m in a]))


def test_complex_matrices():
    a = torch.randn(4, 3, dtype=torch.complex128) @ torch.randn(3, 4, dtype=torch.complex128)
    gradient = pf.grad(lambda a: torch.linalg.det(a).abs() ** 2)
    found, h = pf.jacfwd(gradient)(a), 1e-5
    for i, j, (k, unit) in itertools.product(range(4), range(4), enumerate((1, 1j))):
        step = torch.zeros(4, 4, dtype=torch.complex128)
        step[i, j] = h * unit
        expected = (gradient(a + step) - gradient(a - step)) / (2 * h)
        torch.testing.assert_close(found[..., i, j, k], expected, rtol=1e-6, atol=1e-6)
