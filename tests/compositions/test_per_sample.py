"""Derivatives under ``vmap`` by what has no batch, as parameters have none: gradients per sample, neural tangents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import pushforward
from pushforward.transforms import pulling

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

CALLS = 4  # watched, watched, learnt, by heart
SIZE = 5


def of(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def dense(p: Tensor, x: Tensor) -> Tensor:
    return (p @ x).tanh()


def tokens(p: Tensor, x: Tensor) -> Tensor:
    return F.gelu(x @ p).mean(0)


def tokens_last(p: Tensor, x: Tensor) -> Tensor:
    return F.linear(x.mT, p).softmax(-1).square().sum(-1)


def heads(p: Tensor, x: Tensor) -> Tensor:
    q = (x @ p).unflatten(-1, (2, 2)).transpose(0, 1)
    return (q @ q.mT).softmax(-1).mean(1).flatten()


def convolution(p: Tensor, x: Tensor) -> Tensor:
    return F.conv1d(x[None], p, padding=1, stride=2).square().mean(-1)[0]


def depthwise(p: Tensor, x: Tensor) -> Tensor:
    return F.conv1d(x[None], p, groups=3).mean(-1)[0]


def transposed(p: Tensor, x: Tensor) -> Tensor:
    return F.conv_transpose1d(x[None], p, stride=2).square().mean(-1)[0]


def lookup(p: Tensor, x: Tensor) -> Tensor:
    return F.embedding(x.argsort(), p).sin().sum(0)


def taken(p: Tensor, x: Tensor) -> Tensor:
    return p[x.argsort()] * x.sum()


def constant(p: Tensor, x: Tensor) -> Tensor:
    return p.exp().sum(0)


def itself(p: Tensor, x: Tensor) -> Tensor:
    return p


def written(p: Tensor, x: Tensor) -> Tensor:
    y = p * 2
    y[0] = p[1].sin()
    return y * x.sum()


def written_batched(p: Tensor, x: Tensor) -> Tensor:
    y = (p * 2).sin() + x.sum()
    y[0] += x.cos().sum()
    return y


def complex_(p: Tensor, x: Tensor) -> Tensor:
    return (p * torch.exp(1j * x.sum())).sum(0)


def attention(p: Tensor, x: Tensor) -> Tensor:
    """Under ``vmap`` PyTorch would call the kernel for one sample after the other, and stack what it gives."""
    q, k, v = (x @ p).unflatten(-1, (3, 4)).unbind(1)
    return F.scaled_dot_product_attention(*(t[None, None] for t in (q, k, v)))[0, 0].mean(0)


def picked(p: Tensor, x: Tensor) -> Tensor:
    """Physically this indexes the batch, too."""
    return (p @ x).flatten()[x.argsort(1).flatten()[:20]].sin()


def normalised(p: Tensor, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[0], p[1]).square().sum(-1)


CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "dense": (dense, (3, 4), (4,)),
    "tokens": (tokens, (4, 3), (6, 4)),
    "tokens last": (tokens_last, (3, 4), (4, 6)),
    "heads": (heads, (4, 4), (6, 4)),
    "convolution": (convolution, (2, 3, 3), (3, 8)),
    "depthwise": (depthwise, (6, 1, 3), (3, 8)),
    "transposed": (transposed, (3, 2, 3), (3, 4)),
    "lookup": (lookup, (6, 3), (6,)),
    "taken": (taken, (6, 2), (6,)),
    "constant": (constant, (3, 2), (2,)),
    "itself": (itself, (3, 2), (2,)),
    "written": (written, (3,), (2,)),
    "written, batched": (written_batched, (3,), (2,)),
    "complex": (complex_, (3, 2), (2,)),
    "attention": (attention, (4, 12), (40, 4)),
    "picked": (picked, (2, 3), (3, 30)),
    "normalised": (normalised, (2, 4), (3, 4)),
}
every_case = pytest.mark.parametrize("case", CASES)


def check(made: Callable[[Any], Callable[..., Any]], *args: Any) -> None:
    """Compare with ``torch.func``, at the first calls and at those that are known by heart."""
    expected = made(torch.func)(*args)
    for _ in range(CALLS):
        torch.testing.assert_close(made(pushforward)(*args), expected)


@every_case
@pytest.mark.parametrize("transform", ["jacrev", "jacfwd", "jacobian"])
@pytest.mark.parametrize("argnums", [0, (0, 1)], ids=["parameters", "both"])
def test_jacobians(case: str, transform: str, argnums: int | tuple[int, ...]) -> None:
    func, p_shape, x_shape = CASES[case]
    if case in ("lookup", "taken", "picked") and transform == "jacfwd" and argnums != 0:
        argnums = 0  # torch.func cannot differentiate argsort
    has_forward = case != "attention" and transform != "jacobian"
    theirs = transform if has_forward else "jacrev"

    def made(library: Any) -> Callable[..., Any]:
        name = theirs if library is torch.func else transform
        return torch.vmap(getattr(library, name)(real, argnums), (None, 0))

    def real(p: Tensor, x: Tensor) -> Tensor:
        """Both parts of complex outputs, of whose Jacobians ours has a convention of its own."""
        y = func(p, x)
        return torch.view_as_real(y) if y.is_complex() else y

    check(made, of(*p_shape), of(SIZE, *x_shape))


@every_case
@pytest.mark.parametrize("argnums", [0, (0, 1)], ids=["parameters", "both"])
@pytest.mark.parametrize("size", [1, SIZE])
@pytest.mark.parametrize("grad_mode", [True, False])
def test_gradients(case: str, argnums: int | tuple[int, ...], size: int, grad_mode: bool) -> None:
    func, p_shape, x_shape = CASES[case]

    def loss(p: Tensor, x: Tensor) -> Tensor:
        return func(p, x).abs().square().sum()

    def made(library: Any) -> Callable[..., Any]:
        return torch.vmap(library.grad_and_value(loss, argnums), (None, 0))

    with torch.set_grad_enabled(grad_mode):
        check(made, of(*p_shape), of(size, *x_shape))


@pytest.mark.parametrize("case", ["dense", "tokens", "heads", "convolution", "normalised"])
@pytest.mark.parametrize("inner", ["pushforward", "torch.func"])
@pytest.mark.parametrize("outer", ["pushforward", "torch.func"])
@pytest.mark.parametrize("transforms", ["jacfwd jacrev", "jacrev jacrev", "jacrev jacfwd"])
def test_hessians(case: str, inner: str, outer: str, transforms: str) -> None:
    func, p_shape, x_shape = CASES[case]
    libraries = {"pushforward": pushforward, "torch.func": torch.func}
    second, first = transforms.split()

    def made(library: Any) -> Callable[..., Any]:
        of_first, of_second = libraries[inner], libraries[outer]
        if library is torch.func:
            of_first = of_second = torch.func
        inside = getattr(of_first, first)(lambda p, x: func(p, x).square().sum())
        return torch.vmap(getattr(of_second, second)(inside), (None, 0))

    check(made, of(*p_shape), of(SIZE, *x_shape))


def test_batch_on_another_axis_and_in_one_parameter() -> None:
    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return ((p["w"] @ x + p["b"]).tanh() * p["w"].sum()).sum()

    def made(library: Any) -> Callable[..., Any]:
        return torch.vmap(library.grad(loss), ({"w": None, "b": 1}, 1))

    check(made, {"w": of(3, 4), "b": of(3, SIZE)}, of(4, SIZE))


def test_aux_and_several_outputs() -> None:
    def func(p: Tensor, x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        return ((p @ x).tanh(), p.sum() * x), p @ x

    def made(library: Any) -> Callable[..., Any]:
        return torch.vmap(library.jacrev(func, (0, 1), has_aux=True), (None, 0))

    check(made, of(3, 4), of(SIZE, 4))


def test_autograd_goes_back_through_gradients_per_sample() -> None:
    x = of(SIZE, 4)
    given = [of(3, 4).requires_grad_() for _ in range(2)]
    given[1].data.copy_(given[0])

    def norm(library: Any, p: Tensor) -> Tensor:
        found: Tensor = torch.vmap(library.grad(lambda p, x: dense(p, x).sum()), (None, 0))(p, x)
        return found.square().sum()

    norm(torch.func, given[1]).backward()
    for _ in range(CALLS):
        given[0].grad = None
        norm(pushforward, given[0]).backward()
        torch.testing.assert_close(given[0].grad, given[1].grad)


def test_members_that_meet_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as ties tell, where indices are those of the whole batch: one by one then, and in a level from then on."""
    num_calls = []
    monkeypatch.setattr(pulling, "_one_by_one", counted(pulling._one_by_one, num_calls))
    p, x = of(2, 3), of(SIZE, 3, 30)

    def loss(p: Tensor, x: Tensor) -> Tensor:
        return picked(p, x).square().sum()

    expected = torch.vmap(torch.func.grad(loss), (None, 0))(p, x)
    for _ in range(CALLS):
        torch.testing.assert_close(torch.vmap(pushforward.grad(loss), (None, 0))(p, x), expected)
    assert len(num_calls) == 1


def counted(func: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        calls.append(args)
        return func(*args)

    return call


@pytest.mark.parametrize("case", ["tokens", "heads", "convolution", "lookup"])
def test_jacobians_of_a_batch_take_no_square_of_it(case: str) -> None:
    """By parameters that samples share, each sample is pulled by itself, not with zeros for all others."""
    from peaks import bytes_of

    func, p_shape, x_shape = CASES[case]
    p, peaks = of(*p_shape), []
    for size in (32, 128):
        x = of(size, *x_shape)

        def call(p: Tensor, x: Tensor = x) -> Tensor:
            found: Tensor = pushforward.jacrev(lambda p: torch.vmap(func, (None, 0))(p, x))(p)
            return found

        for _ in range(CALLS):
            call(p)
        peaks.append(bytes_of(lambda call=call: call(p), keeps_plans=True)[0])
    assert peaks[1] < 6 * peaks[0]
