"""Products, sums and choices of values, against the operators that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pushforward as pf
from pushforward.sparse.products import chosen, summed, summed_product, taken, times

F64 = torch.float64
SHAPES = [
    ((40, 3, 1), (40, 1, 3)),
    ((3, 40, 1), (1, 40, 2)),
    ((1, 40), (3, 1)),
    ((2, 3), (2, 3)),
    ((1,), (5,)),
    ((), ()),
    ((0, 3), (0, 1)),
]


@pytest.mark.parametrize("dtype", [F64, torch.complex64])
@pytest.mark.parametrize(("first", "second"), SHAPES)
def test_times_multiplies(first: tuple[int, ...], second: tuple[int, ...], dtype: torch.dtype):
    a, b = torch.rand(first, dtype=dtype), torch.rand(second, dtype=dtype)
    for x, y in ((a, b), (b, a), (a.mT.contiguous().mT if a.ndim > 1 else a, b)):
        torch.testing.assert_close(times(x, y), x * y)


@pytest.mark.parametrize(
    ("first", "second", "axes"),
    [
        ((50, 3, 3, 1), (50, 1, 3, 3), {2}),  # many small matrices
        ((3, 3, 50, 1), (3, 1, 50, 4), {0}),
        ((2, 3, 50), (2, 3, 50), {0, 1}),  # several axes
        ((4, 30, 1), (1, 30, 5), {1}),  # one large matrix
        ((50, 2), (50, 2), {0}),
        ((6,), (6,), {0}),
    ],
)
def test_summed_products_are_products_and_sums(first, second, axes):
    a, b = torch.rand(first, dtype=F64), torch.rand(second, dtype=F64)
    expected = (a * b).sum(tuple(axes), keepdim=True)
    torch.testing.assert_close(summed_product(a, b, axes), expected)


@pytest.mark.parametrize("shape", [(3, 50), (50, 3), (40, 2, 8), (9, 9), (0, 3), (3, 0)])
def test_sums_are_sums(shape: tuple[int, ...]):
    x = torch.rand(shape, dtype=F64)
    for axes in ((), (0,), (1,), tuple(range(len(shape)))):
        expected = x.sum(axes, keepdim=True) if axes else x
        torch.testing.assert_close(summed(x, axes), expected)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (5, 2), (2, 5, 3), (5, 40), (5, 2, 40)])
def test_what_is_taken(shape: tuple[int, ...]):
    places = torch.tensor([1, 0, 1])
    for x in (torch.rand(shape), torch.rand(shape[::-1]).permute(*range(len(shape))[::-1])):
        for axis in range(len(shape)):
            assert torch.equal(taken(x, axis, places), x.index_select(axis, places))


@pytest.mark.parametrize(
    "dtype", [F64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
)
def test_what_is_not_chosen_is_zero_whatever_it_was(dtype: torch.dtype):
    values = torch.tensor([1, -0.0, float("inf"), float("nan"), -2, float("-inf")]).to(dtype)
    for mask in (torch.arange(6) % 2 == 0, torch.arange(6) < 4):
        for x in (values, values[:1], values[2:3]):
            expected = torch.where(mask, x, 0)
            found = chosen(mask, x)
            assert torch.equal(torch.nan_to_num(found), torch.nan_to_num(expected))
            assert not found[~mask].count_nonzero()


def test_choices_are_differentiable():
    x = torch.rand(6, dtype=F64, requires_grad=True)
    (got,) = torch.autograd.grad(chosen(torch.arange(6) < 3, x**2).sum(), x)
    torch.testing.assert_close(got, torch.where(torch.arange(6) < 3, 2 * x.detach(), 0))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), torch.ones(6, dtype=F64))
        found = chosen(torch.arange(6) < 3, dual)
        tangent = torch.autograd.forward_ad.unpack_dual(found).tangent
    assert tangent.tolist() == [1, 1, 1, 0, 0, 0]


def test_entries_that_are_not_chosen_are_zero_where_the_other_branch_is_infinite():
    def func(x: Tensor) -> Tensor:
        return torch.where(x > 0, x.sqrt(), x * x.roll(1))

    x = torch.tensor([0.0, 1.0, -1.0, 4.0], dtype=F64)
    for _ in range(4):
        found = pf.jacobian(func, output="csr")(x).to_dense()
        torch.testing.assert_close(found, pf.jacfwd(func)(x))
        assert bool(found.isfinite().all())


@pytest.mark.parametrize("transform", [pf.jacfwd, pf.jacrev, pf.jacobian])
def test_second_derivatives_of_choices(transform):
    def func(x: Tensor) -> Tensor:
        return torch.where(x > 0.5, x**3, x.exp())

    for _ in range(4):
        x = torch.rand(7, dtype=F64)
        got = transform(lambda x: pf.jacobian(func, output="coo")(x).values())(x)
        torch.testing.assert_close(got, torch.where(x > 0.5, 6 * x, x.exp()).diag())
