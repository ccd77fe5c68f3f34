"""A call leaves PyTorch's state as it found it, also after an exception in the user's function."""

import gc
import weakref

import pytest
import torch
from oracles import assert_close
from torch.overrides import TorchFunctionMode, _len_torch_function_stack
from torch.utils._python_dispatch import TorchDispatchMode, _len_torch_dispatch_stack

from pushforward import (
    explain,
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
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "generator": torch.get_rng_state().tolist(),
        "included dispatch keys": torch._C._dispatch_tls_local_include_set().raw_repr(),
        "excluded dispatch keys": torch._C._dispatch_tls_local_exclude_set().raw_repr(),
        "function modes": _len_torch_function_stack(),
        "dispatch modes": _len_torch_dispatch_stack(),
        "function overrides": torch._C._is_torch_function_enabled(),
        "all function overrides": torch._C._is_torch_function_all_disabled(),
        "functorch interpreter": torch._C._functorch.peek_interpreter_stack() is None,
        "forward mode": torch._C._is_fwd_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly mode": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "grad hooks": torch._C._autograd._saved_tensors_hooks_is_enabled(),
    }


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
