"""Where torch.func is at fault (torch_func_contract.md), we are right: one fault a test."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch
from doubles import F64, randn
from oracles import assert_close, assert_owned, central_jacobian
from torch import Tensor, nn

import pushforward
from pushforward import jacfwd, jvp, linearize


def test_argnums_minus_one_is_the_last_argument_and_not_zeros():
    x, y = randn(3), randn(3)
    assert_close(jacfwd(lambda x, y: x * y**2, argnums=-1)(x, y), torch.diag(2 * x * y))
    assert_close(jacfwd(torch.sin, -1)(x), torch.diag(x.cos()))


def test_negative_entries_of_an_argnums_tuple_are_right():
    x, y = randn(3), randn(3)
    jy, jx = jacfwd(lambda x, y: x * y**2, argnums=(-1, -2))(x, y)
    assert_close(jy, torch.diag(2 * x * y))
    assert_close(jx, torch.diag(y**2))


def test_argnums_minus_one_of_a_hessian_is_right():
    x = randn(3)
    hessian = jacfwd(torch.func.jacrev(lambda x: (x**3).sum()), argnums=-1)(x)
    assert_close(hessian, torch.diag(6 * x))


def test_an_expanded_input_is_differentiated_entry_by_entry():
    x = randn(1).expand(3)
    jac = jacfwd(lambda x: x**2)(x)
    assert_close(jac, torch.diag(2 * x))
    assert_owned(jac)


def test_an_expanded_input_works_in_jvp_and_linearize():
    x, t = randn(2, 1).expand(2, 3), randn(2, 3)
    assert_close(jvp(torch.sin, (x,), (t,))[1], x.cos() * t)
    assert_close(linearize(torch.sin, x)[1](t), x.cos() * t)


def test_an_overlapping_input_is_differentiated_entry_by_entry():
    x = randn(5).unfold(0, 3, 1)
    jac = jacfwd(lambda x: (x**2).sum(1))(x)
    assert_close(jac, central_jacobian(lambda x: (x**2).sum(1), x))


def test_a_python_float_times_a_scalar_tensor_stays_in_single_precision():
    x = torch.tensor([0.4, 0.7])
    w = torch.ones(2, 2)

    def f(x):
        return w @ torch.stack([0.5 * x[0], x[1] + 1.0])

    jac = jacfwd(f)(x)
    assert jac.dtype == torch.float32
    assert torch.equal(jac, torch.tensor([[0.5, 1.0], [0.5, 1.0]]))


def test_a_double_tangent_of_a_single_primal_gives_a_single_tangent():
    x, t = torch.ones(2), torch.full((2,), 3.0, dtype=F64)
    _, out_dot = jvp(lambda x: x**2, (x,), (t,))
    assert out_dot.dtype == torch.float32
    assert torch.equal(out_dot, torch.full((2,), 6.0))


def test_the_dtype_of_mixed_arguments_is_the_promoted_type_of_output_and_input():
    x, y = torch.ones(2), torch.ones(2, dtype=F64)
    single, double = jacfwd(lambda x, y: x.sin(), argnums=(0, 1))(x, y)
    assert single.dtype == torch.float32
    assert double.dtype == F64


def test_results_are_contiguous_own_their_storage_and_are_writable():
    jac = jacfwd(lambda x, y: x.sum() * y, argnums=(0, 1))(randn(3), randn(5))
    for block in jac:
        assert_owned(block)
    assert_owned(jacfwd(lambda x: torch.zeros(4, dtype=F64))(randn(3)))


def test_a_custom_operator_with_register_autograd_is_not_zero():
    @torch.library.custom_op("pushforward_faults::cube", mutates_args=())
    def cube(x: Tensor) -> Tensor:
        return x**3

    def setup(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    cube.register_autograd(lambda ctx, g: 3 * ctx.saved_tensors[0] ** 2 * g, setup_context=setup)
    x, t = randn(3), randn(3)
    assert_close(jacfwd(cube)(x), torch.diag(3 * x**2))
    assert_close(jvp(cube, (x,), (t,))[1], 3 * x**2 * t)
    assert_close(linearize(cube, x)[1](t), 3 * x**2 * t)


class Cube(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g

    @staticmethod
    def jvp(ctx, t):
        return 3 * ctx.saved_tensors[0] ** 2 * t


def test_the_second_and_third_derivative_of_a_custom_function_are_not_zero():
    x = torch.tensor(1.5, dtype=F64)
    assert_close(jacfwd(Cube.apply)(x), 3 * x**2)
    assert_close(jacfwd(jacfwd(Cube.apply))(x), 6 * x)
    assert_close(jacfwd(jacfwd(jacfwd(Cube.apply)))(x), torch.tensor(6.0, dtype=F64))


def test_an_integer_output_is_refused_and_not_given_zeros():
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"torch\.int64"):
        jacfwd(lambda x: x.long())(randn(3))
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"torch\.bool"):
        jacfwd(lambda x: (x, x > 0))(randn(3))


def test_has_aux_with_any_leaf_and_an_empty_input():
    jac, aux = jacfwd(lambda x: (x * 2, ["a", 1, None, nn.ReLU]), has_aux=True)(torch.zeros(0, 2))
    assert jac.shape == (0, 2, 0, 2)
    assert aux == ["a", 1, None, nn.ReLU]


def test_keyword_arguments_are_accepted():
    x = randn(2)
    assert_close(jacfwd(lambda x, k=1: k * x)(x, k=3), 3 * torch.eye(2, dtype=F64))


def test_a_list_is_accepted_as_argnums():
    x, y = randn(2), randn(2)
    jac = jacfwd(lambda x, y: x * y, argnums=[1])(x, y)
    assert type(jac) is tuple
    assert_close(jac[0], torch.diag(x))


def test_a_leaf_that_is_no_tensor_passes_as_a_constant_or_is_refused_with_its_path():
    tree = {"x": randn(2), "power": 3}
    try:
        jac = jacfwd(lambda p: p["x"] ** p["power"])(tree)
    except (TypeError, ValueError, RuntimeError) as error:
        assert "jacfwd" in str(error)  # noqa: PT017
        assert "power" in str(error)  # noqa: PT017
    else:
        assert_close(jac["x"], torch.diag(3 * tree["x"] ** 2))


CUTS = {
    "no_grad": lambda x: _under(torch.no_grad(), x),
    "detach": lambda x: x - (x**2).detach(),
    "inference_mode": lambda x: _under(torch.inference_mode(), x),
    "set_grad_enabled": lambda x: _under(torch.set_grad_enabled(False), x),
}


def _under(context, x):
    with context:
        y = x**2
    return x - y


@pytest.mark.parametrize("name", CUTS)
def test_no_grad_and_detach_inside_cut_the_derivative_in_every_mode(name):
    f, x, t = CUTS[name], randn(3), randn(3)
    assert_close(jacfwd(f)(x), torch.eye(3, dtype=F64))
    assert_close(jvp(f, (x,), (t,))[1], t)
    assert_close(linearize(f, x)[1](t), t)
    expected = torch.zeros(3, 3, 3, dtype=F64)
    for i in range(3):
        expected[i, i, i] = 2  # (x - c) x with c held constant
    assert_close(jacfwd(jacfwd(lambda x: f(x) * x))(x), expected)


def test_a_cut_inside_a_second_derivative_is_a_constant():
    x = randn(3)
    jac = jacfwd(jacfwd(lambda x: x.detach() * x**2))(x)
    expected = torch.zeros(3, 3, 3, dtype=F64)
    for i in range(3):
        expected[i, i, i] = 2 * x[i]  # d/dx (2 c x) with c = x held constant by detach
    assert_close(jac, expected)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_no_grad_outside_does_not_touch_our_derivative(context):
    x = randn(3)
    w = randn(3).requires_grad_()
    with context():
        jac = jacfwd(lambda x: (w * x).sin())(x)
        _, lin = linearize(lambda x: (w * x).sin(), x)
        tangent = lin(torch.ones(3, dtype=F64))
    expected = (w * (w * x).cos()).detach()
    assert not jac.requires_grad
    assert_close(jac, torch.diag(expected))
    assert_close(tangent, expected)


def test_batch_norm_in_training_mode_leaves_the_running_statistics_of_the_plain_call():
    plain, ours = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()
    x = randn(4, 3)
    plain(x)
    jac = jacfwd(ours)(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert type(getattr(ours, name)) is Tensor
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name))
    assert_close(jac, central_jacobian(nn.BatchNorm1d(3).double(), x))


def test_a_captured_buffer_that_is_written_and_read_again_carries_the_derivative():
    buffer = torch.zeros(3, dtype=F64)

    def f(x):
        buffer.copy_(x**2)
        return buffer * x

    x = randn(3)
    jac = jacfwd(f)(x)
    assert_close(jac, torch.diag(3 * x**2))
    assert torch.equal(buffer, x**2)


def test_a_sum_accumulated_in_a_captured_buffer_carries_the_derivative():
    total = torch.ones(3, dtype=F64)

    def f(x):
        total.add_(x.sin())
        total.mul_(2)
        return total

    x = randn(3)
    jac = jacfwd(f)(x)
    assert_close(jac, torch.diag(2 * x.cos()))
    assert_close(total, 2 * (1 + x.sin()))
    assert type(total) is Tensor


def test_a_captured_buffer_does_not_remember_a_derivative_after_the_call():
    buffer = torch.zeros(3, dtype=F64)

    def write(x):
        buffer.copy_(x)
        return x * 2

    jacfwd(write)(randn(3))
    assert torch.equal(jacfwd(lambda x: buffer * 1 + 0 * x)(randn(3)), torch.zeros(3, 3, dtype=F64))


def test_randomness_same_draws_the_numbers_of_the_plain_call_and_leaves_its_state():
    x = torch.ones(6, dtype=F64)
    torch.manual_seed(1)
    plain = torch.dropout(x, 0.3, True)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    jac = jacfwd(lambda x: torch.dropout(x, 0.3, True), randomness="same")(x)
    assert_close(jac, torch.diag(plain))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_warning_is_raised_when_warnings_are_errors():
    program = (
        "import torch\n"
        "from pushforward import jacfwd, jvp, linearize, vmap\n"
        "x = torch.randn(3)\n"
        "jacfwd(lambda x: x.softmax(0).cumprod(0).std())(x)\n"
        "jacfwd(lambda x: torch.linalg.det(torch.outer(x, x) + torch.eye(3)))(x)\n"
        "vmap(jacfwd(torch.nn.functional.gelu))(torch.randn(2, 3))\n"
        "jvp(torch.sin, (x,), (x,)); linearize(torch.sin, x)[1](x)\n"
        "print('silent')\n"
    )
    # The package's own folder's parent: the tests also run from a tree that is not installed.
    source = str(pathlib.Path(pushforward.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert done.stdout.strip() == "silent", done.stderr
    assert done.stderr == ""


def test_running_statistics_of_batch_norm_read_again_carry_the_derivative():
    x = randn(4, 2)
    start = torch.zeros(2, dtype=F64)

    def f(x):
        norm = nn.BatchNorm1d(2, dtype=F64)
        norm(x)
        return norm.running_mean * 1

    assert_close(jacfwd(f)(x), central_jacobian(f, x))
    assert start.sum() == 0
