"""Columns in chunks through tapes that are cut: the same numbers, for little more memory than torch.func by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peaks import bytes_of
from torch import Tensor, nn

import pushforward as pf
from pushforward.errors import MemoryLimitError
from pushforward.planning.plans import PLANS
from pushforward.tape import pieces
from pushforward.tape.trust import record_of
from pushforward.transforms import memory

F64 = torch.float64


def _draws(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype)


def by_hand(func: Callable[[Tensor], Tensor], x: Tensor, chunk_size: int) -> Tensor:
    """Return torch.func's Jacobian, so many columns at a time."""

    def column(direction: Tensor) -> Tensor:
        return torch.func.jvp(func, (x,), (direction,))[1]

    directions = torch.eye(x.numel(), dtype=x.dtype).reshape(x.numel(), *x.shape)
    found = torch.func.vmap(column, out_dims=-1, chunk_size=chunk_size)(directions)
    return found.reshape(*found.shape[:-1], *x.shape)


# ---- memory ----

BASIS, WEIGHT = _draws(12, 3000), _draws(90, 90) / 12


def _leapfrog(p: Tensor) -> Tensor:
    x = p @ BASIS
    v = torch.zeros_like(x)
    for _ in range(60):
        v = v - 0.1 * (x.sin() - torch.roll(x, 1) + x)
        x = x + 0.1 * v
    return x


def _products(p: Tensor) -> Tensor:
    x = (p @ BASIS[:, :900]).view(10, 90)
    for _ in range(60):
        x = torch.tanh(x @ WEIGHT) + x
    return x


def _solves(p: Tensor) -> Tensor:
    x = p @ BASIS[:, :90]
    for _ in range(5):
        x = torch.linalg.solve(WEIGHT + torch.diag(x.cosh()), x.sin())
    return x


def _softmax(p: Tensor) -> Tensor:
    x = (p @ BASIS).view(100, 30)
    for _ in range(30):
        x = torch.softmax(x, -1) * x.sigmoid() + x
    return x.sum(0)


LONG = [_leapfrog, _products, _solves, _softmax]


@pytest.mark.parametrize("chunk_size", [1, 3])
@pytest.mark.parametrize("func", LONG)
def test_chunks_of_a_long_program_need_little_more_than_torch_func_by_hand(
    func: Callable[[Tensor], Tensor], chunk_size: int
) -> None:
    p = _draws(12)
    call = pf.jacfwd(func, chunk_size=chunk_size)
    expected = torch.func.jacfwd(func)(p)
    for _ in range(4):
        torch.testing.assert_close(call(p), expected)
    ours, left = bytes_of(lambda: call(p), keeps_plans=True)
    theirs, _ = bytes_of(lambda: by_hand(func, p, chunk_size))
    assert ours <= 1.5 * theirs  # which runs the function once for each chunk
    assert left < 2**16


def test_chunks_take_no_more_memory_under_torch_compile() -> None:
    """Where Dynamo watches calls, these hold what they are given more than once."""
    p = _draws(12)
    call = pf.jacfwd(_leapfrog, chunk_size=2)
    compiled = torch.compile(call, backend="eager")
    for _ in range(3):
        torch.testing.assert_close(compiled(p), call(p))
    peaks = [bytes_of(lambda c=c: c(p), keeps_plans=True)[0] for c in (call, compiled)]
    assert peaks[1] <= 1.1 * peaks[0]


def test_the_memory_of_chunks_does_not_grow_with_the_steps_of_a_program() -> None:
    def steps(number: int) -> Callable[[Tensor], Tensor]:
        def func(p: Tensor) -> Tensor:
            x = p @ BASIS
            for _ in range(number):
                x = x + 0.01 * torch.sin(x)
            return x

        return func

    peaks = []
    for func in (steps(60), steps(180)):  # of the second the tape would be 4 MiB
        call = pf.jacfwd(func, chunk_size=2)
        for _ in range(3):
            call(_draws(12))
        peaks.append(bytes_of(lambda call=call: call(_draws(12)), keeps_plans=True)[0])
    assert peaks[1] <= 1.1 * peaks[0] <= 2**20


