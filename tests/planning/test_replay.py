"""Replay: what is repeated is what would be computed, for every way in which a call can differ from those before."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pushforward
from pushforward import grad, hessian, jacfwd, jacobian, jacrev, vmap
from pushforward.errors import UnsupportedError
from pushforward.planning import orders, replay
from pushforward.planning.plans import PLANS

CALLS = replay.FIRST_WRITTEN + 1  # the last of them is repeated

Func = Callable[..., Any]


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    PLANS.clear()
    yield
    PLANS.clear()


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that has an entry for every call that was answered by a replay."""
    answered: list[int] = []
    ready = replay.ready

    def counting(key: Any) -> Any:
        kernels = ready(key)
        if kernels is not None:
            answered.append(1)
        return kernels

    monkeypatch.setattr("pushforward.transforms.swept_graph.ready", counting)
    return answered


def _softmax_net(x: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, 12, dtype=x.dtype).reshape(3, 4)
    return torch.softmax(torch.relu(weight @ x), 0)


FUNCTIONS: dict[str, tuple[Func, tuple[int, ...]]] = {
    "chain": (lambda x: x.sin().exp() * 2, (4,)),
    "one unit": (lambda x: x.sum(), (4,)),
    "linear and relu": (_softmax_net, (4,)),
    "several uses": (lambda x: x * x[0] + x.mean() - x.flip(0) ** 2, (5,)),
    "views": (lambda x: x.t().reshape(-1)[1:].cumsum(0), (2, 3)),
    "lists": (lambda x: torch.cat([x, x.cos()]).prod(), (3,)),
    "several outputs": (lambda x: (x.max(0).values, x.std()), (3, 2)),
    "matrices": (lambda x: torch.linalg.inv(x @ x.mT + torch.eye(3)), (3, 3)),
    "indices": (lambda x: x[torch.tensor([2, 0, 0])] * x, (3,)),
    "identity": (lambda x: x, (3,)),
    "constant": (lambda x: torch.ones(2), (3,)),
    "complex": (lambda x: torch.fft.rfft(x), (4,)),
    "layer norm": (lambda x: nn.functional.layer_norm(x, (3,)), (2, 3)),
    "attention": (lambda x: nn.functional.scaled_dot_product_attention(x, x, x), (1, 3, 2)),
}
TRANSFORMS: dict[str, Callable[[Func], Func]] = {
    "jacrev": jacrev,
    "jacobian": jacobian,
    "forward": lambda f: jacobian(f, mode="forward"),
    "hessian": hessian,
    "jacrev of jacrev": lambda f: jacrev(jacrev(f)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_elements(name: str, transform: str) -> None:
    func, shape = FUNCTIONS[name]
    ours = TRANSFORMS[transform](func)
    order = 2 if transform in ("hessian", "jacrev of jacrev") else 1
    for _ in range(CALLS):
        x = torch.randn(shape, dtype=torch.float64)
        expected = x
        reference = func
        for _ in range(order):
            reference = jacfwd(reference)  # pushes, and never repeats
        expected = reference(x)
        torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_these_functions_are_repeated(name: str, repeated: list[int]) -> None:
    func, shape = FUNCTIONS[name]
    for _ in range(CALLS):
        jacrev(func)(torch.randn(shape))
    assert repeated == [1]


def test_another_branch_is_another_program(repeated: list[int]) -> None:
    def func(x: Tensor) -> Tensor:
        return x.sin() if x.sum() > 0 else x.cos()

    up, down = torch.ones(2), -torch.ones(2)
    for x in (up, up, up, down, down, down, up):
        torch.testing.assert_close(jacrev(func)(x), torch.func.jacrev(func)(x))
    assert len(repeated) == 2  # the last call is known by heart


def test_captured_tensors_may_be_others(repeated: list[int]) -> None:
    for _ in range(CALLS):
        weight, x = torch.randn(2, 3), torch.randn(3)
        torch.testing.assert_close(jacrev(lambda x, w=weight: w @ x.sin())(x), weight * x.cos())
    assert repeated


def test_which_arguments_are_the_same_tensor_matters() -> None:
    def compute(x: Tensor, y: Tensor) -> Any:
        return jacrev(lambda x, y: x * y.sin(), argnums=(0, 1))(x, y)

    x, y = torch.randn(2), torch.randn(2)
    for _ in range(CALLS):
        compute(x, x)
    for first, second in ((x, y), (y, x), (x, y)):
        dx, dy = compute(first, second)
        torch.testing.assert_close(dx, torch.diag(second.sin()))
        torch.testing.assert_close(dy, torch.diag(first * second.cos()))


@pytest.mark.parametrize("power", [2, 3, 0.5, 2.0, True])
def test_numbers_matter(power: complex) -> None:
    x = torch.rand(3) + 1
    for n in (1, 2, 3, power, power, power):
        expected = torch.func.jacrev(lambda x, n=n: x**n)(x)
        torch.testing.assert_close(jacrev(lambda x, n=n: x**n)(x), expected)


def test_the_sign_of_zero_matters() -> None:
    x = torch.ones(1)
    for zero in (0.0, 0.0, 0.0, -0.0):
        (slope,) = jacrev(lambda x, z=zero: x * z)(x)
        assert torch.signbit(slope).item() == (str(zero) == "-0.0")


@pytest.mark.parametrize(
    "change",
    [lambda x: x.double(), lambda x: x.repeat(2), lambda x: x.repeat(2)[::2], lambda x: x[None]],
    ids=["dtype", "shape", "strides", "axes"],
)
def test_metadata_matters(change: Callable[[Tensor], Tensor]) -> None:
    def func(x: Tensor) -> Tensor:
        return (x.sin() * torch.arange(x.shape[-1])).sum(-1)

    x = torch.randn(4)
    for y in (x, x, x, change(x), change(x), change(x)):
        result = jacrev(func)(y)
        expected = torch.func.jacrev(func)(y)
        assert result.is_contiguous()
        torch.testing.assert_close(result, expected)


def test_results_are_the_callers() -> None:
    weight = torch.randn(2, 3)
    x = torch.randn(3)
    for _ in range(CALLS):
        jacrev(lambda x: weight @ x)(x).zero_()
        jacrev(lambda x: x @ weight.mT)(x).zero_()
        grad(lambda x: (weight[0] * x).sum())(x).zero_()
    assert weight.abs().min() > 0
    results = [jacrev(torch.sin)(x) for _ in range(CALLS)]
    assert len({r.data_ptr() for r in results}) == len(results)


def test_a_captured_tensor_written_after_its_use_is_noticed_each_time() -> None:
    weight = torch.ones(3)

    def func(x: Tensor, written: bool) -> Tensor:
        y = x * weight
        if written:
            weight.add_(1)
        return y

    for _ in range(CALLS):
        jacrev(func)(torch.ones(3), False)
    with pytest.raises(UnsupportedError, match="had to be run twice"):
        jacrev(func)(torch.ones(3), True)
    assert torch.equal(weight, torch.full((3,), 2.0)), "written to once"
    for n in (2, 3):
        torch.testing.assert_close(jacrev(func)(torch.ones(3), True), n * torch.eye(3))
        assert torch.equal(weight, torch.full((3,), n + 1.0))


def test_in_place_operators_are_right_each_time() -> None:
    def func(x: Tensor) -> Tensor:
        y = x * 2
        y[0] = x[1] ** 2
        y.mul_(x)
        return y

    for _ in range(CALLS):
        x = torch.randn(3)
        torch.testing.assert_close(jacrev(func)(x), torch.func.jacrev(func)(x))


def test_autograd_flows_through_repeated_kernels() -> None:
    weight = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    for _ in range(CALLS):
        x = torch.randn(3, dtype=torch.float64, requires_grad=True)

        def norm(x: Tensor, w: Tensor) -> Tensor:
            return jacrev(lambda x: torch.tanh(w @ x))(x).square().sum()

        assert torch.autograd.gradcheck(norm, (x, weight))


def test_no_grad_parameters_and_then_parameters_with_grad() -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(3)
    for requires_grad in (False, False, False, True, True, True):
        layer.requires_grad_(requires_grad)
        result = jacrev(lambda x: torch.tanh(layer(x)))(x)
        assert result.requires_grad is requires_grad


def test_random_numbers_are_drawn_each_time() -> None:
    x = torch.ones(4)
    for seed in range(CALLS + 1):
        torch.manual_seed(seed)
        result = jacrev(lambda x: x * torch.rand(4) * nn.functional.dropout(x))(x)
        torch.manual_seed(seed)
        expected = jacfwd(
            lambda x: x * torch.rand(4) * nn.functional.dropout(x), randomness="same"
        )(x)
        torch.testing.assert_close(result, expected)


def test_modes_chosen_by_the_user_stay_on() -> None:
    x = torch.randn(3)
    for _ in range(CALLS):
        with torch.device("meta"):
            result = jacrev(lambda x: x.sin())(x)
        torch.testing.assert_close(result, torch.diag(x.cos()))


def test_autocast_is_a_different_program() -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(3)
    for is_on in (False, False, False, True, True, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            result = jacrev(layer)(x)
        tolerance = 1e-2 if is_on else 1e-6
        torch.testing.assert_close(
            result.float(),
            layer.weight.detach(),
            rtol=tolerance,
            atol=tolerance,
            check_stride=False,
        )


def test_rules_of_users_are_asked_each_time() -> None:
    slope = 1.0

    @pushforward.primitive
    def scaled(x: Tensor) -> Tensor:
        return x * 1

    pushforward.elementwise(scaled, lambda x: torch.full_like(x, slope))
    for _ in range(2 * CALLS):
        slope += 1
        torch.testing.assert_close(jacrev(lambda x: scaled(x))(torch.ones(2)), slope * torch.eye(2))


def test_a_constant_output_of_another_class() -> None:
    class Mine(Tensor):
        pass

    constant = torch.ones(2).as_subclass(Mine)
    for _ in range(CALLS):
        first, second = jacrev(lambda x: (x.sin(), constant))(torch.zeros(3))
        torch.testing.assert_close(first, torch.eye(3))
        assert not second.any()


def test_under_vmap_nothing_is_repeated_wrongly() -> None:
    x = torch.randn(5, 3)
    expected = torch.diag_embed(x.cos())
    for _ in range(CALLS):
        torch.testing.assert_close(vmap(jacrev(torch.sin))(x), expected)
        torch.testing.assert_close(jacrev(torch.sin)(x[0]), expected[0])


def test_the_compiler_is_not_imported() -> None:
    """It takes two seconds; PyTorch does it for modes at their first operator (and for the planner's meta tensors)."""
    code = """
import sys, torch, pushforward
for _ in range(4):
    pushforward.jacrev(lambda x: x.sin() * (x @ x))(torch.ones(3))
    pushforward.hessian(lambda x: (x**4).sum())(torch.ones(3))
    pushforward.jacfwd(lambda x: torch.softmax(x, 0))(torch.ones(3))
assert "torch._dynamo.eval_frame" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_share_what_is_known() -> None:
    def work(failures: list[str], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(20):
            x = torch.randn(3 + seed % 3, generator=generator)
            if not torch.allclose(jacobian(lambda x: x.sin() * x.sum())(x), _expected(x)):
                failures.append(str(x))

    failures: list[str] = []
    threads = [threading.Thread(target=work, args=(failures, i)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def _expected(x: Tensor) -> Tensor:
    return torch.diag(x.cos() * x.sum()) + x.sin()[:, None]


def test_temporaries_are_kept_for_a_recording_around() -> None:
    def func(x: Tensor, t: Tensor) -> Tensor:
        return nn.functional.poisson_nll_loss(x, t, full=True, reduction="sum")

    for _ in range(CALLS):
        x, t = torch.rand(2, 5, dtype=torch.float64) * 3
        ours = jacrev(jacrev(func, (0, 1)), (0, 1))(x, t)
        expected = jacfwd(jacfwd(func, (0, 1)), (0, 1))(x, t)
        torch.testing.assert_close(ours, expected)


def test_a_search_that_is_due_ends_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "SECONDS_PER_SEARCHED_VERTEX", 5e-5)
    PLANS.clear()
    weights = [torch.randn(10, 6) / 4, torch.randn(3, 10) / 4, torch.randn(9, 3) / 4]

    def func(x: Tensor) -> Tensor:
        for weight in weights:
            x = torch.tanh(weight @ x)
        return x

    is_searched = []
    for _ in range(40):
        x = torch.randn(6)
        torch.testing.assert_close(jacobian(func)(x), torch.func.jacrev(func)(x))
        (plan,) = PLANS.of_kind(orders.ORDERS)
        is_searched.append(plan.is_searched)
    assert not is_searched[2]
    assert is_searched[-1]
    (known,) = PLANS.of_kind(replay.KERNELS)
    assert known.replay is not None
    scope: dict[str, Any] = known.replay.__globals__  # type: ignore[attr-defined]
    called = [value for value in scope.values() if callable(value)]
    assert torch.empty not in called, "what the search called is repeated"
    assert len(called) <= 5 * len(weights) + 1


def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PLANS, "limit", 3)
    for n in range(1, 9):
        for _ in range(CALLS):
            jacrev(torch.sin)(torch.randn(n))
    assert len(PLANS) <= 3


def _written_part(x: Tensor) -> Tensor:
    y = x * 1
    y[0].copy_(x[1] * x[0])
    return y


TABLES: dict[str, Callable[[Tensor], Tensor]] = {
    "roll": lambda x: x.roll(1, 0) * x,
    "flip": lambda x: x.flip(0) * x,
    "pad": lambda x: torch.nn.functional.pad(x[None], (1, 1), mode="circular").sin(),
    "diagonal": lambda x: (x * x).diagonal(1),
    "unfold": lambda x: (x * x).unfold(0, 2, 1).sin(),
    "a write": _written_part,
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("inner", ["jacrev", "jacfwd", "hvp", "grad"])
@pytest.mark.parametrize("name", TABLES)
def test_tables_of_kernels_do_not_outlive_the_transforms_around(name: str, inner: str) -> None:
    f = TABLES[name]

    def derivative(library: Any, inner: str) -> Callable[[Tensor], Tensor]:
        def total(x: Tensor) -> Tensor:
            y = f(x)
            return (y * y * y).sum()

        if inner == "hvp":
            gradient = library.grad(total)
            return lambda x: library.jvp(gradient, (x,), (x.cos(),))[1]
        return library.grad(total) if inner == "grad" else getattr(library, inner)(f)

    ours = derivative(pushforward, inner)
    theirs = torch.func.jacrev(derivative(torch.func, "jacrev" if inner == "jacfwd" else inner))
    for _ in range(CALLS + 2):
        x = torch.rand(3, 3, dtype=torch.float64)
        expected = theirs(x)
        torch.testing.assert_close(torch.func.jacrev(ours)(x), expected)
        torch.testing.assert_close(torch.func.jacfwd(ours)(x), expected)
        nested = pushforward.jacrev(torch.func.jacrev(ours))(x)
        torch.testing.assert_close(nested, torch.func.jacrev(theirs)(x))
