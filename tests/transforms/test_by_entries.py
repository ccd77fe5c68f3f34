"""Dense Jacobians of few entries, computed by their entries: the numbers that blocks give, from the second call on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pushforward as pf
from pushforward.transforms import by_entries

F64 = torch.float64


def stencil(u: Tensor) -> Tensor:
    return u.roll(1, 0) * u + u.roll(-1, 1) - 4 * u


def pieces(u: Tensor) -> Tensor:
    flat = u.flatten()
    return torch.cat([flat[:1] ** 2, flat[2:] * flat[:-2], flat[-1:]])


def energy(u: Tensor) -> Tensor:
    return ((u[1:] - u[:-1]) ** 4).sum() + (u[:, 1:] * u[:, :-1] ** 2).sum()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call went by entries; Jacobians of 64 entries count as large."""
    found: list[bool] = []
    original = by_entries.by_entries

    def watched(tape: pf.transforms.record.Tape) -> list[list[Tensor]] | None:
        rows = original(tape)
        found.append(rows is not None)
        return rows

    pf.clear_plans()
    monkeypatch.setattr(by_entries, "MIN_ENTRIES", 64)
    for module in (pf.transforms.jacobian, pf.transforms.jacfwd):
        monkeypatch.setattr(module, "by_entries", watched)
    return found


@pytest.mark.parametrize("func", [stencil, pieces])
@pytest.mark.parametrize("transform", [pf.jacfwd, pf.jacobian])
def test_the_numbers_are_those_of_autograd(
    func: Callable[[Tensor], Tensor], transform: Callable, taken: list[bool]
):
    jacobian = transform(func)
    for _ in range(6):
        u = torch.rand(12, 10, dtype=F64)
        expected = torch.autograd.functional.jacobian(func, u)
        torch.testing.assert_close(jacobian(u), expected)
    assert taken == [False, *[True] * 4]  # the last is known by heart


def test_hessians_too(taken: list[bool]):
    for _ in range(6):
        u = torch.rand(12, 10, dtype=F64)
        torch.testing.assert_close(pf.hessian(energy)(u), torch.func.hessian(energy)(u))
    assert taken[-4:] == [True] * 4


def test_results_are_differentiable(taken: list[bool]):
    for _ in range(5):
        u = torch.rand(12, 10, dtype=F64, requires_grad=True)
        (found,) = torch.autograd.grad((pf.jacobian(stencil)(u) ** 2).sum(), u)
        dense = torch.autograd.functional.jacobian(stencil, u, create_graph=True)
        (expected,) = torch.autograd.grad((dense**2).sum(), u)
        torch.testing.assert_close(found, expected)
    assert taken[-1]


@pytest.mark.parametrize(
    "func",
    [
        lambda x: x @ x.T,
        torch.sin,
        lambda x: x.cumsum(0).cumsum(1),
        lambda x: x.softmax(-1).roll(1),
    ],
)
def test_dense_and_tied_ones_go_by_blocks(func: Callable[[Tensor], Tensor], taken: list[bool]):
    for _ in range(6):
        x = torch.rand(12, 10, dtype=F64)
        expected = torch.autograd.functional.jacobian(func, x)
        torch.testing.assert_close(pf.jacobian(func)(x), expected)
    assert not taken[-1]


def test_under_vmap_and_with_hooks_blocks_are_taken(taken: list[bool]):
    def hooked(u: Tensor) -> Tensor:
        v = u.roll(1)
        v.register_hook(lambda g: g * 2)
        return v * u

    for _ in range(4):
        batch = torch.rand(3, 12, 10, dtype=F64)
        expected = torch.stack([torch.autograd.functional.jacobian(stencil, u) for u in batch])
        torch.testing.assert_close(pf.vmap(pf.jacobian(stencil))(batch), expected)
        pf.jacobian(hooked)(batch[0])
    assert not any(taken)
