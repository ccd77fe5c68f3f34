"""autograd.Function and torch.library: a custom rule is honoured, never differentiated through."""

import pytest
import torch
from doubles import F64, randn
from oracles import assert_close, central_jacobian
from torch import Tensor

from pushforward import MissingRuleError, hessian, jacfwd, jacobian, jacrev, jvp, linearize, vmap


class WithJvp(torch.autograd.Function):
    """x³ with a true jvp and a backward that must not be used by forward mode."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx, g):
        raise AssertionError("backward was used although there is a jvp")

    @staticmethod
    def jvp(ctx, t):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * t


class LyingJvp(torch.autograd.Function):
    """A straight-through rule: its derivative is, on purpose, not that of its forward."""

    @staticmethod
    def forward(x):
        return torch.round(x) + x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def jvp(ctx, t):
        return 10 * t


class OnlyBackward(torch.autograd.Function):
    """x³ without a jvp: the transpose of its backward is used."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class LyingBackward(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return torch.round(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return 7 * g


class Legacy(torch.autograd.Function):
    """The old signature: forward(ctx, ...)."""

    @staticmethod
    def forward(ctx, x, power):
        ctx.save_for_backward(x)
        ctx.power = power
        return x**power

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return ctx.power * x ** (ctx.power - 1) * g, None


class LegacyWithJvp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, power):
        ctx.save_for_forward(x)
        ctx.power = power
        return x**power

    @staticmethod
    def backward(ctx, g):
        raise AssertionError("backward was used although there is a jvp")

    @staticmethod
    def jvp(ctx, t, _):
        (x,) = ctx.saved_tensors
        return ctx.power * x ** (ctx.power - 1) * t


class TwoInTwoOut(torch.autograd.Function):
    """(A, v) -> (A v, sum v²), mixing all axes, without a jvp."""

    @staticmethod
    def forward(a, v):
        return a @ v, (v * v).sum()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g, h):
        a, v = ctx.saved_tensors
        return torch.outer(g, v), a.T @ g + 2 * h * v


class SortedValues(torch.autograd.Function):
    """Values and positions: the second output has no derivative and says so."""

    @staticmethod
    def forward(x):
        values, positions = torch.sort(x)
        return values, positions

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, g, _):
        (positions,) = ctx.saved_tensors
        return torch.zeros_like(g).scatter(0, positions, g)


SHAPE_KEEPING = {
    "with a jvp": WithJvp.apply,
    "only a backward": OnlyBackward.apply,
    "legacy forward": lambda x: Legacy.apply(x, 3),
    "legacy forward with a jvp": lambda x: LegacyWithJvp.apply(x, 3),
}


@pytest.mark.parametrize("name", SHAPE_KEEPING)
def test_first_derivative_is_right(name):
    f, x, t = SHAPE_KEEPING[name], randn(3), randn(3)
    assert_close(jacfwd(f)(x), torch.diag(3 * x**2))
    out, out_dot = jvp(f, (x,), (t,))
    assert_close(out, x**3)
    assert_close(out_dot, 3 * x**2 * t)
    assert_close(linearize(f, x)[1](t), 3 * x**2 * t)


@pytest.mark.parametrize("name", SHAPE_KEEPING)
def test_second_derivative_is_right_and_not_zero(name):
    f, x = SHAPE_KEEPING[name], randn(3)
    expected = torch.zeros(3, 3, 3, dtype=F64)
    for i in range(3):
        expected[i, i, i] = 6 * x[i]
    assert_close(jacfwd(jacfwd(f))(x), expected)


@pytest.mark.parametrize("name", SHAPE_KEEPING)
def test_derivative_inside_a_chain_is_right(name):
    f, x = SHAPE_KEEPING[name], randn(2, 3)

    def chain(g):
        return lambda x: g(x.sin() * x.sum()).cumsum(1)

    assert_close(jacfwd(chain(f))(x), central_jacobian(chain(lambda y: y**3), x))


