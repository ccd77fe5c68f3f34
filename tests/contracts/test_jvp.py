"""jvp and linearize: values, pytrees, strict, structure errors, aux, cuts, inside autograd functions."""

import functools

import pytest
import torch
from doubles import F64, close, randn
from torch.autograd import forward_ad


def test_returns_output_and_tangent_as_a_tuple(api):
    x, t = randn(2, 3), randn(2, 3)
    result = api.jvp(torch.sin, (x,), (t,))
    assert isinstance(result, tuple)
    close(result, (x.sin(), x.cos() * t))


def test_several_primals(api):
    x, y, x_dot, y_dot = (randn(2, 3) for _ in range(4))
    close(api.jvp(torch.mul, (x, y), (x_dot, y_dot)), (x * y, y * x_dot + x * y_dot))


def test_several_outputs(api):
    x, y, x_dot, y_dot = (randn(2, 3) for _ in range(4))

    def f(x, y):
        return 2 * x + 3 * y, 4 * x + 5 * y

    close(api.jvp(f, (x, y), (x_dot, y_dot)), (f(x, y), f(x_dot, y_dot)))


def test_pytrees_of_primals(api):
    one = torch.tensor(1.0)

    def f(x, y, z):
        return x[0] + 2 * x[1] + 3 * y["a"] + 4 * z

    primals = ((one, one), {"a": one}, one)
    close(api.jvp(f, primals, primals), (10 * one, 10 * one))


def test_an_input_without_relation(api):
    x, y, x_dot, y_dot = (randn(2, 3) for _ in range(4))
    close(api.jvp(lambda x, y: x, (x, y), (x_dot, y_dot)), (x, x_dot))


def test_an_output_without_relation(api):
    y = randn(4)
    close(api.jvp(lambda x: y, (randn(3),), (randn(3),)), (y, torch.zeros_like(y)))


def test_strict_refuses_an_output_without_relation(api):
    y, x, t = randn(3), randn(3), randn(3)
    with pytest.raises(RuntimeError, match="strict"):
        api.jvp(lambda x: (x, y), (x,), (t,), strict=True)
    close(api.jvp(torch.sin, (x,), (t,), strict=True), (x.sin(), t * x.cos()))


def test_a_tensor_made_by_new_tensor_is_a_constant(api):
    x = randn(4, 4)
    close(api.jvp(lambda x: x + x.new_tensor(0.5), (x,), (x,)), (x + 0.5, x))


X, T = torch.ones(2, 3), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("primals", "tangents", "complaint"),
    [
        (X, (T,), "be a tuple"),
        ((), (), "at least one"),
        ((X,), T, "same python structure"),
        ((X,), [T], "same python structure"),
        ((X,), (T, T), "same python structure"),
        ((X, X), (T, T, T), "same python structure"),
        (((X, X), X), (X, X), "same python structure"),
    ],
)
def test_bad_arguments_are_refused(api, primals, tangents, complaint):
    with pytest.raises(RuntimeError, match=complaint):
        api.jvp(torch.sin, primals, tangents)


def test_a_number_in_the_place_of_a_tensor_is_refused(api):
    with pytest.raises(RuntimeError):
        api.jvp(torch.sin, (1.0,), (T,))
    with pytest.raises(RuntimeError):
        api.jvp(torch.sin, (X,), (1.0,))


def test_no_tensor_at_all_is_refused(api):
    with pytest.raises(RuntimeError, match=r"at least one|tensor"):
        api.jvp(lambda x: x, ((),), ((),))


@pytest.mark.parametrize("output", [None, ()], ids=repr)
def test_an_empty_output_is_refused(api, output):
    with pytest.raises(RuntimeError, match="Expected f to be a function that has non-empty output"):
        api.jvp(lambda x: output, (X,), (T,))


@pytest.mark.parametrize("output", [1, True, 12.2, "abc"], ids=repr)
def test_an_output_that_is_no_tensor_is_refused(api, output):
    with pytest.raises(RuntimeError, match=r"expected f\(\*primals\) to return only tensors"):
        api.jvp(lambda x: output, (X,), (T,))


@pytest.mark.parametrize(
    "tree",
    [
        lambda a, b: [a, b],
        lambda a, b: {"a": a, "b": b},
        lambda a, b: [(b, {"a": a, "out": [a, b]})],
    ],
    ids=["list", "dict", "nested"],
)
def test_output_and_tangent_have_the_container_of_the_output(api, tree):
    x, t = randn(2, 3), randn(2, 3)
    result = api.jvp(lambda x: tree(x, x.sum()), (x,), (t,))
    close(result, (tree(x, x.sum()), tree(t, t.sum())))
    assert type(result[0]) is type(result[1]) is type(tree(x, x))


