"""jvp: output and directional derivative, pytrees, aux, strict, dtypes, composition."""

import pytest
import torch
from doubles import F64, randn
from oracles import assert_close, central_jvp
from torch import Tensor, nn

from pushforward import jacfwd, jvp, vmap


def test_documentation_scalar_to_vector():
    x = torch.randn([])
    f = lambda x: x * torch.tensor([1.0, 2.0, 3])  # noqa: E731
    value, grad = jvp(f, (x,), (torch.tensor(1.0),))
    assert torch.allclose(value, f(x))
    assert torch.allclose(grad, torch.tensor([1.0, 2, 3]))


def test_documentation_two_inputs():
    x = torch.randn(5)
    y = torch.randn(5)
    f = lambda x, y: x * y  # noqa: E731
    _, output = jvp(f, (x, y), (torch.ones(5), torch.ones(5)))
    assert torch.allclose(output, x + y)


FUNCTIONS = {
    "product": lambda x, y: x * y.sum(),
    "matmul": lambda x, y: torch.outer(x, y) @ y,
    "softmax": lambda x, y: torch.cat([x, y]).softmax(0),
    "reduction": lambda x, y: (x.sin().sum() * y).logsumexp(0),
    "one input unused": lambda x, y: y.cumsum(0) ** 2,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_output_and_tangent_equal_the_plain_call_and_central_differences(name):
    func = FUNCTIONS[name]
    x, y, x_dot, y_dot = randn(2), randn(3), randn(2), randn(3)
    out, out_dot = jvp(func, (x, y), (x_dot, y_dot))
    assert torch.equal(out, func(x, y))
    assert out_dot.shape == out.shape
    assert_close(out_dot, central_jvp(func, (x, y), (x_dot, y_dot)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tangent_equals_the_jacobian_times_the_direction(name):
    func = FUNCTIONS[name]
    x, y, x_dot, y_dot = randn(2), randn(3), randn(2), randn(3)
    _, out_dot = jvp(func, (x, y), (x_dot, y_dot))
    jx, jy = jacfwd(func, argnums=(0, 1))(x, y)
    assert_close(out_dot, jx @ x_dot + jy @ y_dot)


def test_output_and_tangent_are_plain_tensors():
    out, out_dot = jvp(torch.sin, (randn(3),), (randn(3),))
    assert type(out) is Tensor
    assert type(out_dot) is Tensor


def test_pytrees_of_primals_and_outputs_keep_their_structure():
    p, t = {"w": randn(2, 3), "b": randn(2)}, {"w": randn(2, 3), "b": randn(2)}
    x, x_dot = randn(3), randn(3)
    out, out_dot = jvp(lambda p, x: {"y": (p["w"] @ x + p["b"],)}, (p, x), (t, x_dot))
    assert torch.equal(out["y"][0], p["w"] @ x + p["b"])
    assert_close(out_dot["y"][0], t["w"] @ x + p["w"] @ x_dot + t["b"])


def test_aux_is_the_third_result_and_may_hold_any_leaf():
    x, t = randn(3), randn(3)
    out, out_dot, aux = jvp(lambda x: (x.sin(), {"s": "a", "x": x * 2}), (x,), (t,), has_aux=True)
    assert torch.equal(out, x.sin())
    assert_close(out_dot, x.cos() * t)
    assert aux["s"] == "a"
    assert type(aux["x"]) is Tensor
    assert torch.equal(aux["x"], 2 * x)


def test_constant_output_has_a_zero_tangent_that_can_be_written():
    c = randn(2)
    out, out_dot = jvp(lambda x: c, (randn(3),), (randn(3),))
    assert torch.equal(out, c)
    assert torch.equal(out_dot, torch.zeros(2, dtype=F64))
    out_dot.add_(1)


def test_strict_refuses_an_output_that_does_not_depend_on_the_inputs():
    with pytest.raises(RuntimeError, match=r"jvp.*independent|jvp.*does not depend"):
        jvp(lambda x: torch.ones(2), (torch.randn(3),), (torch.randn(3),), strict=True)


def test_strict_accepts_outputs_that_depend_on_the_inputs():
    x, t = randn(3), randn(3)
    _, out_dot = jvp(torch.sin, (x,), (t,), strict=True)
    assert_close(out_dot, x.cos() * t)


@pytest.mark.parametrize(("primal", "tangent"), [(torch.float32, F64), (F64, torch.float32)])
def test_a_tangent_of_another_real_dtype_is_cast_to_the_primals(primal, tangent):
    x, t = torch.ones(3, dtype=primal), torch.full((3,), 2.0, dtype=tangent)
    out, out_dot = jvp(lambda x: x * x, (x,), (t,))
    assert out.dtype == primal
    assert out_dot.dtype == primal
    assert torch.equal(out_dot, torch.full((3,), 4.0, dtype=primal))


def test_tangent_of_the_output_has_the_outputs_dtype():
    _, out_dot = jvp(lambda x: x.double() * 2, (torch.ones(3),), (torch.ones(3),))
    assert out_dot.dtype == F64


def test_strided_and_expanded_tangents_are_accepted():
    x = randn(2, 3)
    _, a = jvp(lambda x: x**2, (x,), (torch.ones((), dtype=F64).expand(2, 3),))
    assert_close(a, 2 * x)
    t = randn(3, 2).T
    _, b = jvp(lambda x: x.view(6), (x,), (t,))
    assert_close(b, t.reshape(6))


def test_the_callers_tangents_are_never_written():
    t = randn(3)
    before = t.clone()

    def f(x):
        y = x * 1
        y.mul_(3)
        return x.mul_(2) + y

    x = randn(3)
    _, out_dot = jvp(f, (x,), (t,))
    assert torch.equal(t, before)
    assert_close(out_dot, 5 * t)


def test_identity_does_not_return_memory_shared_with_the_callers_tangent():
    t = randn(3)
    before = t.clone()
    _, out_dot = jvp(lambda x: x * 1, (randn(3),), (t,))
    out_dot.zero_()
    assert torch.equal(t, before)


def test_second_order_by_nesting_equals_the_closed_form():
    x, t, u = randn(3), randn(3), randn(3)
    _, second = jvp(lambda x: jvp(torch.sin, (x,), (t,))[1], (x,), (u,))
    assert_close(second, -x.sin() * t * u)


def test_nested_directions_are_not_confused():
    """Perturbation confusion: d/dx [x * d/dy (x + y)] is 1, not 2."""
    one = torch.ones((), dtype=F64)

    def outer(x):
        return x * jvp(lambda y: x + y, (one,), (one,))[1]

    _, out_dot = jvp(outer, (one,), (one,))
    assert out_dot == 1


def test_vmap_over_tangents_gives_the_rows_of_the_jacobian():
    x = randn(3)
    rows = vmap(lambda t: jvp(lambda x: x.sin() * x.sum(), (x,), (t,))[1])(torch.eye(3, dtype=F64))
    assert_close(rows.T, jacfwd(lambda x: x.sin() * x.sum())(x))


def test_vmap_over_primals_equals_a_loop():
    x, t = randn(4, 3), randn(4, 3)
    out, out_dot = vmap(lambda x, t: jvp(lambda x: x.softmax(0), (x,), (t,)))(x, t)
    assert_close(out, x.softmax(1))
    for i in range(4):
        assert_close(out_dot[i], central_jvp(lambda x: x.softmax(0), (x[i],), (t[i],)))


def test_backpropagation_through_the_tangent_reaches_primal_tangent_and_parameters():
    x, t, w = (randn(3).requires_grad_() for _ in range(3))
    _, out_dot = jvp(lambda x: (w * x).sin(), (x,), (t,))
    gx, gt, gw = torch.autograd.grad(out_dot.sum(), (x, t, w))
    x, t, w = x.detach(), t.detach(), w.detach()
    s, c = (w * x).sin(), (w * x).cos()
    assert_close(gx, -s * w * w * t)
    assert_close(gt, c * w)
    assert_close(gw, c * t - s * x * w * t)


def test_complex_primals_and_tangents_are_accepted():
    z = torch.randn(3, dtype=torch.complex128)
    t = torch.randn(3, dtype=torch.complex128)
    out, out_dot = jvp(lambda z: z**2 * z.exp(), (z,), (t,))
    torch.testing.assert_close(out, z**2 * z.exp())
    torch.testing.assert_close(out_dot, (2 * z + z**2) * z.exp() * t)


def test_conjugate_is_differentiated_along_the_complex_direction():
    z = torch.randn(3, dtype=torch.complex128)
    t = torch.randn(3, dtype=torch.complex128)
    _, out_dot = jvp(lambda z: z.conj() * z, (z,), (t,))
    torch.testing.assert_close(out_dot.resolve_conj(), t.conj() * z + z.conj() * t)


def test_module_parameters_as_primals():
    net = nn.Linear(3, 2).double()
    params = dict(net.named_parameters())
    tangents = {k: torch.ones_like(p) for k, p in params.items()}
    x = randn(3)
    _, out_dot = jvp(lambda p: torch.func.functional_call(net, p, (x,)), (params,), (tangents,))
    assert_close(out_dot, x.sum().expand(2) + 1)


def test_random_operators_follow_the_plain_call():
    """jvp evaluates the function once, as torch.func.jvp does: random operators simply run."""
    x, t = randn(5), randn(5)
    torch.manual_seed(3)
    plain = torch.dropout(x, 0.5, True)
    torch.manual_seed(3)
    out, out_dot = jvp(lambda x: torch.dropout(x, 0.5, True), (x,), (t,))
    assert torch.equal(out, plain)
    assert_close(out_dot, torch.where(plain != 0, 2 * t, 0 * t))
