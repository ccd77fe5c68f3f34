"""Interrupts at each moment at which Python handles signals: as a function begins, as one written in C has ended.

They come deterministically, by a profile function. All of a thread's state is as before, and later calls are right.
``STORM_CALLS=1000`` takes each test to that many moments, evenly chosen, in place of a few.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import torch._dynamo  # whose stance is set while functions run
import torch.func as tf
from ambient import process_state, thread_state
from torch import Tensor

import pushforward
from pushforward import (
    clear_plans,
    grad,
    hessian,
    jacfwd,
    jacobian,
    jacrev,
    jvp,
    linearize,
    vjp,
    vmap,
)  # fmt: skip
from pushforward.planning.plans import PLANS
from pushforward.tape.depth import run_depth
from pushforward.tape.private_torch import compiled_functions_run_eagerly

PACKAGE = str(Path(pushforward.__file__).parent)
MOMENTS = int(os.environ.get("STORM_CALLS", "4"))


class Interrupt(BaseException):
    """As `KeyboardInterrupt`, which the test runner takes for its own."""


class At:
    """A profile function that interrupts at one moment of a call of ours: PyTorch's own transforms do not stand it."""

    def __init__(self, moment: int) -> None:
        self.moment, self.count = moment, 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if event in ("call", "c_return") and _is_inside(frame):
            self.count += 1
            if self.count == self.moment:
                raise Interrupt


def _is_inside(frame: FrameType | None) -> bool:
    """Tell whether what is called was called by the package."""
    while frame is not None and frame.f_code.co_filename != __file__:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return True
        frame = frame.f_back
    return False


def state() -> dict[str, object]:
    return (
        thread_state()
        | process_state()
        | {
            "runs": run_depth(),
            "eager runs": len(compiled_functions_run_eagerly._running),
            "generator": torch.get_rng_state().tolist(),
            "lock": PLANS._lock._is_owned(),  # type: ignore[attr-defined]
            "requiring grad": torch._C._functorch.get_inplace_requires_grad_allowed(),
        }
    )


def smooth(x: Tensor) -> Tensor:
    return (x.sin() * x).cumsum(0)


def energy(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(smooth(x)).square().sum()


def writing(x: Tensor) -> Tensor:
    y = x * 1.0
    y[1:] *= x[:-1]
    return y.sin()


def drawing(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return x * torch.rand(3, generator=generator) + torch.nn.functional.dropout(x, 0.0)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * cotangents[0]


def cube(x: Tensor) -> Tensor:
    y: Tensor = Cube.apply(x.sin())
    return y


X = torch.linspace(0.1, 1, 3)
XS = torch.stack([X, 2 * X])

CALLS: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
    "jacfwd": (lambda: jacfwd(smooth)(X), lambda: tf.jacrev(smooth)(X)),
    "jacrev": (lambda: jacrev(smooth)(X), lambda: tf.jacrev(smooth)(X)),
    "jacobian": (lambda: jacobian(smooth)(X), lambda: tf.jacrev(smooth)(X)),
    "jacfwd in chunks": (lambda: jacfwd(smooth, chunk_size=1)(X), lambda: tf.jacrev(smooth)(X)),
    "jacrev in chunks": (lambda: jacrev(smooth, chunk_size=2)(X), lambda: tf.jacrev(smooth)(X)),
    "jacobian within a limit": (
        lambda: jacobian(smooth, memory_limit=10150)(X),
        lambda: tf.jacrev(smooth)(X),
    ),
    "hessian within a limit": (
        lambda: hessian(energy, memory_limit=10000)(X),
        lambda: tf.hessian(energy)(X),
    ),
    "hessian": (lambda: hessian(energy)(X), lambda: tf.hessian(energy)(X)),
    "grad": (lambda: grad(energy)(X), lambda: tf.grad(energy)(X)),
    "vjp": (lambda: vjp(smooth, X)[1](X)[0], lambda: tf.vjp(smooth, X)[1](X)[0]),
    "jvp": (lambda: jvp(smooth, (X,), (X,))[1], lambda: tf.jvp(smooth, (X,), (X,))[1]),
    "linearize": (lambda: linearize(smooth, X)[1](X), lambda: tf.jvp(smooth, (X,), (X,))[1]),
    "vmap": (lambda: vmap(jacrev(smooth))(XS), lambda: tf.vmap(tf.jacrev(smooth))(XS)),
    "vmap of nested": (
        lambda: vmap(hessian(energy))(XS),
        lambda: tf.vmap(tf.hessian(energy))(XS),
    ),
    "nested": (lambda: jacfwd(jacrev(smooth))(X), lambda: tf.jacrev(tf.jacrev(smooth))(X)),
    "three": (lambda: jacrev(hessian(energy))(X), lambda: tf.jacrev(tf.hessian(energy))(X)),
    "writes": (lambda: jacrev(writing)(X), lambda: tf.jacrev(writing)(X)),
    "draws": (lambda: jacrev(drawing)(X), lambda: tf.jacrev(drawing)(X)),
    "custom function": (
        lambda: hessian(lambda x: cube(x).sum())(X),
        lambda: tf.hessian(lambda x: x.sin().pow(3).sum())(X),
    ),
    "below torch.func": (lambda: tf.jacrev(jacfwd(smooth))(X), lambda: tf.jacrev(tf.jacrev(smooth))(X)),
    "above torch.func": (lambda: jacrev(tf.jacrev(smooth))(X), lambda: tf.jacrev(tf.jacrev(smooth))(X)),
}  # fmt: skip


def interrupted(call: Callable[[], Tensor], moment: int) -> int:
    """Call, and interrupt; return how many moments came by."""
    at = At(moment)
    sys.setprofile(at)
    try:
        call()
    except Interrupt:
        pass
    finally:
        sys.setprofile(None)
    return at.count


# Python reports interrupts as something is let go of, and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("seen", [0, 1, 3])  # one is noted, and written down, at the second call
def test_an_interrupt_leaves_all_as_it_was(name: str, seen: int) -> None:
    ours, theirs = CALLS[name]
    expected = theirs()

    def begin() -> None:
        clear_plans()
        for _ in range(seen):
            ours()

    ours()
    begin()
    count = interrupted(ours, 0)
    before = state()
    for number in range(MOMENTS):
        moment = 1 + (number * 2 + 1) * count // (2 * MOMENTS)
        begin()
        interrupted(ours, moment)
        assert state() == before, moment
        for _ in range(3):
            torch.testing.assert_close(ours(), expected)