def test_aux_is_the_third_result(api):
    def f(x):
        return x.sin(), {"a": x.cos(), "b": [x.tan()]}

    x, t = randn(3), randn(3)
    close(api.jvp(f, (x,), (t,), has_aux=True), (x.sin(), t * x.cos(), f(x)[1]))


@pytest.mark.parametrize("output", [lambda x: [x, x], lambda x: (x, x, x)])
def test_has_aux_wants_a_pair(api, output):
    with pytest.raises(RuntimeError, match="output of function f should be a tuple"):
        api.jvp(output, (X,), (T,), has_aux=True)


def test_forward_grad_switched_off_outside_changes_nothing(api):
    x = randn()
    with forward_ad._set_fwd_grad_enabled(False):
        _, tangent = api.jvp(torch.sin, (x,), (torch.ones_like(x),))
    close(tangent, x.cos())


def test_works_inside_forward_and_backward_of_an_autograd_function(api):
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return -api.jvp(torch.cos, (x,), (torch.ones_like(x),))[1]

        @staticmethod
        def backward(ctx, x_bar):
            (x,) = ctx.saved_tensors
            return x_bar * api.jvp(torch.sin, (x,), (torch.ones_like(x),))[1]

    x = randn().requires_grad_()
    y = Sine.apply(x)
    close(y.detach(), x.detach().sin())
    close(torch.autograd.grad(y, x)[0], x.detach().cos())


def test_saved_tensor_hooks_around_and_inside_are_allowed(api):
    x, t = randn(3), randn(3)

    def hooked(x):
        with torch.autograd.graph.save_on_cpu():
            return x.sin()

    close(api.jvp(hooked, (x,), (t,))[1], t * x.cos())
    with torch.autograd.graph.save_on_cpu():
        close(api.jvp(torch.sin, (x,), (t,))[1], t * x.cos())


def test_covariances_under_two_vmaps_with_a_captured_tangent(api):
    other, x, t = torch.ones(4, 1, dtype=F64), randn(4, 2), randn(2)

    def push(other, x):
        return api.jvp(torch.cov, (x,), (t,))

    out, tangent = api.vmap(api.vmap(push, (0, None)))(other, x)
    close(out[2, 0], x[2].cov())
    centered = x - x.mean(1, keepdim=True)
    close(tangent[:, 0], 2 * (centered * (t - t.mean())).sum(1))


def test_vmap_over_tangents_and_over_both(api):
    x, ts, xs = randn(3), randn(5, 3), randn(5, 3)
    close(api.vmap(lambda t: api.jvp(torch.sin, (x,), (t,))[1])(ts), ts * x.cos())
    both = api.vmap(lambda x, t: api.jvp(torch.sin, (x,), (t,)))(xs, ts)
    close(both, (xs.sin(), ts * xs.cos()))


# ---- linearize ----


def test_linearize_equals_jvp(api):
    x, t = randn(3, 1), randn(3, 1)
    for f in (torch.cos, lambda x: (x.cos(), x.sum())):
        out, linear = api.linearize(f, x)
        close((out, linear(t)), api.jvp(f, (x,), (t,)))


def test_vmap_of_a_linear_function(api):
    x, ts = randn(3, 1), randn(4, 3, 1)
    _, linear = api.linearize(lambda x: (x.cos(), x.sum()), x)
    close(api.vmap(linear)(ts), (-x.sin() * ts, ts.sum((1, 2))))


def test_linearize_of_a_gradient(api):
    x, t, z = randn(3), randn(3), randn(3)
    _, linear = api.linearize(lambda x: api.grad(lambda y: z @ y)(x) + 0 * x, x)
    close(linear(t), torch.zeros(3, dtype=F64))
    _, linear = api.linearize(api.grad(lambda y: (z * y**3).sum()), x)
    close(linear(t), 6 * z * x * t)


def test_linearize_with_pytrees_on_both_sides(api):
    def f(arg):
        x, (y, z) = arg["x"], arg["yz"]
        return {"a": x.sum(), "b": {"c": y + z, "d": (x * z, y.exp())}}

    primal, tangent = ({"x": randn(3), "yz": (randn(3), randn(3))} for _ in range(2))
    out, linear = api.linearize(f, primal)
    close((out, linear(tangent)), api.jvp(f, (primal,), (tangent,)))


