"""Peaks are counted in bytes that PyTorch allocates; torch.func's, of the same program, is the measure."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peaks import bytes_of
from torch import Tensor
from torch.utils._pytree import tree_leaves

import pushforward
from pushforward.tape import pieces

NUMEL = pieces.MAX_PIECE // 8
SIDE = 2 ** ((NUMEL.bit_length() - 1) // 2)
F64 = torch.float64


def _like(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=F64).view(shape)


X, V, U = _like(NUMEL), _like(NUMEL).flip(0), _like(NUMEL).sin()
WEIGHT = _like(SIDE, SIDE) / SIDE
STATE = X.nbytes


def _sines(x: Tensor) -> Tensor:
    for _ in range(12):
        x = x.sin()
    return x


def _steps(x: Tensor) -> Tensor:
    for _ in range(12):
        x = x + 0.1 * torch.sin(x)
    return x


def _products(x: Tensor) -> Tensor:
    x = x[: SIDE * SIDE].view(SIDE, SIDE)
    for _ in range(8):
        x = WEIGHT @ x + 0.1 * x
    return x


def _runge_kutta(x: Tensor) -> Tensor:
    def slope(x: Tensor) -> Tensor:
        return torch.sin(x) - x

    for _ in range(4):
        a = slope(x)
        b = slope(x + 0.05 * a)
        c = slope(x + 0.05 * b)
        d = slope(x + 0.1 * c)
        x = x + 0.1 / 6 * (a + 2 * b + 2 * c + d)
    return x


def _several(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b, c, d = x, x.sin(), x.cos(), x * 0.5
    for _ in range(4):
        a, b, c, d = a + 0.1 * b, b - 0.1 * a * c, c.sin() + d, d * 0.9 + 0.1 * a
    return a + b, c * d


def _softmax(x: Tensor) -> Tensor:
    x = x[: SIDE * SIDE].view(SIDE, SIDE)
    for _ in range(4):
        x = torch.softmax(x @ WEIGHT, -1) + x
    return x


def _in_place(x: Tensor) -> Tensor:
    y = x * 1.0
    for _ in range(12):
        y.mul_(0.9)
        y.add_(x, alpha=0.1)
    return y


def _into_views_that_are_saved(x: Tensor) -> Tensor:
    y = x * 1.0
    for _ in range(12):
        y.mul_(0.9)
        y[10:2000] = y[20:2010].sin()
        y[:100] *= y[100:200]
    return y


LONG = [_sines, _steps, _products, _runge_kutta, _several, _softmax, _in_place, _into_views_that_are_saved]  # fmt: skip


@pytest.mark.parametrize("func", LONG)
def test_jvp_needs_at_most_twice_the_memory_of_torch_func(func: Callable[..., Any]) -> None:
    theirs, _ = bytes_of(lambda: torch.func.jvp(func, (X,), (V,)))
    pushforward.jvp(func, (X,), (V,))
    ours, left = bytes_of(lambda: pushforward.jvp(func, (X,), (V,)))
    assert ours <= 2 * theirs
    assert left < STATE


@pytest.mark.parametrize("func", LONG)
def test_jacfwd_of_few_numbers_needs_at_most_twice_the_memory_of_torch_func(
    func: Callable[..., Any],
) -> None:
    def of_three(p: Tensor) -> Any:
        return func(p[0] * X + p[1] * U + p[2])

    point = torch.tensor([0.3, 0.5, 0.1], dtype=F64)
    theirs, _ = bytes_of(lambda: torch.func.jacfwd(of_three)(point))
    pushforward.jacfwd(of_three)(point)
    ours, left = bytes_of(lambda: pushforward.jacfwd(of_three)(point))
    assert ours <= 2 * theirs
    assert left < STATE


def test_the_memory_of_many_columns_of_a_long_program_does_not_grow_with_its_steps() -> None:
    basis = torch.linspace(-1, 1, 12 * 4000, dtype=F64).view(12, 4000)

    def steps(number: int) -> Callable[[Tensor], Tensor]:
        def func(p: Tensor) -> Tensor:
            x = p @ basis
            for _ in range(number):
                x = x + 0.01 * torch.sin(x)
            return x

        return func

    point = torch.linspace(0.1, 0.5, 12, dtype=F64)
    peaks = []
    for func in (steps(300), steps(900)):  # of the second the tape would be 27 MiB
        for _ in range(3):
            peak, left = bytes_of(lambda f=func: pushforward.jacfwd(f)(point))
            assert left < STATE
        peaks.append(peak)
    assert peaks[1] <= 1.1 * peaks[0]


def _leapfrog(x: Tensor) -> Tensor:
    v = torch.zeros_like(x)
    for _ in range(90):
        v = v - 0.1 * (x.sin() - torch.roll(x, 1) + x)
        x = x + 0.1 * v
    return x


def _three_at_a_time(x: Tensor) -> Tensor:
    y, z = x.cos(), x * x
    for _ in range(60):
        x, y, z = x + 0.01 * y * z, y - 0.01 * (x * z).tanh(), z.sigmoid() * y.cumsum(0) / len(y)
    return torch.cat([x, y, z])


@pytest.mark.parametrize("steps", [_leapfrog, _three_at_a_time])
def test_repeated_jacfwd_of_long_programs_needs_no_more_than_torch_func(
    steps: Callable[[Tensor], Tensor],
) -> None:
    basis = torch.linspace(-1, 1, 16 * 2500, dtype=F64).view(16, 2500).sin()
    point = torch.linspace(0.1, 0.5, 16, dtype=F64)
    ours, theirs = (lib.jacfwd(lambda p: steps(p @ basis)) for lib in (pushforward, torch.func))
    for _ in range(3):
        torch.testing.assert_close(ours(point), theirs(point))
    peak, left = bytes_of(lambda: ours(point), keeps_plans=True)
    assert peak <= bytes_of(lambda: theirs(point))[0]
    assert left < STATE


def test_what_holds_a_step_of_a_long_program_can_still_be_differentiated() -> None:
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            return cotangent * ctx.saved_tensors[0].cos()

    basis = torch.linspace(-1, 1, 12 * 4000, dtype=F64).view(12, 4000).sin()

    def func(p: Tensor, sine: Callable[[Tensor], Tensor]) -> Tensor:
        x = p @ basis
        early, view = sine(x), (x * 2)[1:]  # a custom function's result, which nobody notes
        for _ in range(200):
            x = x + 0.01 * torch.sin(x)
        return x * early + sine(x) * view.sum()

    point = torch.linspace(0.1, 0.5, 12, dtype=F64)
    expected = torch.func.jacfwd(lambda p: func(p, torch.sin))(point)
    for _ in range(4):
        found = pushforward.jacfwd(lambda p: func(p, Sine.apply))(point)
        torch.testing.assert_close(found, expected)


def test_the_memory_of_a_long_program_does_not_grow_with_its_steps() -> None:
    def steps(number: int) -> Callable[[Tensor], Tensor]:
        def func(x: Tensor) -> Tensor:
            for _ in range(number):
                x = x + 0.1 * torch.sin(x)
            return x

        return func

    peaks = [bytes_of(lambda n=n: pushforward.jvp(steps(n), (X,), (V,)))[0] for n in (8, 24)]
    assert peaks[1] <= peaks[0]


REPEATED: dict[str, Callable[[Any, Callable[[Tensor], Tensor]], Any]] = {
    "vjp": lambda lib, func: lib.vjp(func, X)[1](V),
    "grad": lambda lib, func: lib.grad(lambda x: func(x).sum())(X),
}


@pytest.mark.parametrize("func", [_sines, _steps])
@pytest.mark.parametrize("name", REPEATED)
def test_repeated_reverse_sweeps_need_little_more_than_the_tape(
    name: str, func: Callable[[Tensor], Tensor]
) -> None:
    call = REPEATED[name]
    theirs, _ = bytes_of(lambda: call(torch.func, func))
    for _ in range(3):
        call(pushforward, func)
    ours, _ = bytes_of(lambda: call(pushforward, func))
    assert ours <= 1.2 * theirs + 2 * STATE


@pytest.mark.parametrize("func", [_sines, _steps])
@pytest.mark.parametrize("name", REPEATED)
def test_first_reverse_sweeps_need_little_more_than_the_tape(
    name: str, func: Callable[[Tensor], Tensor]
) -> None:
    call = REPEATED[name]
    theirs, _ = bytes_of(lambda: call(torch.func, func))
    pushforward.clear_plans()
    ours, _ = bytes_of(lambda: call(pushforward, func))
    assert ours <= 1.2 * theirs + 2 * STATE


# ---- what is let go of ----


def _saved_then_written(x: Tensor) -> Tensor:
    y = x * 1.0
    z = y.sin()
    y[10:20] = z[10:20]
    return y * z


def _view_saved_then_written(x: Tensor) -> Tensor:
    y = x * 1.0
    y[10:20] = y[30:40].sin()
    y[:5] *= y[5:10]
    return y


def _multiplied_by_what_was_made_of_it(x: Tensor) -> Tensor:
    y = x.exp()
    z = y.sin()
    y.mul_(z)
    y.add_(y.cos())
    return y


def _one_of_several_written(x: Tensor) -> Tensor:
    y = x * 1.0
    a, b = y[:20].view(2, 10)
    c = a.sin()
    b.copy_(c * a)
    return y


WRITING = [
    _saved_then_written,
    _view_saved_then_written,
    _multiplied_by_what_was_made_of_it,
    _one_of_several_written,
]
SMALL = _like(60)


def _grad(func: Callable[[Tensor], Tensor]) -> Any:
    return pushforward.grad(lambda x: func(x).sum())(SMALL)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Any]] = {
    "jvp": lambda func: pushforward.jvp(func, (SMALL,), (SMALL,)),
    "vjp": lambda func: pushforward.vjp(func, SMALL)[1](SMALL),
    "linearize": lambda func: pushforward.linearize(func, SMALL)[1](SMALL),
    "grad": _grad,
    "jacfwd": lambda func: pushforward.jacfwd(func)(SMALL),
    "jacrev": lambda func: pushforward.jacrev(func)(SMALL),
    "hessian": lambda func: pushforward.hessian(lambda x: func(x).sum())(SMALL),
    "hvp": lambda func: pushforward.hvp(lambda x: func(x).sum(), (SMALL,), (SMALL,)),
    "vmap of grad": lambda func: torch.func.vmap(
        pushforward.grad(lambda x: func(x).sum()), randomness="error"
    )(SMALL.expand(2, -1)),
}


@pytest.mark.parametrize("func", WRITING)
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("is_recording", [True, False])
def test_what_is_written_to_after_it_was_saved_is_let_go_of(
    name: str, func: Callable[[Tensor], Tensor], is_recording: bool
) -> None:
    made: list[weakref.ref[Tensor]] = []

    def watched(x: Tensor) -> Tensor:
        y = func(x)
        made.append(weakref.ref(y if y._base is None else y._base))
        return y * 2.0

    with torch.set_grad_enabled(is_recording):
        for _ in range(4):
            TRANSFORMS[name](watched)
            gc.collect()
            assert not any(y() is not None for y in made)


def test_what_an_exception_leaves_is_let_go_of() -> None:
    made: list[weakref.ref[Tensor]] = []

    def func(x: Tensor) -> Tensor:
        y = x * 1.0
        made.append(weakref.ref(y))
        y.mul_(y.sin())
        raise ValueError("what the function raises")

    for transform in TRANSFORMS.values():
        with pytest.raises(ValueError, match="what the function raises"):
            transform(func)
    gc.collect()
    assert len(made) >= len(TRANSFORMS)
    assert not any(y() is not None for y in made)


def test_what_the_function_keeps_ends_without_history() -> None:
    kept: list[Tensor] = []

    def func(x: Tensor) -> Tensor:
        y = x * 1.0
        z = y.sin()
        y.mul_(z)
        kept.append(y)
        return y * z

    for _ in range(3):
        pushforward.grad(lambda x: func(x).sum())(SMALL)
    assert torch.equal(kept[-1], SMALL * SMALL.sin())


@pytest.mark.parametrize("func", [_sines, _steps, _several, _in_place])
@pytest.mark.parametrize("name", ["jvp", "jacfwd"])
def test_results_of_long_programs_keep_no_more_than_themselves(
    name: str, func: Callable[[Tensor], Any]
) -> None:
    if name == "jvp":
        results = pushforward.jvp(func, (X,), (V,))
    else:
        results = pushforward.jacfwd(lambda p: func(p[0] * X + p[1]))(torch.ones(2, dtype=F64))
    for result in tree_leaves(results):
        assert result.untyped_storage().nbytes() <= 2 * result.nbytes
