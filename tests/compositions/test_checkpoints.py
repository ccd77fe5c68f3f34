"""``torch.utils.checkpoint`` around ours, which counts what is saved and computes again, and within, with writes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pushforward
from pushforward import clear_plans, hessian, jacfwd, jacobian, jacrev, jvp, linearize, vjp

F64 = torch.float64
TRANSFORMS: dict[str, Callable[..., Any]] = {
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "chunks": lambda f, x: jacfwd(f, chunk_size=1)(x),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacobian": lambda f, x: jacobian(f)(x),
    "sparse": lambda f, x: jacobian(f, output="csr")(x).values(),
    "nested": lambda f, x: jacrev(jacfwd(f))(x),
    "hessian": lambda f, x: hessian(lambda x: f(x).sum())(x),
    "jvp": lambda f, x: jvp(f, (x,), (x,))[1],
    "vjp": lambda f, x: vjp(f, x)[1](x)[0],
    "linearize": lambda f, x: linearize(f, x)[1](x),
    "batch": lambda f, x: torch.func.vmap(jacrev(f))(torch.stack([x, x * x])),
}


def _smooth(x: Tensor) -> Tensor:
    return x.sin() ** 3 * x


@pytest.mark.parametrize("is_twice", [False, True])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_checkpoint_may_contain_a_transform_from_its_first_call_on(
    transform: Callable[..., Any], is_twice: bool
) -> None:
    def loss(x: Tensor) -> Tensor:
        return transform(_smooth, x.cos()).square().sum()

    def checkpointed(x: Tensor) -> Tensor:
        return checkpoint(loss, x, use_reentrant=False).exp()

    clear_plans()
    for number in range(5):
        x = torch.linspace(0.3, 0.9 + number, 3, dtype=F64).requires_grad_()
        value = checkpoint(checkpointed, x, use_reentrant=False) if is_twice else checkpointed(x)
        (gradient,) = torch.autograd.grad(value, x)
        (expected,) = torch.autograd.grad(loss(x).exp(), x)
        torch.testing.assert_close(gradient, expected)


def test_hooks_on_what_is_saved_come_back_after_an_error() -> None:
    def failing(x: Tensor) -> Tensor:
        raise KeyError("gone")

    hooks = (lambda t: t, lambda t: t)
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        with pytest.raises(KeyError, match="gone"):
            jacfwd(failing)(torch.ones(2, dtype=F64))
        jacrev(_smooth)(torch.ones(2, dtype=F64))
        assert torch._C._autograd._top_saved_tensors_default_hooks(False) == hooks
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


class _Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.stack([x, x * x, x.sin()]))[0] * x


def _sparse(x: Tensor) -> Tensor:
    positions = torch.tensor([[0, 1, 2], [1, 2, 0]])
    made = torch.sparse_coo_tensor(positions, x**2, (3, 3), check_invariants=False)
    return made.to_dense().sum(0) * x


@pytest.mark.parametrize("transform", [jacfwd, jacrev, pushforward.jacobian])
@pytest.mark.parametrize("func", [_Normalized(), _sparse], ids=["norm", "sparse"])
def test_what_is_computed_again_is_done_as_it_was_done_at_first(
    func: Callable[[Tensor], Tensor], transform: Callable[..., Any]
) -> None:
    for number in range(5):
        x = torch.linspace(0.3, 0.9 + number, 3, dtype=F64)
        jac = transform(lambda x: checkpoint(func, x.sin(), use_reentrant=False) * 2)(x)
        expected = torch.autograd.functional.jacobian(lambda x: func(x.sin()) * 2, x)
        torch.testing.assert_close(jac, expected)
        if isinstance(func, nn.Module):
            assert not any(buffer.requires_grad for buffer in func.buffers())
