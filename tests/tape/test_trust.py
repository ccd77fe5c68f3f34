"""Functions that were quiet run unwatched: what they do then that has to be seen is noticed, or raises."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import pushforward
from pushforward import grad, jacfwd, jacrev
from pushforward.errors import UnsupportedError
from pushforward.tape import trust

CALLS = trust.WATCHED_FIRST + 1  # the last of them is unwatched
F64 = torch.float64


@pytest.fixture(autouse=True)
def _nobody_is_trusted() -> Iterator[None]:
    pushforward.clear_plans()
    yield
    pushforward.clear_plans()


def test_a_quiet_function_is_trusted_after_some_calls() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.nn.functional.relu(x).sin()

    trusted = []
    for _ in range(CALLS):
        trusted.append(trust.record_of(f).is_trusted)
        jacfwd(f)(torch.ones(2))
    assert trusted == [False] * trust.WATCHED_FIRST + [True]


def test_a_function_that_writes_is_watched_for_good() -> None:
    def f(x: Tensor) -> Tensor:
        y = torch.zeros(2)
        y[0] = x[1]
        return y

    for _ in range(2 * CALLS):
        jacfwd(f)(torch.ones(2))
    assert not trust.record_of(f).is_trusted


def test_another_graph_ends_the_trust() -> None:
    def f(x: Tensor) -> Tensor:
        return x.sin() if x.sum() > 0 else x.cos()

    x = torch.ones(2)
    for _ in range(CALLS):
        jacfwd(f)(x)
    assert trust.record_of(f).is_trusted
    torch.testing.assert_close(jacfwd(f)(-x), torch.diag(x.sin()))
    assert not trust.record_of(f).is_trusted


def _hooked(x: Tensor) -> Tensor:
    y = x.sin()
    y.register_hook(lambda g: 2 * g)
    return y.sum()


def _backward_inside(x: Tensor) -> Tensor:
    y = x.sin()
    (slope,) = torch.autograd.grad(y.sum(), x)
    return (y * slope.detach()).sum()


def _overwriting(x: Tensor) -> Tensor:
    y = x.exp()
    z = y * x
    y.mul_(2)
    return (z * y).sum()


UNSEEN: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "a hook": (_hooked, lambda x: 2 * x.cos()),
    "a backward pass": (_backward_inside, lambda x: x.cos() ** 2),
    "an overwritten value": (_overwriting, lambda x: 2 * x.exp() ** 2 * (1 + 2 * x)),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_a_trusted_function_does_for_the_first_time_is_noticed(name: str) -> None:
    other, expected = UNSEEN[name]

    def f(x: Tensor, is_other: bool) -> Tensor:
        return other(x) if is_other else x.sin().sum()

    x = torch.rand(3, dtype=F64)
    for _ in range(CALLS):
        grad(f)(x, False)
    for _ in range(CALLS):
        torch.testing.assert_close(grad(f)(x, True), expected(x))


def test_a_second_run_does_not_write_twice() -> None:
    buffer, weight = torch.zeros(2), torch.ones(2)

    def f(x: Tensor, is_other: bool) -> Tensor:
        y = x * weight
        if is_other:
            buffer.add_(1)
            weight.mul_(2)
        return y

    for _ in range(CALLS):
        jacrev(f)(torch.ones(2), False)
    with pytest.raises(UnsupportedError, match="Call it again"):
        jacrev(f)(torch.ones(2), True)
    assert buffer.tolist() == [1.0, 1.0]
    assert weight.tolist() == [2.0, 2.0]


def test_random_numbers_are_refused_and_put_back_by_a_trusted_function() -> None:
    def f(x: Tensor, is_random: bool) -> Tensor:
        return x * torch.rand(2) if is_random else x.sin()

    for _ in range(CALLS):
        jacfwd(f)(torch.ones(2), False)
    before = torch.get_rng_state()
    with pytest.raises(pushforward.RandomnessError):
        jacfwd(f)(torch.ones(2), True)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_number_of_functions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "MAX_FUNCTIONS", 3)
    for n in range(8):
        scope: dict[str, Any] = {}
        exec(f"def f(x):\n    return {n} * x", scope)
        jacfwd(scope["f"])(torch.ones(1))
    assert len(trust._records) <= 3


NORMS: dict[str, Callable[[], torch.nn.Module]] = {
    "batch norm": lambda: torch.nn.BatchNorm1d(2, dtype=F64),
    "batch norm, cumulative": lambda: torch.nn.BatchNorm1d(2, momentum=None, dtype=F64),
    "instance norm": lambda: torch.nn.InstanceNorm1d(2, track_running_stats=True, dtype=F64),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("is_followed", [True, False])
def test_running_statistics_are_updated_once_when_a_function_does_something_new(
    name: str, is_followed: bool
) -> None:
    module, plain = NORMS[name](), NORMS[name]()
    constant = torch.tensor([[0.3, 0.5], [1.0, -0.2]], dtype=F64)

    def f(x: Tensor, module: torch.nn.Module, is_other: bool) -> Tensor:
        y = module(x if is_followed else constant)
        return (y.cos() if is_other else y.sin()) * x

    for number in range(2 * CALLS):
        x = torch.rand(2, 2, dtype=F64)
        jacrev(f)(x, module, number == CALLS)
        f(x, plain, number == CALLS)
        for ours, theirs in zip(module.buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
@pytest.mark.parametrize("is_followed", [True, False])
def test_a_second_run_does_not_update_running_statistics_again(
    name: str, is_followed: bool
) -> None:
    normalize = getattr(torch.nn.functional, name)
    mean, var = torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)
    constant, is_on = torch.rand(3, 2, 2, dtype=F64), [False]

    def f(x: Tensor, mean: Tensor = mean, var: Tensor = var) -> Tensor:
        if not is_on[0]:
            return x.sin()
        given = x if is_followed else constant
        if name == "batch_norm":
            return torch.cos(normalize(given, mean, var, training=True) * x)
        return torch.cos(normalize(given, mean, var, use_input_stats=True) * x)

    x, expected = torch.rand(3, 2, 2, dtype=F64), (mean.clone(), var.clone())
    for _ in range(CALLS):
        jacrev(f)(x)
    is_on[0] = True
    with pytest.raises(UnsupportedError, match="had to be run twice"):
        jacrev(f)(x)
    for _ in range(CALLS):
        f(x, *expected)
        torch.testing.assert_close((mean, var), expected)
        jacrev(f)(x)


def test_a_branch_by_cond_is_seen_where_other_functions_with_a_backward_were_trusted() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return 2 * x * cotangents[0]

    is_on = [False]

    def f(x: Tensor) -> Tensor:
        y: Tensor = Square.apply(x)
        if is_on[0]:
            y = torch.cond(x.sum() > 0, torch.sin, torch.cos, (y,))
        return y * y.sin()

    for number in range(2 * CALLS):
        is_on[0] = number >= CALLS
        x = torch.rand(2, dtype=F64) - number % 2
        y = x * x
        branch, slope = (y.sin(), y.cos()) if x.sum() > 0 else (y.cos(), -y.sin())
        branch, slope = (branch, slope) if is_on[0] else (y, torch.ones_like(y))
        expected = 2 * x * slope * (branch.sin() + branch * branch.cos())
        torch.testing.assert_close(jacrev(f)(x), expected.diag())


@pytest.mark.parametrize("inner", [jacfwd, jacrev])
@pytest.mark.parametrize("outer", [jacfwd, jacrev])
def test_a_second_run_does_not_write_twice_to_what_is_followed_outside(
    outer: Any, inner: Any
) -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        y.mul_(2)
        return (x * y).sin()

    x, y = torch.rand(3, dtype=F64), torch.rand(3, dtype=F64)
    for _ in range(CALLS):
        jacrev(f, argnums=(0, 1))(x, y.clone())
    mixed = outer(lambda y: inner(f)(x, y))
    expected = torch.zeros(3, 3, 3, dtype=F64)
    for i in range(3):
        expected[i, i, i] = 2 * (2 * x * y).cos()[i] - 4 * (x * y)[i] * (2 * x * y).sin()[i]
    with contextlib.suppress(UnsupportedError):  # it says so
        torch.testing.assert_close(mixed(y.clone()), expected)
    for _ in range(2):
        torch.testing.assert_close(mixed(y.clone()), expected)


@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_under_vmap_a_trusted_function_may_ask_autograd(transform: Any) -> None:
    def f(x: Tensor, is_other: bool) -> Tensor:
        y = x.sin()
        if is_other:
            y = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
        return y

    x = torch.rand(4, 3, dtype=F64)
    for is_other in (False, True):
        for _ in range(CALLS):
            jac = pushforward.vmap(lambda x, is_other=is_other: transform(f)(x, is_other))(x)
            torch.testing.assert_close(jac, torch.diag_embed(-x.sin() if is_other else x.cos()))


class Keeping(torch.nn.Module):
    """Leaves the same graph whether it keeps its input, which has to be seen, or not."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.keeps, self.last = keeps, torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        if self.keeps:
            self.last.copy_(x)
        return x.sin()