def test_short_tapes_are_not_cut() -> None:
    def func(k: Tensor) -> Tensor:
        matrix = k.new_zeros(len(k) + 1, len(k) + 1)
        for i in range(len(k)):
            matrix[i : i + 2, i : i + 2] += k[i]  # saves nothing, and all columns are large
        return matrix

    call, k = pf.jacfwd(func, chunk_size=1), _draws(40)
    for _ in range(4):
        call(k)
    assert bytes_of(lambda: call(k), keeps_plans=True)[0] <= 1.2 * call(k).nbytes


def test_a_function_known_from_shorter_calls_is_cut_again() -> None:
    p = _draws(12)
    call = pf.jacfwd(_leapfrog, chunk_size=1)
    call(p)
    for _ in range(3):
        pf.jacrev(lambda q: _leapfrog(q)[:3])(p)
        pf.vjp(_leapfrog, p)
    peaks = [bytes_of(lambda: call(p), keeps_plans=True)[0] for _ in range(3)]
    assert peaks[-1] <= 1.5 * bytes_of(lambda: by_hand(_leapfrog, p, 1))[0]


@pytest.mark.parametrize("options", [{"chunk_size": 2}, {"memory_limit": 1_500_000}], ids=str)
def test_jacobian_in_forward_mode_needs_what_jacfwd_does(options: dict[str, int]) -> None:
    p = _draws(12)
    expected, value = torch.func.jacfwd(_leapfrog)(p), _leapfrog(p)
    calls = [
        pf.jacfwd(_leapfrog, **options),
        pf.jacobian(_leapfrog, mode="forward", **options),
        pf.value_and_jacobian(_leapfrog, mode="forward", **options),
    ]
    peaks = []
    for call in calls:
        for _ in range(3):
            found = call(p)
        torch.testing.assert_close(found[1] if call is calls[2] else found, expected)
        peaks.append(bytes_of(lambda call=call: call(p), keeps_plans=True)[0])
    torch.testing.assert_close(found[0], value)
    assert max(peaks) <= min(1.1 * min(peaks), 1_500_000)  # the tape has 3 MiB


SPREAD = _draws(100, 1000)


@pytest.mark.parametrize(
    ("step", "most"),
    [
        (lambda x: x * torch.sin(x) * torch.exp(-x * x), 1.0),
        (lambda x: torch.softmax(x.view(10, 100), -1).view(-1) * x.sigmoid() + x, 1.0),
        (torch.tanh, 1.2),  # beside which torch.func holds nothing, and ours a piece of the tape
    ],
    ids=["products", "softmax", "tanh"],
)
def test_many_columns_of_a_large_state_and_a_small_output(
    step: Callable[[Tensor], Tensor], most: float
) -> None:
    def func(p: Tensor) -> Tensor:
        x = p @ SPREAD
        for _ in range(120):
            x = step(x)
        return x.view(10, 100).sum(1)

    p, call = _draws(100), pf.jacfwd(func)
    for _ in range(3):
        found = call(p)
    torch.testing.assert_close(found, torch.func.jacfwd(func)(p))
    ours = bytes_of(lambda: call(p), keeps_plans=True)[0]
    assert ours <= most * bytes_of(lambda: torch.func.jacfwd(func)(p))[0]


@pytest.mark.parametrize(
    "step",
    [lambda x: x + 0.1 * x.sin(), lambda x: torch.softmax(x.view(50, 50), -1).flatten() * x.cos()],
    ids=["sine", "softmax"],
)
@pytest.mark.parametrize("count", [6, 12])
def test_few_columns_of_a_long_program_need_no_more_than_torch_func(
    count: int, step: Callable[[Tensor], Tensor]
) -> None:
    def func(p: Tensor) -> Tensor:
        x = p @ BASIS[:count, :2500]
        for _ in range(60):
            x = step(x)
        return x

    p, call = _draws(count), pf.jacfwd(func)
    for _ in range(5):
        torch.testing.assert_close(call(p), torch.func.jacfwd(func)(p))
    ours = bytes_of(lambda: call(p), keeps_plans=True)[0]
    assert ours <= 1.1 * bytes_of(lambda: torch.func.jacfwd(func)(p))[0]


