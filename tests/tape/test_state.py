"""A call leaves PyTorch's state as it found it, also after an exception in the user's function."""

import gc
import weakref

import pytest
import torch
from ambient import thread_state
from oracles import assert_close
from torch.overrides import TorchFunctionMode, _len_torch_function_stack
from torch.utils._python_dispatch import TorchDispatchMode, _len_torch_dispatch_stack

from pushforward import (
    explain,
    grad,
    hessian,
    hvp,
    jacfwd,
    jacobian,
    jacrev,
    jvp,
    linearize,
    vjp,
    vmap,
)

X = torch.tensor([0.5, -1.0, 2.0])


def state() -> dict[str, object]:
    """Everything of PyTorch's that a transform could leave changed."""
    return thread_state() | {"generator": torch.get_rng_state().tolist()}


class OwnError(Exception):
    pass


def raises_late(x):
    y = x.sin()
    y[0] = x[1] * 2
    y = torch.nn.functional.linear(y, torch.ones(2, 3))
    raise OwnError


def raises_under_no_grad(x):
    with torch.no_grad():
        x.sin()
        raise OwnError


def raises_in_an_operator(x):
    return (x.sin() + torch.ones(2)).sum()


def raises_in_the_inner_transform(x):
    return jacfwd(raises_late)(x.exp())


def raises_inside_vmap(x):
    return vmap(lambda row: raises_late(row * x))(torch.ones(2, 3))


def raises_while_writing(x):
    y = torch.zeros(3)
    y[:] = x
    y.add_(torch.ones(5))
    return y


class RaisingFunction(torch.autograd.Function):
    @staticmethod
    def forward(x):
        raise OwnError

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g


class RaisingRule(RaisingFunction):
    """Raises where its derivative is asked for, whatever the mode."""

    @staticmethod
    def forward(x):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        raise OwnError


RAISING = [
    raises_late,
    raises_under_no_grad,
    raises_in_an_operator,
    raises_in_the_inner_transform,
    raises_inside_vmap,
    raises_while_writing,
    RaisingFunction.apply,
    RaisingRule.apply,
]
NAMES = [
    "late",
    "no_grad",
    "operator",
    "inner transform",
    "vmap",
    "writing",
    "custom forward",
    "custom context",
]

CALLS = {
    "jacfwd": lambda f: jacfwd(f)(X),
    "jacfwd in chunks": lambda f: jacfwd(f, chunk_size=1)(X),
    "jvp": lambda f: jvp(f, (X,), (X,)),
    "linearize": lambda f: linearize(f, X)[1](X),
    "vmap of jacfwd": lambda f: vmap(jacfwd(f))(torch.stack([X, X])),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f))(X),
    "jacrev": lambda f: jacrev(f)(X),
    "jacrev in chunks": lambda f: jacrev(f, chunk_size=1)(X),
    "jacobian": lambda f: jacobian(f)(X),
    "cross-country": lambda f: jacobian(f, mode="cross")(X),
    "vjp": lambda f: vjp(f, X)[1](f(X)),
    "hessian": lambda f: hessian(f)(X),
    "hvp": lambda f: hvp(lambda x: f(x).sum(), (X,), (X,)),
    "explain": lambda f: explain(f, X),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("func", RAISING, ids=NAMES)
