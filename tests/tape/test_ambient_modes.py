"""Inference mode, dual numbers, autocast and vmap around our transforms, and what functions ask under them."""

import contextlib

import pytest
import torch
from ambient import process_state, thread_state
from oracles import assert_close
from torch import func, nn
from torch.autograd import forward_ad

import pushforward as pf

F64 = torch.float64
X = torch.tensor([0.3, -0.8, 1.1], dtype=F64)
V = torch.tensor([0.7, 0.2, -0.5], dtype=F64)
W = torch.tensor([1.5, -0.4, 0.9], dtype=F64)

TRANSFORMS = {
    "jacfwd": lambda m, f, x: m.jacfwd(f)(x),
    "jacrev": lambda m, f, x: m.jacrev(f)(x),
    "hessian": lambda m, f, x: m.hessian(lambda x: f(x).sum())(x),
    "grad": lambda m, f, x: m.grad(lambda x: f(x).sum())(x),
    "value of grad": lambda m, f, x: m.grad_and_value(lambda x: f(x).sum())(x)[1],
    "jvp": lambda m, f, x: m.jvp(f, (x,), (V,))[1],
    "value of jvp": lambda m, f, x: m.jvp(f, (x,), (V,))[0],
    "vjp": lambda m, f, x: m.vjp(f, x)[1](V)[0],
    "value of vjp": lambda m, f, x: m.vjp(f, x)[0],
    "linearize": lambda m, f, x: _linearize(m, f, x),
    "vmap of jacrev": lambda m, f, x: m.vmap(m.jacrev(f))(torch.stack([x, 2 * x])),
}
FUNCTIONS = {
    "sin": torch.sin,
    "product": lambda x: x * x.prod(),
    "softmax": lambda x: x.softmax(0) * x,
    "captured": lambda x: (x * W).sin() * W,
    "matrix": lambda x: torch.tanh(torch.outer(x, W) @ x),
    "norm": lambda x: nn.functional.layer_norm(x, (3,)) * x,
    "writes": lambda x: _written(x),
}


def _linearize(m, f, x):
    return m.linearize(f, x)[1](V) if m is pf else m.jvp(f, (x,), (V,))[1]


def _written(x):
    y = x.sin()
    y[1:] = x[:-1] ** 2
    return y.mul_(x)


# ---- Inference mode ----

with torch.inference_mode():
    WEIGHT = torch.linspace(-1, 1, 9, dtype=F64).reshape(3, 3)
    LAYER = nn.Linear(3, 3, dtype=F64)
CAPTURING = {
    "elementwise": lambda x: WEIGHT[0] * x.sin() * WEIGHT[1],
    "product": lambda x: torch.tanh(WEIGHT @ x),
    "where": lambda x: torch.where(WEIGHT[0] > 0, x * WEIGHT[0], x),
    "layer": lambda x: LAYER(x).exp(),
    "joined": lambda x: (torch.stack([x, WEIGHT[0]]) * WEIGHT[:2]).sum(0) * x,
    "in place": lambda x: x.clone().mul_(WEIGHT[1]).sin(),
    "nothing": torch.sin,
}


@pytest.mark.parametrize("name", CAPTURING)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_inference_mode_outside_and_inference_tensors(transform, name):
    f, call = CAPTURING[name], TRANSFORMS[transform]
    plain_weight, plain_layer = WEIGHT.clone(), nn.Linear(3, 3, dtype=F64)
    plain_layer.load_state_dict({k: v.clone() for k, v in LAYER.state_dict().items()})
    plain_layer.requires_grad_(False)
    plain = {
        "elementwise": lambda x: plain_weight[0] * x.sin() * plain_weight[1],
        "product": lambda x: torch.tanh(plain_weight @ x),
        "where": lambda x: torch.where(plain_weight[0] > 0, x * plain_weight[0], x),
        "layer": lambda x: plain_layer(x).exp(),
        "joined": lambda x: (torch.stack([x, plain_weight[0]]) * plain_weight[:2]).sum(0) * x,
        "in place": lambda x: x.clone().mul_(plain_weight[1]).sin(),
        "nothing": torch.sin,
    }[name]
    expected = call(func, plain, X)
    with torch.inference_mode():
        inference_x = X.clone()
    for context in (contextlib.nullcontext, torch.no_grad, torch.inference_mode):
        for x in (X, inference_x):
            with context():
                found = call(pf, f, x)
            with torch.no_grad():
                assert_close(found.clone(), expected)
    assert not torch.is_inference_mode_enabled()


# ---- Dual numbers ----


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_dual_numbers_outside_carry_their_tangents_through(transform, name):
    f, call = FUNCTIONS[name], TRANSFORMS[transform]
    expected = func.jvp(lambda x: call(pf, f, x), (X,), (V,))[1]
    for _ in range(3):
        with forward_ad.dual_level():
            primal, tangent = forward_ad.unpack_dual(call(pf, f, forward_ad.make_dual(X, V)))
        assert_close(primal, call(pf, f, X))
        assert_close(torch.zeros_like(primal) if tangent is None else tangent, expected)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_dual_numbers_that_are_captured(transform):
    call = TRANSFORMS[transform]

    def derivative(w):
        return call(pf, lambda x: (x * w).sin() * x.sum(), X)

    expected = func.jvp(derivative, (W,), (V,))[1]
    for _ in range(3):
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(derivative(forward_ad.make_dual(W, V))).tangent
        assert_close(found, expected)