def test_cuts_pay_for_what_one_step_takes() -> None:
    def func(x: Tensor) -> Tensor:
        for _ in range(5):
            x = torch.linalg.solve(WEIGHT + torch.diag(x.cosh()), x.sin())  # 90 tangents of 64 KB
        return x

    for _ in range(3):
        pf.jacfwd(func)(_draws(90))
    assert not record_of(func).pieces


@pytest.mark.parametrize("options", [{"chunk_size": 1}, {"memory_limit": 1_500_000}], ids=str)
def test_what_is_known_from_whole_tapes_is_cut_where_that_is_asked_for(
    options: dict[str, int],
) -> None:
    def func(p: Tensor) -> Tensor:
        return _leapfrog(p)

    p = _draws(12)
    for _ in range(4):  # quiet, so that it is not watched any more
        pf.vjp(func, p)
    call = pf.jacfwd(func, **options)
    for _ in range(2):
        found = call(p)
    torch.testing.assert_close(found, torch.func.jacfwd(func)(p))
    assert bytes_of(lambda: call(p), keeps_plans=True)[0] <= 1_500_000  # the tape has 3 MiB


def test_jacobian_in_forward_mode_can_be_differentiated() -> None:
    p = _draws(12).requires_grad_()
    found = pf.jacobian(_leapfrog, mode="forward", chunk_size=5)(p)
    expected = torch.func.jacrev(lambda p: _leapfrog(p)[:7])(p)
    torch.testing.assert_close(found[:7], expected)
    (gradient,) = torch.autograd.grad(found[:7].square().sum(), p)
    (other,) = torch.autograd.grad(expected.square().sum(), p)
    torch.testing.assert_close(gradient, other)


# ---- within a limit ----


def _twice_held(x: Tensor) -> Tensor:
    v = torch.zeros_like(x)
    for _ in range(200):
        v = v - 0.1 * (x.sin() - torch.roll(x, 1) + x)
        x = x + 0.1 * v
    return x


def _shrunk(x: Tensor) -> Tensor:
    for _ in range(100):
        x = torch.softmax(x, -1) * x.sigmoid() + x
    return x.view(100, 30).sum(0)


@pytest.mark.parametrize("steps", [_twice_held, _shrunk])
def test_long_programs_are_kept_within_limits_that_their_tapes_exceed(
    steps: Callable[[Tensor], Tensor],
) -> None:
    def func(p: Tensor) -> Tensor:
        return steps(p @ BASIS)

    p = _draws(12)
    expected, tape = torch.func.jacfwd(func)(p), _tape(func, p)
    for limit in (tape // 4, tape // 2):
        pf.clear_plans()
        call = pf.jacfwd(func, memory_limit=limit)
        for _ in range(4):
            torch.testing.assert_close(call(p), expected)
        assert bytes_of(lambda call=call: call(p), keeps_plans=True)[0] <= limit


def _tape(func: Callable[[Tensor], Tensor], p: Tensor) -> int:
    """Return how many bytes a tape has that is not cut."""
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.data_ptr()] = t.nbytes
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = func(p.clone().requires_grad_())
    assert result.requires_grad
    return sum(saved.values())


@pytest.mark.parametrize("steps", [60, 180])
def test_what_a_long_program_needs_is_expected(steps: int) -> None:
    def func(p: Tensor) -> Tensor:
        x = p @ BASIS
        v = torch.zeros_like(x)
        for _ in range(steps):
            v = v - 0.1 * x.sin()
            x = x + 0.1 * v
        return x

    p = _draws(12)
    pf.clear_plans()
    peaks = {}
    for chunk_size in ("auto", 1):
        call = pf.jacfwd(func, chunk_size=chunk_size)
        for _ in range(4):
            torch.testing.assert_close(call(p), torch.func.jacfwd(func)(p))
        peaks[chunk_size] = bytes_of(lambda call=call: call(p), keeps_plans=True)[0]
    need = PLANS.of_kind(memory.NEEDS)[-1]
    assert peaks["auto"] / 2 <= need.peak(None) <= 2 * peaks["auto"]
    assert peaks[1] / 2 <= need.peak(1) <= 2 * peaks[1]


