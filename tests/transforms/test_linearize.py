"""linearize: one evaluation, then a linear function of tangents, one at a time or in a batch."""

import pytest
import torch
from doubles import F64, randn
from oracles import assert_close, central_jvp
from torch import nn

from pushforward import jacfwd, jvp, linearize, vmap


def test_documentation_example():
    def fn(x):
        return x.sin()

    output, jvp_fn = linearize(fn, torch.zeros(3, 3))
    assert torch.equal(output, torch.zeros(3, 3))
    assert torch.equal(jvp_fn(torch.ones(3, 3)), torch.ones(3, 3))


def two_args(x, y):
    return torch.tanh(torch.outer(x, y)) @ y


def test_linear_function_equals_central_differences_at_every_call():
    x, y = randn(2), randn(3)
    out, lin = linearize(two_args, x, y)
    assert torch.equal(out, two_args(x, y))
    for _ in range(3):
        t, u = randn(2), randn(3)
        assert_close(lin(t, u), central_jvp(two_args, (x, y), (t, u)))


def test_linear_function_is_linear():
    x, y = randn(2), randn(3)
    _, lin = linearize(two_args, x, y)
    t, u, v, w = randn(2), randn(3), randn(2), randn(3)
    assert_close(lin(2 * t - v, 2 * u - w), 2 * lin(t, u) - lin(v, w))
    assert torch.equal(lin(0 * t, 0 * u), torch.zeros(2, dtype=F64))


def test_the_function_is_evaluated_exactly_once():
    calls = []

    def f(x):
        calls.append(1)
        return x.sin()

    _, lin = linearize(f, randn(3))
    lin(randn(3))
    lin(randn(3))
    lin.batched(randn(4, 3))
    assert len(calls) == 1


def test_batched_tangents_equal_a_loop():
    x, y = randn(2), randn(3)
    _, lin = linearize(two_args, x, y)
    t, u = randn(5, 2), randn(5, 3)
    batch = lin.batched(t, u)
    assert batch.shape == (5, 2)
    assert_close(batch, torch.stack([lin(a, b) for a, b in zip(t, u, strict=True)]))


def test_batched_identity_gives_the_transposed_jacobian():
    x = randn(3)

    def f(x):
        return x.softmax(0).cumsum(0)

    _, lin = linearize(f, x)
    assert_close(lin.batched(torch.eye(3, dtype=F64)).T, jacfwd(f)(x))


def test_batch_of_one_and_of_none_keep_the_leading_axis():
    _, lin = linearize(lambda x: x.sum(), randn(3))
    assert lin.batched(randn(1, 3)).shape == (1,)
    assert lin.batched(randn(0, 3)).shape == (0,)


def test_vmap_of_the_linear_function_equals_batched():
    _, lin = linearize(lambda x: (x * x).cumsum(0), randn(3))
    t = randn(4, 3)
    assert_close(vmap(lin)(t), lin.batched(t))


def test_pytrees_of_primals_and_outputs_keep_their_structure():
    p, t = {"w": randn(2, 3), "b": randn(2)}, {"w": randn(2, 3), "b": randn(2)}
    x, x_dot = randn(3), randn(3)
    out, lin = linearize(lambda p, x: {"y": (p["w"] @ x + p["b"], x)}, p, x)
    assert set(out) == {"y"}
    result = lin(t, x_dot)
    assert_close(result["y"][0], t["w"] @ x + p["w"] @ x_dot + t["b"])
    assert_close(result["y"][1], x_dot)
    batch = lin.batched({k: torch.stack([v, 2 * v]) for k, v in t.items()}, randn(2, 3) * 0)
    assert_close(batch["y"][0][1], 2 * (t["w"] @ x + t["b"]))


def test_primals_may_be_overwritten_afterwards():
    x = randn(3)
    _, lin = linearize(lambda x: x**3, x)
    t, expected = randn(3), 3 * x**2
    x.zero_()
    assert_close(lin(t), expected * t)


def test_values_written_in_place_after_use_do_not_change_the_derivative():
    def f(x):
        y = x.clone()
        z = y * y  # keeps y as a residual
        y.mul_(10)
        return z + y

    x, t = randn(3), randn(3)
    _, lin = linearize(f, x)
    assert_close(lin(t), 2 * x * t + 10 * t)


def test_data_dependent_control_flow_is_followed():
    def f(x):
        return x.sin() if x.sum() > 0 else x.cos()

    x, t = torch.tensor([1.0, 2.0], dtype=F64), randn(2)
    assert_close(linearize(f, x)[1](t), x.cos() * t)
    assert_close(linearize(f, -x)[1](t), -(-x).sin() * t)


def test_backpropagation_reaches_captured_parameters_primals_and_tangents():
    x, t, w = (randn(3).requires_grad_() for _ in range(3))
    _, lin = linearize(lambda x: (w * x).sin(), x)
    gx, gt, gw = torch.autograd.grad(lin(t).sum(), (x, t, w))
    x, t, w = x.detach(), t.detach(), w.detach()
    s, c = (w * x).sin(), (w * x).cos()
    assert_close(gx, -s * w * w * t)
    assert_close(gt, c * w)
    assert_close(gw, c * t - s * x * w * t)


def test_linearize_inside_jacfwd_gives_second_derivatives():
    x, t = randn(3), randn(3)
    jac = jacfwd(lambda x: linearize(torch.sin, x)[1](t))(x)
    assert_close(jac, torch.diag(-x.sin() * t))


def test_linearize_of_jacfwd_gives_second_derivatives():
    x, t = randn(3), randn(3)
    out, lin = linearize(jacfwd(torch.sin), x)
    assert_close(out, torch.diag(x.cos()))
    assert_close(lin(t), torch.diag(-x.sin() * t))


def test_jvp_of_the_linear_function_is_the_linear_function():
    x, t, u = randn(3), randn(3), randn(3)
    _, lin = linearize(torch.sin, x)
    out, out_dot = jvp(lin, (t,), (u,))
    assert_close(out, x.cos() * t)
    assert_close(out_dot, x.cos() * u)


def test_module_is_linearized():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, t = randn(5, 3), randn(5, 3)
    out, lin = linearize(net, x)
    assert_close(out, net(x))
    assert_close(lin(t), central_jvp(net, (x,), (t,)))


def test_constant_output_gives_zeros():
    _, lin = linearize(lambda x: torch.ones(2, dtype=F64), randn(3))
    assert torch.equal(lin(randn(3)), torch.zeros(2, dtype=F64))
    assert torch.equal(lin.batched(randn(4, 3)), torch.zeros(4, 2, dtype=F64))


@pytest.mark.parametrize("bad", [(2,), (3, 1), ()])
def test_a_tangent_of_the_wrong_shape_is_refused(bad):
    _, lin = linearize(torch.sin, randn(3))
    with pytest.raises((ValueError, RuntimeError), match=r"(?s)linear.*shape"):
        lin(randn(*bad))


def test_a_wrong_number_of_tangents_is_refused():
    _, lin = linearize(torch.sin, randn(3))
    with pytest.raises(
        (TypeError, ValueError, RuntimeError), match=r"(?i)linear.*(structure|got 2)"
    ):
        lin(randn(3), randn(3))


def test_batched_tangents_of_different_lengths_are_refused():
    _, lin = linearize(two_args, randn(2), randn(3))
    with pytest.raises((ValueError, RuntimeError), match=r"linear.*"):
        lin.batched(randn(4, 2), randn(5, 3))
