"""torch.autograd.Function under every transform: gradients not needed, no setup_context, batches."""

import pytest
import torch
from doubles import F64, close, randn


def test_an_input_that_is_not_differentiated_is_reported_as_not_needed(api):
    seen = []

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(x, y):
            return x * y

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, z_bar):
            seen.append(tuple(ctx.needs_input_grad))
            return z_bar * ctx.saved_tensors[1], None

    x, y = randn(), randn()
    close(api.grad(Product.apply)(x, y), y)
    close(api.grad(api.grad(lambda x: Product.apply(x, y) * x))(x), 2 * y)
    assert seen
    assert set(seen) == {(True, False)}


def test_cotangents_that_are_not_materialized_are_none(api):
    class Both(torch.autograd.Function):
        @staticmethod
        def forward(x, y):
            return x.clone(), y.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx, x_bar, y_bar):
            seen.append((x_bar is None, y_bar is None))
            return x_bar, y_bar

    seen = []
    x, y = randn(), randn()
    close(api.grad(lambda x: Both.apply(x, y)[0] ** 2)(x), 2 * x)
    close(api.grad(api.grad(lambda x: Both.apply(x, y)[0] ** 3))(x), 6 * x)
    assert seen
    assert all(absent == (False, True) for absent in seen)


class Cube(torch.autograd.Function):
    """By way of NumPy, with a backward of its own for the derivative."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x):
        array = x.detach().numpy()
        return torch.tensor(array**3), torch.tensor(3 * array**2)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx, y_bar, slope_bar):
        x, slope = ctx.saved_tensors
        return y_bar * 3 * x**2 + 0 * slope

    @staticmethod
    def jvp(ctx, x_dot):
        raise AssertionError("not called in reverse mode")

    @staticmethod
    def vmap(info, in_dims, x):
        y, slope = Cube.apply(x)
        return (y, slope), (in_dims[0], in_dims[0])


def test_a_forward_in_numpy_is_differentiated_by_its_backward(api):
    x = randn()
    close(api.grad(lambda x: Cube.apply(x)[0])(x), 3 * x**2)
    close(api.grad(api.grad(lambda x: Cube.apply(x)[0]))(x), 6 * x)
    out, pull = api.vjp(lambda x: Cube.apply(x)[0], randn(3))
    assert pull(torch.ones(3, dtype=F64))[0].shape == out.shape


def test_a_vmap_staticmethod_is_used(api):
    xs = randn(4)
    close(api.vmap(api.grad(lambda x: Cube.apply(x)[0]))(xs), 3 * xs**2)


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, y_bar):
        return y_bar * 3 * ctx.saved_tensors[0] ** 2


def test_once_differentiable_is_differentiable_once(api):
    x = randn()
    close(api.vjp(OnceOnly.apply, x)[1](torch.ones_like(x))[0], 3 * x**2)


def test_once_differentiable_refuses_autograd_through_the_result(api):
    x = randn().requires_grad_()
    (gradient,) = api.vjp(OnceOnly.apply, x)[1](torch.ones_like(x))
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        gradient.backward()


class Doubled(torch.autograd.Function):
    """Changes its input, and the tangent of it, in place, as PyTorch asks of such a function."""

    @staticmethod
    def forward(x):
        return x.mul_(2)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_dirty(inputs[0])

    @staticmethod
    def backward(ctx, y_bar):
        return 2 * y_bar

    @staticmethod
    def jvp(ctx, x_dot):
        return x_dot.mul_(2)


def test_a_function_that_changes_its_input_in_place(api):
    x, t = randn(3), randn(3)
    three = torch.full((3,), 3.0, dtype=F64)
    close(api.grad(lambda x: (Doubled.apply(x.clone()) + x).sum())(x), three)
    before = t.clone()
    close(api.jvp(lambda x: Doubled.apply(x.clone()) + x, (x,), (t,)), (3 * x, 3 * before))
    close(t, before)


def test_an_input_changed_in_place_has_the_derivative_when_read_again(api):
    def f(x):
        y = x * 1
        Doubled.apply(y)
        return y

    x, t = randn(3), randn(3)
    close(api.jvp(f, (x,), (t,)), (2 * x, 2 * t))
    close(api.vjp(f, x)[1](t), (2 * t,))


@pytest.mark.parametrize("kept", ["input", "output", "neither"])
def test_a_function_that_returns_its_input_as_it_is(api, kept):
    class Same(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x

        @staticmethod
        def setup_context(ctx, inputs, output):
            if kept != "neither":
                ctx.save_for_backward(inputs[0] if kept == "input" else output)

        @staticmethod
        def backward(ctx, y_bar):
            return y_bar

        @staticmethod
        def jvp(ctx, x_dot):
            return x_dot.view_as(x_dot)

    x, t = randn(3), randn(3)
    if kept != "neither":
        with pytest.raises(RuntimeError, match="returned as-is"):
            api.grad(lambda x: Same.apply(x.clone()).sum())(x)
        return
    close(api.grad(lambda x: Same.apply(x.clone()).sum())(x), torch.ones(3, dtype=F64))
    close(api.jvp(lambda x: Same.apply(x.clone()), (x,), (t,)), (x, t))


def test_a_function_without_relation_to_the_batch_is_not_batched(api):
    class Constant(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * 2

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, y_bar):
            return 2 * y_bar

        @staticmethod
        def vmap(info, in_dims, x):
            raise AssertionError("a constant is not batched")

    xs = randn(2, 3)
    result = api.vmap(api.grad(lambda x: (x * Constant.apply(torch.tensor(1.0))).sum()))(xs)
    close(result, torch.full((2, 3), 2.0, dtype=F64))


@pytest.mark.parametrize("name", ["jacfwd", "jacrev"])
def test_an_input_changed_in_place_leaves_earlier_derivatives_as_they_were(api, name):
    """What was computed before the write keeps the values that it was computed from, or raises."""

    def f(x):
        y = x * 1
        z = y * y
        Doubled.apply(y)
        return z

    x = randn(3)
    try:
        result = getattr(api, name)(f)(x)
    except RuntimeError:
        return
    close(result, (2 * x).diag())
