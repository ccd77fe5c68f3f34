"""jvp, and jacfwd of few columns, push while they record large results: the same numbers, and little kept alive."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import pushforward
from pushforward import grad, jvp
from pushforward.tape import pieces

F64 = torch.float64
SIZE = pieces.MAX_PIECE // 16  # in float64: every second result makes a piece
WEIGHT = torch.linspace(-1, 1, 64 * 64, dtype=F64).view(64, 64) / 8
PARAMETER = torch.nn.Parameter(torch.ones(1, dtype=F64))


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    pushforward.clear_plans()
    yield
    pushforward.clear_plans()


def _point() -> tuple[Tensor, Tensor]:
    return torch.randn(SIZE, dtype=F64), torch.randn(SIZE, dtype=F64)


def _steps(x: Tensor) -> Tensor:
    for _ in range(6):
        x = x + 0.1 * torch.sin(x)
    return x


def _views(x: Tensor) -> Tensor:
    y = x.clone()
    for _ in range(3):
        y[:100] = y[:100] * y[100:200]
        y = (y.view(-1, 64) @ WEIGHT).flatten() + y
    return y


def _several_outputs(x: Tensor) -> Tensor:
    a, b, c, d = x.view(4, -1)
    for _ in range(4):
        a, b, c, d = b * a.cos(), c + a, d * 0.5, a + b
    return torch.stack([a, b, c, d])


def _in_place(x: Tensor) -> Tensor:
    y = x * 2
    z = y.sin()
    for _ in range(4):
        y.mul_(0.9)
        z.add_(y)
        y[5] = z[3]
    return y * z


def _buffer(x: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for _ in range(4):
        total.add_(x * x.cos())
        x = x.sin()
    return total


def _tree(x: Tensor) -> dict[str, Any]:
    sums = []
    for _ in range(4):
        x = x.sin()
        sums.append(x.sum())
    return {"sums": sums, "x": x}


def _recording_inside(x: Tensor) -> Tensor:
    for _ in range(2):
        x = x + 0.01 * torch.func.grad(lambda y: (y**3).sum())(x)
    return x


def _with_parameter(x: Tensor) -> Tensor:
    for _ in range(3):
        x = x * PARAMETER + x.sin()
    return x


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "steps": _steps,
    "views": _views,
    "several outputs": _several_outputs,
    "in place": _in_place,
    "a buffer": _buffer,
    "a tree": _tree,
    "a recording inside": _recording_inside,
    "a parameter": _with_parameter,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("is_recording", [True, False])
def test_pieces_give_the_same_numbers(name: str, is_recording: bool) -> None:
    func, (x, v) = FUNCTIONS[name], _point()
    with torch.set_grad_enabled(is_recording):
        expected = torch.func.jvp(func, (x,), (v,))
        for _ in range(3):
            found = jvp(func, (x,), (v,))
            for got, wanted in zip(tree_leaves(found), tree_leaves(expected), strict=True):
                torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_pieces_of_few_columns_give_the_same_numbers(name: str) -> None:
    inner, (u, _) = FUNCTIONS[name], _point()

    def func(p: Tensor, q: Tensor) -> Any:
        return inner(u * p[0] + p[1] * q)

    p, q = torch.randn(2, dtype=F64), torch.randn((), dtype=F64)
    expected = torch.func.jacfwd(func, argnums=(0, 1))(p, q)
    for _ in range(3):
        found = pushforward.jacfwd(func, argnums=(0, 1))(p, q)
        for got, wanted in zip(tree_leaves(found), tree_leaves(expected), strict=True):
            torch.testing.assert_close(got, wanted)


# ---- many columns, as blocks ----

LENGTH = 320  # of what the functions work on, where pieces are made small


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have every few results cut, and tell behind how many variables."""
    for name in ("MIN_TAPE", "MIN_PIECE"):
        monkeypatch.setattr(pieces, name, LENGTH * 8)
    monkeypatch.setattr(pieces, "SHARE_OF_MANY", 0)
    found: list[int] = []
    cut = pieces.PieceRun._cut

    def counted(self: pieces.PieceRun, variables: list[Tensor], is_whole: bool) -> bool:
        found.append(len(variables))
        return cut(self, variables, is_whole)

    monkeypatch.setattr(pieces.PieceRun, "_cut", counted)
    return found


