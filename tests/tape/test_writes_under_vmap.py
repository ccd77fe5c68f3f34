"""Under ``vmap``: writes to what is the same for all of the batch, of values that are."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import pushforward as pf

F64 = torch.float64
CALLS = 4


def _out(buffer: Tensor, w: Tensor) -> None:
    torch.mul(w.sin(), 2, out=buffer)


def _normalized(buffer: Tensor, w: Tensor) -> None:
    nn.functional.normalize(w + buffer, dim=0, out=buffer)


def _copied(buffer: Tensor, w: Tensor) -> None:
    buffer.copy_(w.exp())


def _averaged(buffer: Tensor, w: Tensor) -> None:
    buffer.mul_(0.9).add_(w, alpha=0.1)


def _mixed(buffer: Tensor, w: Tensor) -> None:
    buffer.lerp_(w, 0.25)


WRITES: dict[str, Callable[[Tensor, Tensor], None]] = {
    "out=": _out,
    "normalize": _normalized,
    "copy_": _copied,
    "mul_ and add_": _averaged,
    "lerp_": _mixed,
}
TRANSFORMS = {
    "grad": lambda f: pf.grad(lambda w, x: f(w, x).sum()),
    "jacrev": pf.jacrev,
    "jacfwd": pf.jacfwd,
    "jvp": lambda f: lambda w, x: pf.jvp(lambda w: f(w, x), (w,), (torch.ones_like(w),))[1],
    "hessian": lambda f: pf.hessian(lambda w, x: f(w, x).sum()),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", WRITES)
def test_of_values_that_come_from_what_has_no_batch(name: str, transform: str) -> None:
    buffer, plain = torch.rand(3, dtype=F64), torch.empty(3, dtype=F64)
    plain.copy_(buffer)

    def func(state: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        def f(w: Tensor, x: Tensor) -> Tensor:
            with torch.no_grad():
                WRITES[name](state, w)
            return (w * x * state.clone()).sin()

        return f

    batched = pf.vmap(TRANSFORMS[transform](func(buffer)), in_dims=(None, 0))
    alone = TRANSFORMS[transform](func(plain))
    for _ in range(CALLS):
        w, xs = torch.rand(3, dtype=F64), torch.rand(2, 3, dtype=F64)
        before, expected = plain.clone(), []
        for x in xs:
            plain.copy_(before)
            expected.append(alone(w, x))
        torch.testing.assert_close(batched(w, xs), torch.stack(expected))
        torch.testing.assert_close(buffer, plain)


@pytest.mark.parametrize("name", WRITES)
def test_of_another_value_for_each_are_refused_as_by_pytorch(name: str) -> None:
    buffer = torch.ones(3, dtype=F64)

    def f(w: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            WRITES[name](buffer, w * x)
        return w * x

    args = torch.rand(3, dtype=F64), torch.rand(2, 3, dtype=F64)
    with pytest.raises(RuntimeError, match=r"vmap|Batching rule|broadcast shape"):
        pf.vmap(pf.jacrev(f), in_dims=(None, 0))(*args)
    if name != "mul_ and add_":  # the first of its writes is possible
        assert buffer.tolist() == [1.0] * 3


def test_of_values_with_a_derivative() -> None:
    """``torch.func`` refuses them."""

    def f(w: Tensor, x: Tensor) -> Tensor:
        buffer.copy_(w.exp())
        return buffer * x

    buffer = torch.ones(3, dtype=F64)
    for _ in range(CALLS):
        w, x = torch.rand(3, dtype=F64), torch.rand(2, 3, dtype=F64)
        found = pf.vmap(pf.jacrev(f), in_dims=(None, 0))(w, x)
        torch.testing.assert_close(found, torch.diag_embed(w.exp() * x))
        torch.testing.assert_close(buffer, w.exp())
        assert buffer.grad_fn is None


def _item(y: Tensor, w: Tensor) -> None:
    y[1] = w[0].sin()


def _items(y: Tensor, w: Tensor) -> None:
    y[[2, 0]] = w[:2] ** 2


def _view(y: Tensor, w: Tensor) -> None:
    y[1:].copy_(w[:2].exp())


def _sum(y: Tensor, w: Tensor) -> None:
    y.add_(w.cos(), alpha=2)


def _index(y: Tensor, w: Tensor) -> None:
    y.index_put_((torch.tensor([0, 0]),), w[1:].sin(), accumulate=True)


def _result(y: Tensor, w: Tensor) -> None:
    torch.mul(w, w, out=y)


FRESH = {
    "an item": _item,
    "items": _items,
    "a view": _view,
    "a sum": _sum,
    "index_put_": _index,
    "out=": _result,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", FRESH)
def test_to_new_tensors_of_what_has_no_batch(name: str, transform: str) -> None:
    def f(w: Tensor, x: Tensor) -> Tensor:
        y = torch.ones(3, dtype=F64)
        FRESH[name](y, w)
        return (y * w * x).sin()

    def plain(w: Tensor, x: Tensor) -> Tensor:
        y = torch.ones(3, dtype=F64)
        if name == "out=":
            y = w * w
        else:
            FRESH[name](y, w)
        return (y * w * x).sin()

    batched = pf.vmap(TRANSFORMS[transform](f), in_dims=(None, 0))
    for _ in range(CALLS):
        w, xs = torch.rand(3, dtype=F64), torch.rand(2, 3, dtype=F64)
        jac = torch.autograd.functional.jacobian
        for found, x in zip(batched(w, xs), xs, strict=True):
            if transform == "hessian":
                expected = torch.autograd.functional.hessian(lambda w, x=x: plain(w, x).sum(), w)
            else:
                expected = jac(lambda w, x=x: plain(w, x), w)
                expected = {"grad": expected.sum(0), "jvp": expected.sum(1)}.get(
                    transform, expected
                )
            torch.testing.assert_close(found, expected)


def test_gradients_per_sample_of_a_spectral_norm_in_training() -> None:
    net, plain = (
        parametrizations.spectral_norm(nn.Linear(3, 2, dtype=F64)).requires_grad_(False)
        for _ in range(2)
    )
    plain.load_state_dict(net.state_dict())
    params = {key: p.clone() for key, p in net.named_parameters()}

    def loss(module: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        return lambda p, x: torch.func.functional_call(module, p, (x,)).square().sum()

    ours = pf.vmap(pf.grad(loss(net)), in_dims=(None, 0))
    theirs = torch.func.vmap(torch.func.grad(loss(plain)), in_dims=(None, 0))
    for _ in range(CALLS):
        params = {key: p + 0.1 * torch.randn_like(p) for key, p in params.items()}
        x = torch.randn(4, 3, dtype=F64)
        state = {key: value.clone() for key, value in net.named_buffers()}
        torch.testing.assert_close(ours(params, x), theirs(params, x))
        expected = parametrizations.spectral_norm(nn.Linear(3, 2, dtype=F64))
        expected.load_state_dict({**net.state_dict(), **state})
        torch.func.functional_call(expected, params, (x,))
        for key, value in expected.named_buffers():
            torch.testing.assert_close(net.get_buffer(key), value)
            plain.get_buffer(key).copy_(value)


def _power(y: Tensor, x: Tensor) -> None:
    y **= x


IN_PLACE: dict[str, Callable[[Tensor, Tensor], object]] = {
    "hypot_": lambda y, x: y.hypot_(x),
    "pow_": lambda y, x: y.pow_(x),
    "**=": _power,
    "float_power_": lambda y, x: y.float_power_(x),
    "ldexp_": lambda y, x: y.ldexp_(x),
    "cumprod_": lambda y, x: y.cumprod_(0),
    "xlogy_": lambda y, x: y.xlogy_(x),
    "lerp_": lambda y, x: y.lerp_(x, 0.3),
    "addcdiv_": lambda y, x: y.addcdiv_(x, x + 1),
    "remainder_": lambda y, x: y.remainder_(x),
    "sigmoid_": lambda y, x: y.sigmoid_(),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", IN_PLACE)
def test_of_operators_that_vmap_has_no_rule_for(name: str) -> None:
    def f(x: Tensor) -> Tensor:
        y = x * 1.5
        IN_PLACE[name](y, x)
        return y * x

    xs = torch.rand(2, 3, dtype=F64) + 0.3
    jac = torch.stack([torch.autograd.functional.jacobian(f, x) for x in xs])
    hess = torch.stack([torch.autograd.functional.hessian(lambda x: f(x).sum(), x) for x in xs])
    for _ in range(CALLS):
        for transform in (pf.jacfwd, pf.jacrev, pf.jacobian):
            torch.testing.assert_close(pf.vmap(transform(f))(xs), jac)
        torch.testing.assert_close(pf.vmap(pf.hessian(lambda x: f(x).sum()))(xs), hess)
        torch.testing.assert_close(pf.vmap(pf.jacrev(pf.jacrev(lambda x: f(x).sum())))(xs), hess)