@pytest.mark.parametrize("name", ["with a jvp", "only a backward"])
def test_vmap_over_jacfwd_equals_a_loop(name):
    class Vmapped(WithJvp if name == "with a jvp" else OnlyBackward):
        generate_vmap_rule = True

    x = randn(4, 3)
    assert_close(vmap(jacfwd(Vmapped.apply))(x), torch.diag_embed(3 * x**2))


class Tripled(torch.autograd.Function):
    """Has both."""

    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    def backward(ctx, g):
        return 3 * g

    @staticmethod
    def jvp(ctx, t):
        return 3 * t


def _unused(x):
    OnlyBackward.apply(x)
    return Tripled.apply(x)


BESIDE = {
    "a function without a jvp": lambda x: OnlyBackward.apply(Tripled.apply(x)),
    "an unused function without a jvp": _unused,
    "an operator without a forward derivative": lambda x: torch.cdist(
        Tripled.apply(x)[:, None], x[:1, None] + 1
    ),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("transform", [jacfwd, jacobian, linearize, jvp])
def test_a_jvp_beside_what_has_no_forward_derivative(transform, name):
    f, x = BESIDE[name], randn(3)
    expected = central_jacobian(f, x)
    for _ in range(3):
        if transform in (jacfwd, jacobian):
            assert_close(transform(f)(x), expected)
        elif transform is linearize:
            assert_close(linearize(f, x)[1](x), expected @ x)
        else:
            assert_close(jvp(f, (x,), (x,))[1], expected @ x)


def _along(g):
    return lambda x: torch.func.jvp(g, (x,), (x.cos(),))[1]


@pytest.mark.parametrize("inner", [torch.func.jacfwd, torch.func.hessian, _along])
@pytest.mark.parametrize("transform", [jacfwd, jacobian, linearize, jvp])
def test_a_jvp_within_forward_mode_of_torch_func(transform, inner):
    class Cubed(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * g

        @staticmethod
        def jvp(ctx, t):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * t

    x = randn(3)
    f, plain = inner(lambda x: Cubed.apply(x.sin()).exp()), inner(lambda x: (x.sin() ** 3).exp())
    for _ in range(3):
        if transform in (jacfwd, jacobian):
            assert_close(transform(f)(x), transform(plain)(x))
        elif transform is linearize:
            assert_close(linearize(f, x)[1](x), linearize(plain, x)[1](x))
        else:
            assert_close(jvp(f, (x,), (x,))[1], jvp(plain, (x,), (x,))[1])


@pytest.mark.parametrize("transform", [jacfwd, jacobian])
def test_a_function_with_a_jvp_writes_and_draws_once(transform):
    counts = torch.zeros((), dtype=F64)

    def f(x):
        with torch.no_grad():
            counts.add_(1)
        return Tripled.apply(x * counts) * torch.rand(())

    x = randn(3)
    for number in range(1, 4):
        torch.manual_seed(5)
        actual = transform(f, randomness="same")(x)
        end = torch.get_rng_state()
        torch.manual_seed(5)
        drawn = torch.rand(())
        assert torch.equal(torch.get_rng_state(), end)
        assert counts == number
        assert_close(actual, 3 * number * drawn * torch.eye(3, dtype=F64))


def _regular(x):
    return x + 4 * torch.eye(3, dtype=F64)


# PyTorch's forward derivatives of these have wrong derivatives, or none, as they overwrite what they saved.
WRONG_TWICE = {
    "batch norm": lambda x: torch.nn.functional.batch_norm(x, None, None, training=True),
    "layer norm": lambda x: torch.nn.functional.layer_norm(x, (3,)),
    "instance norm": lambda x: torch.nn.functional.instance_norm(x[None]),
    "slogdet": lambda x: torch.linalg.slogdet(_regular(x))[1],
    "solve": lambda x: torch.linalg.solve(_regular(x), x),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(0),
    "logsumexp": lambda x: x.logsumexp(-1),
    "logcumsumexp": lambda x: x.logcumsumexp(0),
    "norm": lambda x: x.norm(dim=-1),
    "renorm": lambda x: x.renorm(2, 0, 0.5),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(*[x[None]] * 3),
}


@pytest.mark.parametrize("name", WRONG_TWICE)
def test_a_jvp_beside_what_pytorch_differentiates_wrongly_twice(name):
    def f(x):
        return Tripled.apply(WRONG_TWICE[name](x)).sin()

    x, t = randn(3, 3), randn(3, 3)

    def first(x):
        return jacrev(f)(x).flatten(-2) @ t.flatten()

    expected = central_jacobian(first, x)
    for outer in (jacfwd, jacrev):
        for _ in range(3):
            assert_close(outer(lambda x: jvp(f, (x,), (t,))[1])(x), expected)
            assert_close(outer(lambda x: jacfwd(f)(x).flatten(-2) @ t.flatten())(x), expected)
    leaf = x.clone().requires_grad_()
    (row,) = torch.autograd.grad(jvp(f, (leaf,), (t,))[1].sum(), leaf)
    assert_close(row, expected.reshape(-1, 3, 3).sum(0))


def test_a_jvp_that_differs_from_the_forward_is_honoured():
    x = randn(3)
    assert_close(jacfwd(LyingJvp.apply)(x), 10 * torch.eye(3, dtype=F64))
    assert torch.equal(jvp(LyingJvp.apply, (x,), (x,))[0], torch.round(x) + x**2)


def test_a_backward_that_differs_from_the_forward_is_honoured():
    x = randn(3)
    assert_close(jacfwd(LyingBackward.apply)(x), 7 * torch.eye(3, dtype=F64))
    assert_close(linearize(LyingBackward.apply, x)[1](x), 7 * x)


def test_several_inputs_and_outputs_go_by_the_transpose_of_backward():
    a, v = randn(2, 3), randn(3)
    jac = jacfwd(TwoInTwoOut.apply, argnums=(0, 1))(a, v)
    assert_close(jac[0][0], torch.einsum("ij,k->ijk", torch.eye(2, dtype=F64), v))
    assert_close(jac[0][1], a)
    assert_close(jac[1][0], torch.zeros(2, 3, dtype=F64))
    assert_close(jac[1][1], 2 * v)


def test_only_one_of_several_inputs_active_is_right():
    a, v = randn(2, 3), randn(3)
    assert_close(jacfwd(lambda v: TwoInTwoOut.apply(a, v)[0])(v), a)
    assert_close(
        jacfwd(lambda a: TwoInTwoOut.apply(a, v)[1] * a.sum())(a), (v * v).sum().expand(2, 3)
    )


def test_outputs_marked_as_not_differentiable_have_no_derivative():
    x = torch.tensor([3.0, 1.0, 2.0], dtype=F64)

    def f(x):
        values, positions = SortedValues.apply(x)
        assert positions.tolist() == [1, 2, 0]
        return values * positions

    expected = torch.tensor(
        [
            [0.0, 1.0, 0.0],  # smallest is x[1], times position 1
            [0.0, 0.0, 2.0],  # then x[2], times position 2
            [0.0, 0.0, 0.0],  # then x[0], times position 0
        ],
        dtype=F64,
    )
    assert_close(jacfwd(f)(x), expected)


def test_forward_is_not_recorded():
    """In forward, operators without any derivative are allowed: the rule replaces them."""

    class NumpySin(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return torch.from_numpy(__import__("numpy").sin(x.detach().numpy()))

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])

        @staticmethod
        def backward(ctx, g):
            return ctx.saved_tensors[0].cos() * g

    x = randn(3)
    assert_close(jacfwd(NumpySin.apply)(x), torch.diag(x.cos()))


def test_needs_input_grad_tells_the_active_inputs():
    seen = []

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            ctx.save_for_backward(x, y)
            return x * y

        @staticmethod
        def backward(ctx, g):
            seen.append(tuple(ctx.needs_input_grad))
            x, y = ctx.saved_tensors
            return g * y, (g * x if ctx.needs_input_grad[1] else None)

    x, y = randn(3), randn(3)
    assert_close(jacfwd(Product.apply)(x, y), torch.diag(y))
    assert all(flags[0] for flags in seen)
    assert seen


def test_a_plain_call_of_the_function_with_constants_inside_is_a_constant():
    c = randn(3)
    assert_close(jacfwd(lambda x: x * OnlyBackward.apply(c))(randn(3)), torch.diag(c**3))


def test_a_backward_that_uses_none_as_zero_is_accepted():
    class First(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2, None

    x, y = randn(3), randn(3)
    jx, jy = jacfwd(First.apply, argnums=(0, 1))(x, y)
    assert_close(jx, 2 * torch.eye(3, dtype=F64))
    assert torch.equal(jy, torch.zeros(3, 3, dtype=F64))


# ---- torch.library ----


@torch.library.custom_op("pushforward_tests::cube_sum", mutates_args=())
def cube_sum(x: Tensor, scale: float) -> Tensor:
    return scale * (x**3).sum(-1)


@cube_sum.register_fake
def _(x, scale):
    return x.new_empty(x.shape[:-1])


def _setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])
    ctx.scale = inputs[1]