@pytest.mark.parametrize("is_in_closure", [False, True])
def test_a_module_made_where_a_trusted_one_was_is_not_trusted(is_in_closure: bool) -> None:
    def called(module: Keeping) -> Callable[[Tensor], Tensor]:
        return (lambda x: module(x)) if is_in_closure else module

    x = torch.ones(3)
    neighbours = [Keeping.__new__(Keeping) for _ in range(1000)]  # so that its memory stays in use
    module = Keeping(keeps=False)
    neighbours += [Keeping.__new__(Keeping) for _ in range(1000)]
    for _ in range(CALLS):
        jacrev(called(module))(x)
    assert trust.record_of(called(module)).is_trusted
    place = id(module)
    del module
    while len(neighbours) < 20_000:  # all places that are free are filled
        other = Keeping.__new__(Keeping)
        if id(other) == place:
            break
        neighbours.append(other)
    other.__init__(keeps=True)
    assert id(other) == place
    assert not trust.record_of(called(other)).is_trusted
    torch.testing.assert_close(jacrev(called(other))(x), torch.func.jacrev(torch.sin)(x))
    assert not other.last.requires_grad


def test_objects_that_no_weak_reference_leads_to_are_told_apart() -> None:
    class Slotted:
        __slots__ = ("keeps",)

        def __call__(self, x: Tensor) -> Tensor:
            return x.sin()

    records = [trust.record_of(Slotted()) for _ in range(5)]
    assert len({id(record) for record in records}) == 5


