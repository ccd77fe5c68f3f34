"""Products with derivatives of solutions go by the factors that the solution left; where these may not, by new ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func

import pushforward
from pushforward.rules import linalg

torch.manual_seed(0)
N = 5
C128 = torch.complex128
MATRICES = {
    "rows": torch.randn(N, N, dtype=torch.float64),
    "columns": torch.randn(N, N, dtype=torch.float64).mT,
    "batch": torch.randn(3, N, N, dtype=torch.float64),
    "strided": torch.randn(2 * N, 2 * N, dtype=torch.float64)[::2, ::2],
}
RHS = {
    "left": torch.randn(N, 2, dtype=torch.float64),
    "right": torch.randn(2, N, dtype=torch.float64),
}


def functions(side: str) -> Callable[[Tensor], Tensor]:
    return lambda a: torch.linalg.solve(a, RHS[side] * a.sin().sum(), left=side == "left")


@pytest.mark.parametrize("side", RHS)
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("keeps", [True, False])
def test_products(name: str, side: str, keeps: bool, monkeypatch: Any) -> None:
    """Also as with versions of PyTorch that keep the factors of the transpose."""
    if not keeps:
        monkeypatch.setattr(linalg, "keeps_own_factors", lambda device: False)
    a, f = MATRICES[name], functions(side)
    direction, cotangent = torch.randn_like(a), torch.randn_like(f(a))
    got = pushforward.jvp(f, (a,), (direction,))[1]
    torch.testing.assert_close(got, func.jvp(f, (a,), (direction,))[1])
    got = pushforward.vjp(f, a)[1](cotangent)[0]
    torch.testing.assert_close(got, func.vjp(f, a)[1](cotangent)[0])
    second = pushforward.jacfwd(pushforward.jacrev(lambda a: f(a).sum()))(a)
    torch.testing.assert_close(second, func.jacrev(func.jacrev(lambda a: f(a).sum()))(a))


def test_complex_products() -> None:
    a, b = torch.randn(N, N, dtype=C128), torch.randn(N, dtype=C128)
    w = torch.randn(N, dtype=C128)
    leaf = a.clone().requires_grad_()
    (expected,) = torch.autograd.grad(torch.linalg.solve(leaf, b), leaf, w)
    got = pushforward.vjp(lambda a: torch.linalg.solve(a, b), a)[1](w)[0]
    torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")  # PyTorch 2.11
@pytest.mark.parametrize("product", ["vjp", "jvp"])
def test_nothing_is_factored_anew(product: str) -> None:
    if not linalg.keeps_own_factors("cpu"):
        pytest.skip("this version of PyTorch keeps the factors of the transpose at times")
    a, b = MATRICES["rows"], RHS["left"]

    def f(a: Tensor) -> Tensor:
        return torch.linalg.solve(a, b)

    def call() -> Any:
        if product == "jvp":
            return pushforward.jvp(f, (a,), (a,))[1]
        return pushforward.vjp(f, a)[1](b)[0]

    for _ in range(6):
        call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        call()
    factored = [e for e in seen.events() if e.name == "aten::linalg_lu_factor_ex"]
    assert len(factored) == 1  # by the function itself
