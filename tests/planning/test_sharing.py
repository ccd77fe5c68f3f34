"""Of sweeps that autograd records, what is the same for all chunks is made, and kept, once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peaks import bytes_of
from torch import nn

import pushforward as pf

F64 = torch.float64
torch.manual_seed(0)
NETS = {
    "layer norm": nn.Sequential(nn.Linear(6, 40), nn.LayerNorm(40), nn.Linear(40, 12)).double(),
    "gates": nn.Sequential(nn.Linear(6, 40), nn.GELU(), nn.Linear(40, 24), nn.GLU()).double(),
    "softmax": nn.Sequential(nn.Linear(6, 40), nn.Softmax(-1), nn.Softplus(), nn.Linear(40, 12)).double(),
    "convolutions": nn.Sequential(
        nn.Unflatten(-1, (1, 6)), nn.Conv1d(1, 9, 3), nn.Mish(), nn.Flatten(-2), nn.Linear(36, 12),
    ).double(),
    "large": nn.Sequential(nn.Linear(6, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 12)).double(),
}  # fmt: skip


@pytest.mark.parametrize("transform", ["jacfwd", "jacrev"])
@pytest.mark.parametrize("name", NETS)
def test_results_in_chunks_can_be_differentiated_by_parameters(name: str, transform: str) -> None:
    net = NETS[name]
    parameters = tuple(net.parameters())
    expected = None
    for scale in (0.3, 0.6, 0.9, 1.2):
        x = scale * torch.linspace(-1, 1, 6, dtype=F64)
        reference = torch.func.jacrev(net)(x)
        expected = torch.autograd.grad(reference.sin().sum(), parameters, allow_unused=True)
        for chunk_size in (1, 4):
            result = getattr(pf, transform)(net, chunk_size=chunk_size)(x)
            torch.testing.assert_close(result, reference)
            found = torch.autograd.grad(result.sin().sum(), parameters, allow_unused=True)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(
                    torch.zeros(()) if a is None else a,
                    torch.zeros(()) if b is None else b,
                    check_dtype=False,
                )


@pytest.mark.parametrize("name", NETS)
def test_chunks_that_autograd_records_need_little_more_than_torch_func(name: str) -> None:
    net, x = NETS[name], torch.linspace(-1, 1, 6, dtype=F64)
    calls: list[Callable[[], Any]] = [
        lambda: pf.jacrev(net, chunk_size=1)(x),
        lambda: torch.func.jacrev(net, chunk_size=1)(x),
    ]
    for call in calls:
        for _ in range(4):
            call()
    ours, theirs = (bytes_of(call, keeps_plans=True)[0] for call in calls)
    # Ours of layer norm is made of steps, which autograd follows to any order.
    assert ours <= (2 if name == "layer norm" else 1.1) * theirs