cube_sum.register_autograd(
    lambda ctx, g: (3 * ctx.scale * ctx.saved_tensors[0] ** 2 * g.unsqueeze(-1), None),
    setup_context=_setup,
)


@torch.library.custom_op("pushforward_tests::no_derivative", mutates_args=())
def no_derivative(x: Tensor) -> Tensor:
    return x**3


def test_a_library_operator_with_register_autograd_is_right():
    x = randn(2, 3)
    jac = jacfwd(lambda x: cube_sum(x, 2.0))(x)
    assert_close(jac, central_jacobian(lambda x: 2 * (x**3).sum(-1), x))


def test_a_library_operator_with_register_autograd_is_right_at_second_order():
    x = randn(3)
    assert_close(jacfwd(jacfwd(lambda x: cube_sum(x, 2.0)))(x), torch.diag(12 * x))


def test_a_library_operator_called_through_torch_ops_is_right():
    x, t = randn(3), randn(3)
    f = lambda x: torch.ops.pushforward_tests.cube_sum(x.sin(), 1.0)  # noqa: E731
    _, out_dot = jvp(f, (x,), (t,))
    assert_close(out_dot, (3 * x.sin() ** 2 * x.cos() * t).sum())


def test_a_library_operator_without_any_derivative_is_refused_by_name():
    with pytest.raises(
        (NotImplementedError, RuntimeError), match=r"pushforward_tests\W+no_derivative"
    ):
        jacfwd(lambda x: no_derivative(x))(randn(3))