def test_linearize_refuses_tangents_of_another_structure_or_shape(api):
    x, t = randn(3, 1), randn(3, 1)
    _, linear = api.linearize(torch.sin, x)
    with pytest.raises(RuntimeError):
        linear((t, t))
    with pytest.raises(RuntimeError):
        linear(t[None])


# ---- Writing through views, with all, one or none of the tensors differentiated ----


def pushing(api, f):
    return lambda x, x_dot, y, y_dot: api.jvp(f, (x, y), (x_dot, y_dot))


def test_copying_one_variable_over_another(api):
    def f(x, y):
        x.copy_(y)
        return x

    x, x_dot, y, y_dot = (randn(3, 2) for _ in range(4))
    out, tangent = api.vmap(pushing(api, f), in_dims=1)(x.clone(), x_dot, y, y_dot)
    close((out, tangent), (y.T, y_dot.T))


def test_copying_a_strided_unbatched_variable_over_a_batched_one(api):
    def f(x, y):
        x.copy_(y)
        return x

    x, x_dot = randn(3, 2), randn(3, 2)
    y, y_dot = randn(3, 3)[:, 1], randn(6)[::2]
    out, tangent = api.vmap(pushing(api, f), in_dims=(1, 1, None, None))(x.clone(), x_dot, y, y_dot)
    close((out, tangent), (y.expand(2, 3), y_dot.expand(2, 3)))


def test_writing_a_view_changes_its_base(api):
    def f(x, y):
        view = x[:, ::2]
        view.copy_(y)
        return view, x

    x, x_dot = randn(2, 6, 2), randn(2, 6, 2)
    y, y_dot = randn(2, 2, 3), randn(2, 2, 3)
    written = x.clone()
    out, tangent = api.vmap(pushing(api, f), in_dims=(2, 2, 1, 1))(written, x_dot, y, y_dot)

    def merged(base, part):
        whole = base.movedim(2, 0).clone()
        whole[:, :, ::2] = part.movedim(1, 0)
        return whole

    close(out, (y.movedim(1, 0), merged(x, y)))
    close(tangent, (y_dot.movedim(1, 0), merged(x_dot, y_dot)))
    close(written.movedim(2, 0), merged(x, y))


def test_writing_a_base_changes_its_view(api):
    def f(x, y):
        view = x[0, ::2]
        x.copy_(y)
        return x, view

    x, x_dot, y, y_dot = (randn(2, 2, 6) for _ in range(4))
    out, tangent = api.vmap(pushing(api, f), in_dims=1)(x.clone(), x_dot, y, y_dot)
    close(out, (y.movedim(1, 0), y[0, :, ::2]))
    close(tangent, (y_dot.movedim(1, 0), y_dot[0, :, ::2]))


def test_writing_a_variable_into_a_view_of_a_constant(api):
    def f(x, y):
        x = x.clone()
        view = x[0]
        view.copy_(y)
        return view, x

    x, y, y_dot = randn(2, 2, 6), randn(2, 6), randn(2, 6)

    def push(x, y, y_dot):
        return api.jvp(functools.partial(f, x), (y,), (y_dot,))

    out, tangent = api.vmap(push, in_dims=(1, 0, 0))(x, y, y_dot)
    close(out, (y, torch.stack([y, x[1]], dim=1)))
    close(tangent, (y_dot, torch.stack([y_dot, torch.zeros_like(y_dot)], dim=1)))


def test_writing_a_variable_over_the_base_of_a_view_of_a_constant(api):
    def f(x, y):
        x = x.clone()
        view = x[0]
        x.copy_(y)
        return view, x

    x, y, y_dot = (randn(2, 2, 6) for _ in range(3))

    def push(x, y, y_dot):
        return api.jvp(functools.partial(f, x), (y,), (y_dot,))

    out, tangent = api.vmap(push, in_dims=1)(x, y, y_dot)
    close(out, (y[0], y.movedim(1, 0)))
    close(tangent, (y_dot[0], y_dot.movedim(1, 0)))


def test_in_place_on_both_sides_of_a_view_under_vmap_and_functionalize(api):
    def f(x):
        y = x + x
        z = y.view(-1)
        y.add_(1)
        return z

    def push(x, t):
        return api.jvp(f, (x,), (t,))

    x, t = randn(2, 3), randn(2, 3)
    close(api.vmap(push)(x, t), (2 * x + 1, 2 * t))
    close(api.vmap(torch.func.functionalize(push))(x, t), (2 * x + 1, 2 * t))
