"""Eight Python threads that take different derivatives at once get right answers every time."""

import threading
from collections.abc import Callable

import pytest
import torch
from oracles import assert_close, central_jacobian
from torch import Tensor, nn

from pushforward import jacfwd, jacobian, jacrev, jvp, linearize, vjp, vmap

F64 = torch.float64
THREADS, CALLS = 8, 25
W = torch.randn(4, 4, dtype=F64, generator=torch.Generator().manual_seed(2))


def in_place(x):
    y = x.clone()
    y[1:] *= x[:-1]
    return y.sin()


FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.sin() * x.sum(),
    lambda x: torch.tanh(W @ x),
    in_place,
    lambda x: x.softmax(0).cumsum(0),
    lambda x: x.exp() if x.sum() > 0 else x.cos(),
    lambda x: torch.linalg.solve(W + 5 * torch.eye(4, dtype=F64), x**2),
    lambda x: nn.functional.gelu(x.view(2, 2)).logsumexp(1),
    lambda x: vmap(lambda row: (row * x).sin().sum())(W),
]


def run_threads(task: Callable[[int], None]) -> list[BaseException]:
    """Start ``task(0) ... task(7)`` together; return what they raised."""
    barrier = threading.Barrier(THREADS)
    errors: list[BaseException] = []

    def body(number: int) -> None:
        try:
            barrier.wait()
            for _ in range(CALLS):
                task(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize(
    "kind",
    ["jacfwd", "jacrev", "jacobian", "cross", "jvp", "vjp", "linearize", "vmap", "second order"],
)
def test_eight_threads_with_different_functions_get_right_answers_every_time(kind):
    points = [torch.randn(4, dtype=F64) for _ in range(THREADS)]
    jacobians = [central_jacobian(f, x) for f, x in zip(FUNCTIONS, points, strict=True)]
    seconds = [central_jacobian(jacfwd(f), x) for f, x in zip(FUNCTIONS, points, strict=True)]

    def task(i: int) -> None:
        f, x, jac = FUNCTIONS[i], points[i], jacobians[i]
        if kind == "jacfwd":
            assert_close(jacfwd(f)(x), jac)
        elif kind == "jacrev":
            assert_close(jacrev(f)(x), jac)
        elif kind in ("jacobian", "cross"):
            mode = "auto" if kind == "jacobian" else "cross"
            assert_close(jacobian(f, mode=mode)(x), jac)
        elif kind == "vjp":
            out, pullback = vjp(f, x)
            assert_close(pullback(torch.ones_like(out))[0], jac.reshape(-1, 4).sum(0))
        elif kind == "jvp":
            assert_close(jvp(f, (x,), (x,))[1], jac @ x)
        elif kind == "linearize":
            assert_close(linearize(f, x)[1](x), jac @ x)
        elif kind == "vmap" and i != 4:  # number 4 branches on values, which vmap refuses
            assert_close(vmap(jacfwd(f))(torch.stack([x, x]))[1], jac)
        else:
            assert_close(jacfwd(jacfwd(f))(x), seconds[i])

    assert run_threads(task) == []


def test_a_thread_inside_a_recording_does_not_disturb_another():
    """One thread stands in the middle of its function while another makes a whole call."""
    inside, done = threading.Event(), threading.Event()
    results: dict[str, Tensor] = {}
    x = torch.randn(3, dtype=F64)

    def waits(x):
        y = x.sin()
        inside.set()
        assert done.wait(30)
        return y * x

    thread = threading.Thread(target=lambda: results.update(slow=jacfwd(waits)(x)))
    thread.start()
    assert inside.wait(30)
    try:
        assert_close(jacfwd(torch.exp)(x), torch.diag(x.exp()))
    finally:
        done.set()
        thread.join()
    assert_close(results["slow"], torch.diag(x.cos() * x + x.sin()))


def test_one_linear_function_is_used_by_eight_threads_at_once():
    x = torch.randn(4, dtype=F64)
    f = FUNCTIONS[0]
    _, lin = linearize(f, x)
    jac = central_jacobian(f, x)
    tangents = [torch.randn(4, dtype=F64) for _ in range(THREADS)]
    assert run_threads(lambda i: assert_close(lin(tangents[i]), jac @ tangents[i])) == []


def test_an_exception_in_one_thread_leaves_the_others_right():
    x = torch.randn(4, dtype=F64)
    jac = central_jacobian(FUNCTIONS[1], x)

    def task(i: int) -> None:
        if i % 2:
            with pytest.raises(ZeroDivisionError):
                jacfwd(lambda x: x.sin() * (1 // 0))(x)
        else:
            assert_close(jacfwd(FUNCTIONS[1])(x), jac)

    assert run_threads(task) == []


def test_draws_of_another_thread_are_not_taken_for_the_functions_own():
    stop = threading.Event()

    def draw():
        while not stop.is_set():
            torch.rand(3)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(200):
            assert torch.equal(jacfwd(torch.sin)(torch.zeros(2)), torch.eye(2))
        with pytest.raises(RuntimeError, match="randomness"):
            jacfwd(lambda x: x * torch.rand(2))(torch.zeros(2))
    finally:
        stop.set()
        thread.join()