def _agree(func: Callable[..., Any], args: tuple[Tensor, ...], argnums: Any = 0) -> None:
    expected = torch.func.jacfwd(func, argnums)(*args)
    for _ in range(4):
        found = pushforward.jacfwd(func, argnums)(*args)
        for got, wanted in zip(tree_leaves(found), tree_leaves(expected), strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_pieces_of_many_columns_give_the_same_numbers(name: str, cuts: list[int]) -> None:
    inner, basis = FUNCTIONS[name], torch.randn(12, LENGTH, dtype=F64)

    def func(p: Tensor, q: Tensor) -> Any:
        return inner(torch.tanh(p @ basis) + q * basis[0])

    with torch.no_grad():
        _agree(func, (torch.randn(12, dtype=F64), torch.randn((), dtype=F64)), (0, 1))
    assert cuts


@pytest.mark.parametrize("name", FUNCTIONS)
def test_blocks_keep_their_structure_from_piece_to_piece(name: str, cuts: list[int]) -> None:
    with torch.no_grad():
        _agree(FUNCTIONS[name], (torch.randn(LENGTH, dtype=F64),))
    assert cuts


def test_what_does_not_depend_on_some_inputs_or_any(cuts: list[int]) -> None:
    def func(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        a, b, c = x * 1.0, y * 1.0, torch.ones_like(x)
        for _ in range(6):
            a, b, c = a.sin(), b * b.cos(), c.exp() / 3
        b = b + (a * 0).detach()
        return a.sum(), b, c, a * b

    _agree(func, (torch.randn(LENGTH, dtype=F64), torch.randn(LENGTH, dtype=F64)), (0, 1))
    assert cuts


def test_complex_numbers_in_pieces(cuts: list[int]) -> None:
    def func(x: Tensor) -> Tensor:
        for _ in range(6):
            x = x + 0.1j * torch.sin(x) * x.conj()
        return torch.view_as_real(x)

    def parts(x: Tensor) -> Tensor:
        return func(torch.view_as_complex(x))

    x = torch.rand(LENGTH, 2, dtype=F64) / 2
    expected = torch.func.jacrev(parts)(x)
    for _ in range(3):
        found = pushforward.jacfwd(func)(torch.view_as_complex(x))
        torch.testing.assert_close(found, expected.to(found.dtype))
    assert cuts


def test_tapes_that_are_small_next_to_their_columns_stay_whole(
    monkeypatch: pytest.MonkeyPatch, cuts: list[int]
) -> None:
    monkeypatch.setattr(pieces, "SHARE_OF_MANY", 2)
    _agree(_steps, (torch.randn(LENGTH, dtype=F64),))
    assert not cuts
    basis = torch.randn(12, LENGTH, dtype=F64)

    def long(p: Tensor) -> Tensor:
        x = p @ basis
        for _ in range(100):
            x = _steps(x)
        return x

    _agree(long, (torch.randn(12, dtype=F64) / 10,))
    assert cuts


def test_a_transform_of_ours_inside() -> None:
    def func(x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + 0.01 * grad(lambda y: (y**3).sum())(x)
        return x

    x, v = _point()
    output, tangent = jvp(func, (x,), (v,))
    expected = torch.func.jvp(_recording_inside, (x,), (v,))
    torch.testing.assert_close((output, tangent), expected)


def test_a_backward_pass_inside_needs_the_tape_whole() -> None:
    def func(x: Tensor) -> Tensor:
        y = (x.sin() ** 2).cos() * x
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return slope * x

    def same(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: ((x.sin() ** 2).cos() * x).sum())(x) * x

    x, v = _point()
    for _ in range(2):
        torch.testing.assert_close(jvp(func, (x,), (v,)), torch.func.jvp(same, (x,), (v,)))


def test_autograd_still_reaches_parameters() -> None:
    x, v = _point()
    _, tangent = jvp(_with_parameter, (x,), (v,))
    (got,) = torch.autograd.grad(tangent.sum(), PARAMETER)
    _, reference = torch.func.jvp(_with_parameter, (x,), (v,))
    (expected,) = torch.autograd.grad(reference.sum(), PARAMETER)
    torch.testing.assert_close(got, expected)


class _Mark:
    """Lives as long as the node whose metadata hold it."""


def test_what_was_pushed_is_let_go_of() -> None:
    marks: list[weakref.ref[_Mark]] = []
    alive: list[int] = []

    def func(x: Tensor) -> Tensor:
        for _ in range(30):
            x = x * 1.01
            mark = _Mark()
            assert x.grad_fn is not None
            x.grad_fn.metadata["mark"] = mark
            marks.append(weakref.ref(mark))
            del mark
            alive.append(sum(m() is not None for m in marks))
        return x

    x, v = _point()
    jvp(func, (x,), (v,))
    assert max(alive) <= 6


@pytest.mark.parametrize("inner", ["jvp", "grad"])
def test_a_cut_leaves_what_a_recording_inside_has_saved(inner):
    """The outer tape is cut while the inner one is read: the version of what is cut must stay."""
    x, u = torch.randn(16, SIZE // 16, dtype=F64), torch.randn(16, SIZE // 16, dtype=F64)

    def f(x: Tensor) -> Tensor:
        return x.log_softmax(1).square().sum()

    def derivative(lib: Any) -> Callable[[Tensor], Tensor]:
        return lib.grad(f) if inner == "grad" else lambda x: lib.jvp(f, (x,), (u,))[1]

    found = jvp(derivative(pushforward), (x,), (u,))[1]
    torch.testing.assert_close(found, torch.func.jvp(derivative(torch.func), (x,), (u,))[1])