def test_a_result_that_outgrows_the_limit_after_a_cut_is_refused() -> None:
    def func(p: Tensor) -> Tensor:
        x = _leapfrog(p)
        return torch.outer(x[:100], x[:300])  # 12 columns of 240 KB

    limit = 2 * 10**6
    with pytest.raises(MemoryLimitError, match=r"jacfwd: memory_limit: got 2000000 .*at least"):
        pf.jacfwd(func, memory_limit=limit)(_draws(12))
    p = _draws(12)
    for _ in range(3):
        torch.testing.assert_close(
            pf.jacfwd(func, memory_limit=10**7)(p), torch.func.jacfwd(func)(p)
        )


# ---- numbers, with cuts wherever there can be one ----


@pytest.fixture
def _cut_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MIN_PIECE_IN_CHUNKS", 1)
    monkeypatch.setattr(pieces.Pushing, "needed", lambda *_: 0)


IMAGE = _draws(1, 1, 7, 6)
CONV = nn.Conv2d(1, 2, 3).double().requires_grad_(False)


def _several(x: Tensor, y: Tensor, z: Tensor) -> dict[str, Any]:
    a = x.sin()
    b = (a.sum() * y).exp()
    early = y.cos()  # x has no part in it
    c = torch.outer(b, a).tanh()
    return {
        "c": c @ a,
        "parts": (early * 2, z, x.new_ones(2)),
        "sum": (c.sum(1) * early).cumsum(0),
    }