def test_dual_tangents_and_cotangents():
    with forward_ad.dual_level():
        direction = forward_ad.make_dual(V, W)
        pushed = forward_ad.unpack_dual(pf.jvp(torch.sin, (X,), (direction,))[1]).tangent
        pulled = forward_ad.unpack_dual(pf.vjp(torch.sin, X)[1](direction)[0]).tangent
    assert_close(pushed, X.cos() * W)
    assert_close(pulled, X.cos() * W)


# ---- Autocast ----


@pytest.mark.parametrize("is_inside", [False, True])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_autocast_outside_and_inside(transform, is_inside):
    weight, x = torch.linspace(-1, 1, 9).reshape(3, 3), X.float()

    def f(x):
        context = torch.autocast("cpu", torch.bfloat16) if is_inside else contextlib.nullcontext()
        with context:
            return torch.tanh(weight @ x).float() * x

    def call(m):
        direction, cotangent = V.float(), V.float()
        return {
            "jvp": lambda: m.jvp(f, (x,), (direction,))[1],
            "vjp": lambda: m.vjp(f, x)[1](cotangent)[0],
            "linearize": lambda: _linearize_float(m, f, x, direction),
        }.get(transform, lambda: TRANSFORMS[transform](m, f, x))()

    if transform.startswith("value of jvp"):
        pytest.skip("V is of another dtype, which torch.func takes")
    outside = contextlib.nullcontext if is_inside else lambda: torch.autocast("cpu", torch.bfloat16)
    for _ in range(3):
        with outside():
            found, expected = call(pf), call(func)
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05, check_dtype=False)
    assert not torch.is_autocast_enabled("cpu")


def _linearize_float(m, f, x, direction):
    return m.linearize(f, x)[1](direction) if m is pf else m.jvp(f, (x,), (direction,))[1]


# ---- What functions ask under vmap ----

XS = torch.stack([X, 2 * X, X.exp(), X.sin()])


def _gradient(x):
    return (torch.autograd.grad((x**3).sum(), x, create_graph=True)[0] * x.sin()).sum()


def _gradient_by_a_leaf(x):
    leaf = (x * 1).requires_grad_()
    return (torch.autograd.grad((leaf**3).sum(), leaf, create_graph=True)[0] * x).sum()


def _constant_gradient(x):
    return (torch.autograd.grad((x**3).sum(), x)[0] * x).sum()


def _hooked(x):
    y = x * 2
    y.register_hook(lambda g: g * 10)
    return (y * y).sum()


def _filtering(x):
    """Keeps what has a derivative, as torchjd does."""
    candidates = [x.sin(), torch.ones(3, dtype=F64), x * x]
    return sum(y.prod() for y in candidates if y.requires_grad)


ASKING = [_gradient, _gradient_by_a_leaf, _constant_gradient, _hooked, _filtering]


@pytest.mark.parametrize("f", ASKING, ids=lambda f: f.__name__)
@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "hessian"])
def test_functions_under_vmap_may_ask_autograd(transform, f):
    if f is _hooked and transform in ("jacfwd", "hessian"):
        pytest.skip("hooks are for reverse mode")
    derivative = getattr(pf, transform)(f)
    for _ in range(4):
        assert_close(pf.vmap(derivative)(XS), torch.stack([derivative(x) for x in XS]))


def test_values_under_vmap_say_that_they_require_grad():
    seen = []

    def f(x):
        y = x.sin()
        inner = func.vmap(lambda t: seen.append(t.requires_grad) or t * 2)(y)
        seen.append((x.requires_grad, y.requires_grad, y.grad_fn is None, y.is_leaf))
        return inner.sum() + torch.ones(3).sum()

    for _ in range(4):
        pf.vmap(pf.grad(f))(XS)
        assert seen == [True, (True, True, False, False)]
        seen.clear()


def test_a_function_that_asks_draws_what_one_run_draws():
    def f(x):
        noise = torch.rand(3, dtype=F64)
        return (_gradient(x) * noise).sum()

    for seed in range(3):
        torch.manual_seed(seed)
        found, state = pf.vmap(pf.grad(f), randomness="same")(XS), torch.get_rng_state()
        torch.manual_seed(seed)
        noise = torch.rand(3, dtype=F64).sum()
        assert torch.equal(torch.get_rng_state(), state)
        expected = func.vmap(func.grad(lambda x: (3 * x**2 * x.sin()).sum()))(XS)
        assert_close(found, expected * noise)


# ---- Nothing of the thread's state is changed ----


@contextlib.contextmanager
def _deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def _in_double():
    torch.set_default_dtype(F64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def _in_another_stance():
    pytest.importorskip("torch._dynamo")
    with torch.compiler.set_stance("eager_on_recompile"):
        yield


AMBIENT = {
    "none": contextlib.nullcontext,
    "device": lambda: torch.device("cpu"),
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "deterministic algorithms": _deterministic,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "saving hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
    "default dtype": _in_double,
    "one thread": lambda: torch.autograd.set_multithreading_enabled(False),
    "view replay": lambda: torch.autograd._force_original_view_tracking(True),
    "dual numbers": forward_ad.dual_level,
    "stance": _in_another_stance,
}


class _Error(Exception):
    pass


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", AMBIENT)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_what_is_set_for_the_thread_stays_as_it_is(transform, name):
    def f(x):
        if fails:
            raise _Error
        return (x.sin() * x).cumsum(0)

    call = TRANSFORMS[transform]
    fails = False
    expected = call(func, f, X)
    pf.clear_plans()
    with AMBIENT[name]():
        before = thread_state() | process_state()
        for fails in (False, True, False, False, True, False, False, True):
            if fails:
                with pytest.raises(_Error):
                    call(pf, f, X)
            else:
                assert_close(call(pf, f, X), expected, rtol=2e-2, atol=2e-2)  # autocast's digits
            assert thread_state() | process_state() == before