def test_ends_of_modules_are_noticed() -> None:
    before = len(trust._numbers)
    for _ in range(20):
        trust.record_of(Keeping(keeps=False))
    assert len(trust._numbers) <= before + 1


def _whole(tensor: Tensor, x: Tensor) -> None:
    tensor.copy_(x)


def _scaled(tensor: Tensor, x: Tensor) -> None:
    tensor.mul_(x.exp())


def _part(tensor: Tensor, x: Tensor) -> None:
    tensor[:1] = x[1:]


def _by_out(tensor: Tensor, x: Tensor) -> None:
    torch.sin(x.detach(), out=tensor)


class _Holder(torch.nn.Module):
    """Keeps a buffer, and an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer: Tensor
        self.register_buffer("buffer", torch.ones(2, dtype=F64))
        self.kept = torch.ones(2, dtype=F64)


@pytest.mark.parametrize("write", [_whole, _scaled, _part, _by_out])
@pytest.mark.parametrize("transform", ["jacfwd", "jacrev", "jacobian", "linearize", "vjp", "grad"])
@pytest.mark.parametrize("place", ["closure", "buffer", "attribute", "container"])
def test_what_is_newly_written_to_loses_its_history(
    place: str, transform: str, write: Callable[[Tensor, Tensor], None]
) -> None:
    x = torch.tensor([0.3, 0.8], dtype=F64)
    for num_calls in (CALLS, 2 * CALLS, 4 * CALLS):  # then it is trusted, then known by heart
        captured, holder, container = torch.ones(2, dtype=F64), _Holder(), {"kept": [x.clone()]}
        is_on = [False]

        # B023: what these see is that of the round in which they are called.
        def target() -> Tensor:
            if place == "closure":
                return captured  # noqa: B023
            if place == "container":
                return container["kept"][0]  # noqa: B023
            return holder.buffer if place == "buffer" else holder.kept  # noqa: B023

        def f(x: Tensor) -> Tensor:
            if is_on[0]:  # noqa: B023
                write(target(), x)
            return (x * x).sum()

        def call(f: Callable[[Tensor], Tensor] = f) -> Any:
            if transform == "linearize":
                return pushforward.linearize(f, x)[1](torch.ones_like(x))
            if transform == "vjp":
                return pushforward.vjp(f, x)[1](torch.tensor(1.0, dtype=F64))[0]
            return getattr(pushforward, transform)(f)(x)

        for _ in range(num_calls):
            before = call()
        is_on[0] = True
        for _ in range(CALLS):
            expected = target().clone()
            write(expected, x)
            torch.testing.assert_close(call(), before)
            assert not target().requires_grad
            torch.testing.assert_close(target(), expected)


NESTED: dict[str, Callable[..., Any]] = {
    "hessian": lambda f, x: pushforward.hessian(f)(x),
    "hvp": lambda f, x: pushforward.hvp(f, (x,), (x,))[1],
    "forward over forward": lambda f, x: pushforward.jacfwd(pushforward.jacfwd(f))(x),
    "reverse over forward": lambda f, x: pushforward.jacrev(pushforward.jacfwd(f))(x),
    "gradients": lambda f, x: pushforward.grad(lambda x: pushforward.grad(f)(x).sum())(x),
}


@pytest.mark.parametrize("nest", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("write", [_whole, _part])
def test_what_is_newly_written_to_inside_another_recording_loses_its_history(
    write: Callable[[Tensor, Tensor], None], nest: Callable[..., Any]
) -> None:
    x, captured, is_on = torch.tensor([0.3, 0.8], dtype=F64), torch.ones(2, dtype=F64), [False]

    def f(x: Tensor) -> Tensor:
        if is_on[0]:
            write(captured, x)
        return (x**3).sum()

    for _ in range(2 * CALLS):
        before = nest(f, x)
    is_on[0] = True
    for _ in range(CALLS):
        expected = captured.clone()
        write(expected, x)
        torch.testing.assert_close(nest(f, x), before)
        assert not captured.requires_grad
        torch.testing.assert_close(captured, expected)


@pytest.mark.parametrize("is_followed", [False, True])
def test_what_is_written_to_in_place_of_memory_of_its_own_loses_its_history(
    is_followed: bool,
) -> None:
    x, captured, is_on = torch.tensor([0.3, 0.8], dtype=F64), torch.ones(2, dtype=F64), [False]

    def f(x: Tensor) -> Tensor:  # leaves the same graph in either case
        y = captured if is_on[0] else torch.zeros(2, dtype=F64)
        return y.add_(x**2)

    for i in range(4 * CALLS):
        is_on[0] = i % CALLS == CALLS - 1
        given = x.clone().requires_grad_(is_followed)
        jac = pushforward.jacfwd(f)(given)
        torch.testing.assert_close(jac, torch.diag(2 * x))
        assert not captured.requires_grad
        if is_followed:
            value = pushforward.value_and_jacobian(f)(given)[0]
            torch.testing.assert_close(torch.autograd.grad(value.sum(), given)[0], 2 * x)


def test_what_is_newly_written_to_before_an_error_loses_its_history() -> None:
    x, captured, is_on = torch.tensor([0.3, 0.8], dtype=F64), torch.ones(2, dtype=F64), [False]

    def f(x: Tensor) -> Tensor:
        y = x.sin()
        if is_on[0]:
            captured.copy_(x)
            raise KeyError("gone")
        return y

    for _ in range(2 * CALLS):
        pushforward.jacfwd(f)(x)
    is_on[0] = True
    with pytest.raises(KeyError, match="gone"):
        pushforward.jacfwd(f)(x)
    assert not captured.requires_grad
    torch.testing.assert_close(captured, x)


def test_a_function_that_had_to_be_run_twice_for_a_write_is_watched_from_then_on() -> None:
    x, captured = torch.tensor([0.3, 0.8], dtype=F64), torch.ones(2, dtype=F64)
    is_on, errors = [False], 0

    def f(x: Tensor) -> Tensor:
        if is_on[0]:
            return captured.copy_(x).tanh()
        return x.sin()

    for i in range(6 * CALLS):
        is_on[0] = i % (2 * CALLS) == 2 * CALLS - 1
        try:
            jac = pushforward.jacfwd(f)(x)
        except pushforward.errors.UnsupportedError:
            errors += 1
        else:
            torch.testing.assert_close(
                jac, torch.func.jacrev(torch.tanh if is_on[0] else torch.sin)(x)
            )
        assert not captured.requires_grad
    assert errors == 1


@pytest.mark.parametrize("take", [lambda c: c.data, lambda c: c.data[:1], lambda c: c.detach()])
@pytest.mark.parametrize("place", ["closure", "buffer"])
def test_a_second_run_does_not_write_by_data_again(
    place: str, take: Callable[[Tensor], Tensor]
) -> None:
    captured, holder, is_on = torch.ones(2, dtype=F64), _Holder(), [False]

    def target() -> Tensor:
        return captured if place == "closure" else holder.buffer

    def f(x: Tensor) -> Tensor:
        if is_on[0]:
            take(target()).mul_(0.5)
            own = x.detach() * 2
            own.data.mul_(2)  # its own may be written to as often as it likes
            return x.sin() * own
        return x * x

    x, expected = torch.rand(2, dtype=F64), torch.ones(2, dtype=F64)
    for _ in range(CALLS):
        jacrev(f)(x)
    is_on[0] = True
    with pytest.raises(UnsupportedError, match="had to be run twice"):
        jacrev(f)(x)
    for _ in range(CALLS):
        take(expected).mul_(0.5)
        torch.testing.assert_close(target(), expected)
        torch.testing.assert_close(jacrev(f)(x), torch.diag(x.cos() * 4 * x))


def test_a_second_run_may_write_to_its_own() -> None:
    is_on = [False]

    def f(x: Tensor) -> Tensor:
        if is_on[0]:
            own = x.detach() * 2
            own.data.mul_(2)
            return x.sin() * own
        return x * x

    x = torch.rand(2, dtype=F64)
    for _ in range(CALLS):
        jacrev(f)(x)
    is_on[0] = True
    torch.testing.assert_close(jacrev(f)(x), torch.diag(x.cos() * 4 * x))


def test_zeros_without_memory_are_seen_in_a_function_trusted_inside_torch_func() -> None:
    """Forward mode of ``torch.func`` leaves such zeros, which it hides from what is inside its own transforms."""
    factors, x = torch.tensor([0.5, 2.0], dtype=F64), torch.tensor([0.3, 0.8], dtype=F64)
    directions, matrix = torch.eye(2, dtype=F64), torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=F64)

    def f(x: Tensor) -> Tensor:
        return (matrix @ x).tanh() * factors

    def inner(x: Tensor) -> Tensor:
        return torch.func.vmap(lambda v: torch.func.jvp(f, (x,), (v,))[1])(directions)

    expected = torch.func.jacrev(torch.func.jacrev(f))(x).movedim(1, 0)
    for _ in range(3):
        for _ in range(2 * CALLS):
            torch.func.jacrev(pushforward.jacrev(inner))(x)
        for _ in range(2 * CALLS):
            torch.testing.assert_close(pushforward.jacrev(inner)(x), expected)


def test_what_fails_without_a_watcher_is_watched_for_longer() -> None:
    record, needed = trust.Record(), []
    for _ in range(trust.MAX_DOUBLINGS + 3):
        while not record.is_trusted:
            record.quiet += 1
        needed.append(record.quiet)
        record.note(trust.Unwatched())
    most = trust.WATCHED_FIRST << trust.MAX_DOUBLINGS
    doubled = [trust.WATCHED_FIRST << i for i in range(trust.MAX_DOUBLINGS)]
    assert needed == [trust.WATCHED_FIRST, *doubled, most, most]


def test_a_layer_with_a_way_of_its_own_for_what_needs_no_derivative() -> None:
    """Without a watcher it takes that way under ``vmap``, as wrappers do not require grad, and leaves no graph."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    layer.eval().requires_grad_(False)
    x = torch.randn(3, 5, 8, dtype=torch.float64)

    def function(x: torch.Tensor) -> torch.Tensor:
        num_runs.append(1)
        return layer(x[None])[0].mean(0)

    num_runs: list[int] = []
    expected = torch.stack([torch.autograd.functional.jacobian(function, each) for each in x])
    num_runs.clear()
    for _ in range(20):
        torch.testing.assert_close(torch.vmap(pushforward.jacrev(function))(x), expected)
    assert len(num_runs) <= 25