def test_nothing_is_left_changed_after_an_exception(call, func):
    before = state()
    with pytest.raises((OwnError, RuntimeError)):
        CALLS[call](func)
    assert state() == before
    assert_close(jacfwd(torch.sin)(X), torch.diag(X.cos()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_left_changed_after_a_success(call):
    before = state()
    CALLS[call](lambda x: x.sin() * x.sum())
    assert state() == before


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_callers_modes_are_kept_during_and_after_an_exception(context):
    with context():
        before = state()
        with pytest.raises(OwnError):
            jacfwd(raises_late)(X)
        assert state() == before


def test_grad_mode_set_inside_and_never_reset_is_the_callers_own_doing():
    """As in a plain call: what the function sets and leaves set stays set."""

    def f(x):
        torch.set_grad_enabled(False)
        return x * 2

    try:
        f(X)
        plain = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        jacfwd(f)(X)
        assert torch.is_grad_enabled() in (plain, True)
    finally:
        torch.set_grad_enabled(True)


def test_ambient_modes_survive_an_exception_in_the_function():
    class Silent(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    class SilentFunctions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Silent(), SilentFunctions():
        before = (_len_torch_dispatch_stack(), _len_torch_function_stack())
        with pytest.raises(OwnError):
            jacfwd(raises_late)(X)
        assert (_len_torch_dispatch_stack(), _len_torch_function_stack()) == before


def test_the_input_is_left_without_traces_after_an_exception():
    x = X.clone()
    with pytest.raises(OwnError):
        jacfwd(raises_late)(x)
    assert type(x) is torch.Tensor
    assert not x.requires_grad
    assert torch.equal(x, X)


def test_a_captured_tensor_written_before_an_exception_stays_plain():
    store = torch.zeros(3)

    def f(x):
        store.copy_(x * 2)
        raise OwnError

    with pytest.raises(OwnError):
        jacfwd(f)(X)
    assert type(store) is torch.Tensor
    assert torch.equal(store, 2 * X)
    assert torch.equal(jacfwd(lambda x: x + store)(X), torch.eye(3))


def test_the_input_is_not_kept_alive_by_the_transform():
    x = torch.randn(4)
    reference = weakref.ref(x)
    jacfwd(lambda x: x.sin() * x.sum())(x)
    del x
    gc.collect()
    assert reference() is None


def test_a_tracer_that_escapes_does_not_disturb_later_calls():
    escaped = []

    def f(x):
        escaped.append(x.sin())
        return x * 2

    jacfwd(f)(X)
    assert torch.equal(jacfwd(lambda x: x * 3)(X), 3 * torch.eye(3))
    assert torch.equal(jacfwd(lambda x: x * 3)(2 * X), 3 * torch.eye(3))


def test_inputs_keep_requires_grad_and_grad_as_they_were():
    x = X.clone().requires_grad_()
    jacfwd(lambda x: x.sin())(x)
    assert x.requires_grad
    assert x.grad is None
    assert x.is_leaf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_tracers_have_dtype_and_device_of_their_primals_whatever_the_defaults(
    dtype: torch.dtype, default: torch.dtype
) -> None:
    seen = []

    def function(x: torch.Tensor) -> torch.Tensor:
        y = torch.sin(x)
        for t in (x, y, y[1:], torch.add(y, y)):
            with torch._C.DisableTorchFunction():
                seen.append((t.dtype, t.device.type))
        return y

    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        with torch.device("meta"):
            jvp(function, (X.to(dtype),), (X.to(dtype),))
    finally:
        torch.set_default_dtype(before)
    assert set(seen) == {(dtype, "cpu")}


# ---- Nothing is kept ----


class _Storing(torch.nn.Module):
    def forward(self, x):
        self.seen = x * 2
        return self.seen.sin()


class _Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


BUFFER = torch.zeros(3)


def _written(z):
    z = z.clone()
    z[1:] = z[0]
    return z.mul_(2)


def _hooked(z):
    z.register_hook(lambda g: g * 2)
    return z * 1


BODIES = {
    "plain": torch.tanh,
    "writes": _written,
    "writes to a captured tensor": lambda z: BUFFER.copy_(z) * z,
    "an autograd.Function": _Custom.apply,
    "torch.func inside": lambda z: torch.func.grad(lambda z: (z**3).sum())(z),
    "ours inside": lambda z: grad(lambda z: (z**3).sum())(z),
    "autograd inside": lambda z: torch.autograd.grad((z**3).sum(), z, create_graph=True)[0],
    "a backward pass inside": lambda z: torch.autograd.grad((z**3).sum(), z)[0] * z,
    "a norm": lambda z: torch.nn.functional.layer_norm(z, (3,)),
    "a hook": _hooked,
    "a black box": torch.special.i1e,
}
KEEPING_NOTHING = {
    **{name: call for name, call in CALLS.items() if not name.startswith("vmap")},
    "grad": lambda f: grad(lambda x: f(x).sum())(X),
    "vjp": lambda f: vjp(f, X)[1](X),
}


# Cross-country elimination refuses hooks.
FREEING = [(c, b) for c in KEEPING_NOTHING for b in BODIES if (c, b) != ("cross-country", "a hook")]


@pytest.mark.parametrize(("call", "body"), FREEING)
def test_intermediate_values_are_freed_at_once_and_results_require_no_grad(call, body):
    """At once: by counts of references, as cycles would keep large tensors alive until garbage is collected."""
    references = []

    def f(x):
        y = x.sin()
        z = BODIES[body](y * y.exp())
        references.extend(map(weakref.ref, (y, z)))
        return z * z

    result = None
    gc.disable()
    try:
        for _ in range(3):
            result = KEEPING_NOTHING[call](f)
            assert not any(reference() is not None for reference in references)
            references.clear()
    finally:
        gc.enable()
    leaves = result if isinstance(result, tuple) else (result,)
    assert not any(isinstance(t, torch.Tensor) and t.requires_grad for t in leaves)
    assert not BUFFER.requires_grad


@pytest.mark.parametrize("call", KEEPING_NOTHING)
def test_a_graph_that_the_caller_follows_goes_with_the_result(call):
    references = []
    weight = torch.ones(3, requires_grad=True)

    def f(x):
        y = x.sin()
        references.append(weakref.ref(y))
        return y * y * weight

    gc.disable()
    try:
        for _ in range(3):
            result = KEEPING_NOTHING[call](f)
            assert call == "explain" or references
            del result
            assert not any(reference() is not None for reference in references)
    finally:
        gc.enable()


@pytest.mark.parametrize("call", CALLS)
def test_what_modules_keep_are_ordinary_tensors(call):
    module = _Storing()
    CALLS[call](module)
    if not call.startswith("vmap"):
        assert type(module.seen) is torch.Tensor
        assert not torch._C._functorch.is_functorch_wrapped_tensor(module.seen)
        assert_close(module.seen, 2 * X)
    CALLS[call](module)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("call", CALLS)
def test_results_require_grad_only_where_the_callers_history_needs_it(call, context):
    for function in (torch.sin, lambda x: x.detach() * x, lambda x: x * 2):
        with context():
            result = CALLS[call](function)
        leaves = result if isinstance(result, tuple) else (result,)
        assert not any(isinstance(t, torch.Tensor) and t.requires_grad for t in leaves)


@pytest.mark.parametrize("is_recorded", [False, True])
@pytest.mark.parametrize("is_recording", [False, True])
@pytest.mark.parametrize("make", [vjp, linearize])
def test_linear_functions_made_and_called_in_other_grad_modes(make, is_recording, is_recorded):
    """The graph follows the caller's tensors if it is recorded when the function is called, as in torch.func."""
    weight = torch.tensor([0.3, 0.5, -0.7], dtype=torch.float64, requires_grad=True)
    x = X.double().requires_grad_()
    direction = torch.ones(3, dtype=torch.float64)

    def f(x):
        return (weight * x).sin() * weight

    with torch.set_grad_enabled(is_recorded):
        _, linear = make(f, x)
    with torch.set_grad_enabled(is_recording):
        found = linear(direction)
    found = found[0] if make is vjp else found
    assert found.requires_grad == is_recording
    assert_close(found, (weight * x).cos() * weight**2)
    if is_recording:
        for source in (x, weight):
            (ours,) = torch.autograd.grad(found.sum(), source, retain_graph=True)
            whole = ((weight * x).cos() * weight**2).sum()
            assert_close(ours, torch.autograd.grad(whole, source)[0])
