"""Other machinery of PyTorch around and inside us: make_fx, modes, FakeTensors, TorchScript."""

import warnings

import pytest
import torch
from oracles import assert_close, central_jacobian
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pushforward import jacfwd, jacobian, jvp, linearize, vmap

F64 = torch.float64
W = torch.randn(2, 3, dtype=F64, generator=torch.Generator().manual_seed(4))


def smooth(x):
    return torch.tanh(W @ x) * x.sum()


def writes(x):
    y = x.clone()
    y[0] = y[1] * y[2]
    y[1:].mul_(2)
    return y.sin()


def layered(x):
    return torch.nn.functional.layer_norm(x, (3,)).softmax(0)


FUNCTIONS = [torch.sin, smooth, writes, layered]


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("func", FUNCTIONS, ids=lambda f: f.__name__)
def test_make_fx_traces_a_graph_that_is_right_at_other_points(func, tracing_mode):
    x = torch.randn(3, dtype=F64)
    graph = make_fx(jacfwd(func), tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(x)
    y = torch.randn(3, dtype=F64)
    assert_close(graph(y), central_jacobian(func, y))


@pytest.mark.parametrize("func", FUNCTIONS, ids=lambda f: f.__name__)
def test_make_fx_traces_jvp_and_linearize(func):
    def along(x, t):
        return jvp(func, (x,), (t,))[1], linearize(func, x)[1](t)

    graph = make_fx(along)(torch.randn(3, dtype=F64), torch.randn(3, dtype=F64))
    y, t = torch.randn(3, dtype=F64), torch.randn(3, dtype=F64)
    expected = central_jacobian(func, y) @ t
    for result in graph(y, t):
        assert_close(result, expected)


def test_make_fx_traces_vmap_of_jacfwd():
    graph = make_fx(vmap(jacfwd(smooth)))(torch.randn(4, 3, dtype=F64))
    y = torch.randn(4, 3, dtype=F64)
    assert_close(graph(y)[2], central_jacobian(smooth, y[2]))


def test_fake_tensors_give_fake_jacobians_of_the_right_shape():
    with FakeTensorMode():
        x, w = torch.randn(3, 4), torch.randn(5, 4)
        jac = jacfwd(lambda x: torch.tanh(x @ w.T))(x)
    assert isinstance(jac, FakeTensor)
    assert jac.shape == (3, 5, 3, 4)
    assert jac.dtype == torch.float32
    assert jac.is_contiguous()


def test_fake_tensors_work_in_jvp_and_linearize():
    with FakeTensorMode():
        x, t = torch.randn(3, 4), torch.randn(3, 4)
        out, out_dot = jvp(lambda x: x.softmax(1).sum(0), (x,), (t,))
        _, lin = linearize(lambda x: x.softmax(1).sum(0), x)
        tangent = lin(t)
    for value in (out, out_dot, tangent):
        assert isinstance(value, FakeTensor)
        assert value.shape == (4,)


def test_meta_tensors_give_meta_jacobians_of_the_right_shape():
    jac = jacfwd(lambda x: torch.outer(x, x).sum(1))(torch.randn(3, device="meta"))
    assert jac.device.type == "meta"
    assert jac.shape == (3, 3)


class Recorder(TorchDispatchMode):
    """Write down every ATen operator that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("func", FUNCTIONS, ids=lambda f: f.__name__)
def test_an_ambient_dispatch_mode_sees_the_work_and_does_not_change_it(func):
    x = torch.randn(3, dtype=F64)
    with Recorder() as recorder:
        jac = jacfwd(func)(x)
    assert_close(jac, central_jacobian(func, x))
    assert recorder.seen


@pytest.mark.parametrize("number", [0.5, 6, 1.5 + 2j])
def test_an_ambient_dispatch_mode_does_not_change_numbers(number: complex):
    x = torch.randn(3, dtype=F64)
    for func in (lambda x: (x.sin() * number).abs(), lambda x: (x / number).abs()):
        for _ in range(3):
            with Recorder():
                found = jacfwd(func)(x)
                sparse = jacobian(func, output="csr")(x)
            for got in (found, sparse.to_dense()):
                assert_close(got, torch.func.jacrev(func)(x))


def test_an_ambient_dispatch_mode_sees_the_primal_operator_once():
    with Recorder() as recorder:
        jacfwd(lambda x: x.sin().exp())(torch.randn(3))
    assert recorder.seen.count("aten::sin") == 1
    assert recorder.seen.count("aten::cos") == 1


def test_an_ambient_dispatch_mode_sees_plain_tensors_only():
    kinds = set()

    class Kinds(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kinds.update(type(a) for a in args if isinstance(a, Tensor))
            return func(*args, **(kwargs or {}))

    with Kinds():
        jacfwd(smooth)(torch.randn(3, dtype=F64))
    assert kinds == {Tensor}


def test_a_dispatch_mode_entered_inside_the_function_does_not_hide_the_derivative():
    def f(x):
        with Recorder():
            return x.sin() * x.sum()

    x = torch.randn(3, dtype=F64)
    assert_close(jacfwd(f)(x), central_jacobian(f, x))


def test_an_ambient_function_mode_does_not_hide_the_derivative():
    class Names(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    x = torch.randn(3, dtype=F64)
    with Names():
        jac = jacfwd(smooth)(x)
    assert_close(jac, central_jacobian(smooth, x))


def test_the_default_device_mode_works_inside_and_outside():
    x = torch.randn(3, dtype=F64)

    def f(x):
        with torch.device("cpu"):
            return x * torch.arange(3.0)

    with torch.device("cpu"):
        jac = jacfwd(f)(x)
    assert_close(jac, torch.diag(torch.arange(3.0, dtype=F64)))


def test_a_scripted_function_is_differentiated():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated, and ours to support

        @torch.jit.script
        def scripted(x: Tensor, n: int) -> Tensor:
            y = x
            for _ in range(n):
                y = torch.sin(y) * x
            return y

    x = torch.randn(3, dtype=F64)
    expected = central_jacobian(lambda x: scripted(x, 3), x)
    assert_close(jacfwd(lambda x: scripted(x, 3))(x), expected)
    assert_close(jacfwd(scripted)(x, 3), expected)


def test_a_scripted_function_with_a_branch_is_differentiated():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        @torch.jit.script
        def scripted(x: Tensor) -> Tensor:
            if bool(x.sum() > 0):
                return x * x
            return x.exp()

    x = torch.tensor([1.0, 2.0], dtype=F64)
    assert_close(jacfwd(scripted)(x), torch.diag(2 * x))
    assert_close(jacfwd(scripted)(-x), torch.diag((-x).exp()))


def test_a_traced_module_is_differentiated():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(3, dtype=F64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, x)
    assert_close(jacfwd(traced)(x), central_jacobian(net, x))


def test_an_fx_graph_module_is_differentiated():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(3, dtype=F64)
    assert_close(jacfwd(torch.fx.symbolic_trace(net))(x), central_jacobian(net, x))


def test_autocast_outside_applies_to_the_recorded_operators():
    x, w = torch.randn(2, 3), torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = x @ w
        out, out_dot = jvp(lambda x: x @ w, (x,), (torch.ones(2, 3),))
    assert out.dtype == plain.dtype == torch.bfloat16
    assert torch.equal(out, plain)
    torch.testing.assert_close(out_dot.float(), torch.ones(2, 3) @ w, rtol=0.05, atol=0.05)


def test_non_reentrant_checkpoint_inside_is_differentiated():
    from torch.utils.checkpoint import checkpoint

    def f(x):
        return checkpoint(lambda y: torch.tanh(W @ y), x, use_reentrant=False)

    x = torch.randn(3, dtype=F64)
    assert_close(jacfwd(f)(x), central_jacobian(lambda x: torch.tanh(W @ x), x))