def _of_complex(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    w = torch.complex(x.sin()[:3], y[:3]) * z[:3]
    return (w.exp() * w.conj()).real.cumsum(0) * x[:3]


def _in_place(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    u = x * 1.0
    for i in range(4):
        u.mul_(0.9 + y[i])
        u[i : i + 2] += u[1:3].sin()
        u[0] = u[3] * z.sum()
    return u * x


def _of_dtypes(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    a = x.float().sin()
    b = a.double() * y[:5]
    return a.cos().sum(), b.exp() + z[0].float()


def _convolved(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    image = torch.outer(x, y).sin()[None, None] * z.sum()
    return torch.relu(CONV(image)).flatten(1).softmax(-1)


def _unbound(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    a, b, c, d, e = (x * y[:5].exp()).unbind()
    first, second = torch.stack([a * b, c, d * e.sin()]).split([1, 2])
    return torch.cat([second.cos(), first * z[:1], b[None]])


FUNCTIONS = [_several, _of_complex, _in_place, _of_dtypes, _convolved, _unbound]


@pytest.mark.usefixtures("_cut_often")
@pytest.mark.parametrize("chunk_size", [1, 2, 5])
@pytest.mark.parametrize("func", FUNCTIONS)
def test_cuts_change_no_numbers(func: Callable[..., Any], chunk_size: int) -> None:
    point = (_draws(5), _draws(6), _draws(4))
    expected = torch.func.jacfwd(func, (0, 1, 2))(*point)
    pf.clear_plans()
    for _ in range(4):
        found = pf.jacfwd(func, (0, 1, 2), chunk_size=chunk_size)(*point)
        torch.testing.assert_close(found, expected, check_dtype=False)


@pytest.mark.usefixtures("_cut_often")
def test_complex_arguments_have_two_columns_for_each_number() -> None:
    z = _draws(4, dtype=torch.complex128)

    def func(z: Tensor) -> Tensor:
        w = z.exp() * z.conj()
        return w.cumsum(0) * w.abs()

    expected = pf.jacfwd(func)(z)
    for _ in range(4):
        torch.testing.assert_close(pf.jacfwd(func, chunk_size=3)(z), expected)


@pytest.mark.usefixtures("_cut_often")
def test_what_holds_an_earlier_step_is_differentiated_once_more_as_a_whole() -> None:
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            return cotangent * ctx.saved_tensors[0].cos()

    def func(x: Tensor, sine: Callable[[Tensor], Tensor]) -> Tensor:
        x = x.exp()
        early = sine(x)  # a custom function's result, which nobody notes
        for _ in range(5):
            x = x + x.cos()
        return x * early

    x = _draws(6)
    expected = torch.func.jacfwd(lambda x: func(x, torch.sin))(x)
    for _ in range(4):
        found = pf.jacfwd(lambda x: func(x, Sine.apply), chunk_size=2)(x)
        torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("_cut_often")
@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}], ids=str)
def test_results_can_be_differentiated_by_parameters_of_the_last_piece(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MIN_TAPE", "MIN_PIECE"):  # of few columns at once
        monkeypatch.setattr(pieces, name, 1)
    net = nn.Linear(6, 3).double()

    def func(x: Tensor) -> Tensor:
        for _ in range(5):
            x = x + 0.1 * x.sin()
        return net(x).tanh()

    x = _draws(6)
    (expected,) = torch.autograd.grad(torch.func.jacfwd(func)(x).square().sum(), net.weight)
    for _ in range(5):
        result = pf.jacfwd(func, **options)(x)
        (found,) = torch.autograd.grad(result.square().sum(), net.weight)
        torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("_cut_often")
def test_a_backward_pass_within_the_function_sees_all_of_it() -> None:
    def func(x: Tensor) -> Tensor:
        y = x.exp() * x.sin()
        y = y.cumsum(0)
        (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return slope * y

    x = _draws(6)
    expected = torch.autograd.functional.jacobian(func, x)
    for _ in range(4):
        torch.testing.assert_close(pf.jacfwd(func, chunk_size=2)(x), expected)


@pytest.mark.usefixtures("_cut_often")
def test_random_numbers_are_drawn_once_for_all_columns() -> None:
    def func(x: Tensor) -> Tensor:
        return (x.exp() * torch.rand_like(x)).sin() * torch.randn(6, dtype=F64)

    x = _draws(6)
    for randomness in ("same", "different"):
        for _ in range(3):
            torch.manual_seed(3)
            expected = torch.autograd.functional.jacobian(func, x)
            torch.manual_seed(3)
            found = pf.jacfwd(func, chunk_size=1, randomness=randomness)(x)
            torch.testing.assert_close(found, expected)
    with pytest.raises(RuntimeError, match="random"):
        pf.jacfwd(func, chunk_size=1)(x)


@pytest.mark.usefixtures("_cut_often")
def test_progress_starts_anew_for_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    tqdm = pytest.importorskip("tqdm.auto")
    steps: list[int] = []

    class Bar:
        def __init__(self, total: int, desc: str) -> None:
            steps.append(total)

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            steps.append(0)

        def update(self, number: int) -> None:
            steps.append(number)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    call = pf.jacfwd(lambda x: x.exp().sin().cumsum(0), chunk_size=2, progress=True)
    torch.testing.assert_close(
        call(_draws(3)), torch.func.jacfwd(lambda x: x.exp().sin().cumsum(0))(_draws(3))
    )
    total, *rest, end = steps
    assert (total, end) == (3, 0)
    pieces_of_it = [2, 1, -3] * (len(rest) // 3 + 1)
    assert rest == pieces_of_it[: len(rest)]
    assert len(rest) > 2


@pytest.mark.usefixtures("_cut_often")
def test_tapes_of_other_calls_do_not_keep_one_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as are in use for long, or wait in cycles for garbage to be collected."""
    kept: list[Any] = []

    def recording(x: Tensor) -> Tensor:
        kept.append(pf.linearize(torch.sin, x)[1])
        return x * 2

    pf.jacfwd(recording, chunk_size=1)(_draws(12))
    cuts: list[int] = []
    cut = pieces.PieceRun._cut

    def counted(self: pieces.PieceRun, variables: list[Tensor], is_whole: bool) -> bool:
        before = self._was_cut
        found = cut(self, variables, is_whole)
        cuts.append(self._was_cut > before)
        return found

    monkeypatch.setattr(pieces.PieceRun, "_cut", counted)
    pf.jacfwd(_products, chunk_size=1)(_draws(12))
    assert any(cuts)
    assert kept