def test_the_refusal_says_how_to_declare_a_rule():
    with pytest.raises((NotImplementedError, RuntimeError), match=r"(?i)rule"):
        jvp(lambda x: no_derivative(x), (randn(3),), (randn(3),))


def test_a_library_operator_without_derivative_may_be_used_on_constants():
    c = randn(3)
    assert_close(jacfwd(lambda x: x * no_derivative(c))(randn(3)), torch.diag(c**3))


class OwnError(Exception):
    """Of the user's."""


def cube(look):
    """Return x³, whose backward lets ``look`` see its cotangent first."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x * x

        @staticmethod
        def backward(ctx, y_bar):
            look(y_bar)
            return y_bar * 3 * ctx.saved_tensors[0] ** 2

    return Cube.apply


def raising(error, raises):
    def look(y_bar):
        if raises(y_bar):
            raise error("by the backward")

    return cube(look)


SECOND = {
    "jacfwd of jacfwd": lambda f, x: jacfwd(jacfwd(f))(x),
    "jacrev of jacrev": lambda f, x: jacrev(jacrev(f))(x),
    "jacfwd of jacrev": lambda f, x: jacfwd(jacrev(f))(x),
    "jacrev of jacfwd": lambda f, x: jacrev(jacfwd(f))(x),
    "hessian": lambda f, x: hessian(lambda x: f(x).sum())(x),
}


@pytest.mark.parametrize("error", [OwnError, ValueError, RuntimeError, NotImplementedError])
@pytest.mark.parametrize("second", SECOND)
def test_an_exception_of_a_backward_that_is_asked_for_a_second_derivative_is_told(second, error):
    x = torch.tensor([0.5, 1.5], dtype=F64)
    always = raising(error, lambda y_bar: True)
    for first in (jacfwd, jacrev, jacobian):
        with pytest.raises((error, NotImplementedError), match="by the backward"):
            first(always)(x)
    not_twice = raising(error, lambda y_bar: y_bar.requires_grad)
    for func in (always, not_twice):
        with pytest.raises((error, NotImplementedError), match="by the backward"):
            SECOND[second](func, x)
    assert_close(jacrev(not_twice)(x), torch.diag(3 * x * x))


class ProductAndSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y, x + y

    @staticmethod
    def backward(ctx, of_product, of_sum):
        x, y = ctx.saved_tensors
        return of_product * y + of_sum, of_product * x + of_sum


@pytest.mark.parametrize("is_first", [True, False])
def test_a_function_of_several_outputs_does_not_call_what_lies_behind_it(is_first):
    calls = []
    cubed = cube(lambda y_bar: calls.append(y_bar.shape))

    def f(x):
        y = cubed(x)
        product, _ = ProductAndSum.apply(x, y) if is_first else ProductAndSum.apply(y, x)
        return product.sum()

    x = torch.tensor([0.5, 1.5], dtype=F64)
    assert_close(jacrev(f)(x), 4 * x**3)
    assert len(calls) == 1


@pytest.mark.parametrize("transform", [jacfwd, jacrev, jacobian])
def test_a_function_of_several_outputs_of_a_captured_tensor_that_was_written_to(transform):
    captured = torch.ones(3, dtype=F64)

    def f(x):
        captured[0] += x[0]
        return ProductAndSum.apply(x, captured.cos())

    def alike(x):
        return x * torch.cat([1 + x[:1], torch.ones(2, dtype=F64)]).cos()

    x = torch.tensor([0.5, 1.5, -1.0], dtype=F64)
    expected = torch.autograd.functional.jacobian(alike, x)
    for _ in range(3):
        captured.fill_(1)
        assert_close(transform(f)(x)[0], expected)


class Detaching(torch.autograd.Function):
    """Cubes; its backward does not let second derivatives through."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return (3 * x**2 * cotangent).detach()

    @staticmethod
    def vmap(info, in_dims, x):
        return Detaching.apply(x), in_dims[0]


@pytest.mark.parametrize("batched", [vmap, torch.func.vmap])
@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_under_vmap_only_second_derivatives_are_refused(transform, batched):
    """Also where autograd might go back over the result, and where it does."""
    x = torch.rand(2, 3, dtype=torch.float64)
    expected = torch.diag_embed(3 * x**2)
    assert_close(batched(transform(Detaching.apply))(x), expected)
    found = batched(transform(Detaching.apply))(x.clone().requires_grad_())
    assert_close(found, expected)
    for second in (
        lambda: found.sum().backward(),
        lambda: batched(jacfwd(transform(Detaching.apply)))(x),
        lambda: batched(hessian(lambda x: Detaching.apply(x).sum()))(x),
    ):
        with pytest.raises(MissingRuleError, match="cannot be differentiated, as it"):
            second()
