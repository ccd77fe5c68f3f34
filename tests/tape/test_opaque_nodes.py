"""Nodes that no rule of ours covers: they are called, to any order, in both modes, and at every call."""

import threading
from itertools import product

import pytest
import torch
from oracles import assert_close, central_jacobian
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pushforward as pf
from pushforward import MissingRuleError
from pushforward.tape import black_boxes

F64 = torch.float64


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=F64)


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, y_bar):
        return 2 * ctx.saved_tensors[0] * y_bar


class Detaching(OnceDifferentiable):
    @staticmethod
    def backward(ctx, y_bar):
        return (2 * ctx.saved_tensors[0] * y_bar).detach()


class Reading(OnceDifferentiable):
    @staticmethod
    def backward(ctx, y_bar):
        pairs = zip(ctx.saved_tensors[0], y_bar, strict=True)
        return torch.stack([2 * x * g.item() for x, g in pairs])


class ByNumPy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach().numpy()
        return torch.from_numpy(ctx.x**2)

    @staticmethod
    def backward(ctx, y_bar):
        return torch.from_numpy(2 * ctx.x * y_bar.numpy())


class WithoutGrad(OnceDifferentiable):
    @staticmethod
    @torch.no_grad()
    def backward(ctx, y_bar):
        return 2 * ctx.saved_tensors[0] * y_bar


HIDING = [OnceDifferentiable, Detaching, Reading, ByNumPy, WithoutGrad]


@pytest.mark.parametrize("function", HIDING)
def test_a_backward_that_cannot_be_differentiated_gives_right_first_derivatives(function):
    f, x, v = function.apply, rand(3), rand(3)
    for _ in range(3):
        assert_close(pf.jacfwd(f)(x), torch.diag(2 * x))
        assert_close(pf.jacrev(f)(x), torch.diag(2 * x))
        assert_close(pf.jvp(f, (x,), (v,))[1], 2 * x * v)
        assert_close(pf.linearize(f, x)[1](v), 2 * x * v)
        assert_close(pf.vjp(f, x)[1](v)[0], 2 * x * v)
        assert_close(pf.jacobian(f, mode="forward")(x), torch.diag(2 * x))


@pytest.mark.parametrize("function", HIDING)
def test_with_gradients_followed_the_first_derivative_is_right(function):
    f, x = function.apply, rand(3)
    followed = x.clone().requires_grad_()
    for transform in (pf.jacfwd, pf.jacrev):
        got = transform(f)(followed)
        assert_close(got.detach(), torch.diag(2 * x))
        with pytest.raises(RuntimeError):
            got.sum().backward()


@pytest.mark.parametrize("function", HIDING[:2])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3)])
def test_of_every_shape(function, shape):
    x = rand(*shape)
    size = x.numel()
    for transform in (pf.jacfwd, pf.jacrev):
        got = transform(function.apply)(x)
        assert got.shape == shape + shape
        assert_close(got.reshape(size, size), torch.diag(2 * x.reshape(size)))


SECOND = {
    "forward over reverse": lambda f: pf.jacfwd(pf.jacrev(f)),
    "reverse over forward": lambda f: pf.jacrev(pf.jacfwd(f)),
    "forward over forward": lambda f: pf.jacfwd(pf.jacfwd(f)),
    "reverse over reverse": lambda f: pf.jacrev(pf.jacrev(f)),
    "hessian": lambda f: pf.hessian(lambda x: f(x).sum()),
    "of a sum": lambda f: pf.hessian(lambda x: (f(x) + x**3).sum()),
    "of a product": lambda f: pf.hessian(lambda x: (f(x) * x).sum()),
    "captured": lambda f: pf.jacfwd(
        lambda z: pf.grad(lambda x: f(x * z).sum())(torch.ones(2).to(z))
    ),
}


@pytest.mark.parametrize("function", HIDING)
@pytest.mark.parametrize("name", SECOND)
def test_its_second_derivative_raises_and_is_never_zero(function, name):
    for _ in range(3):
        with pytest.raises((RuntimeError, NotImplementedError)):
            SECOND[name](function.apply)(rand(2))


@pytest.mark.parametrize("function", [OnceDifferentiable, WithoutGrad])
def test_the_refusal_names_the_function(function):
    with pytest.raises(MissingRuleError, match=rf"{function.__name__}.*second derivative"):
        pf.jacfwd(pf.jacrev(function.apply))(rand(2))


class Relu(torch.autograd.Function):
    """Saves its input and has a second derivative that is zero in truth."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, y_bar):
        return y_bar * (ctx.saved_tensors[0] > 0)


def test_a_backward_that_is_constant_has_a_second_derivative_of_zero():
    x = rand(3) - 0.5
    for second in (
        pf.hessian(lambda x: Relu.apply(x).sum()),
        pf.jacrev(pf.grad(lambda x: Relu.apply(x).sum())),
    ):
        assert_close(second(x), torch.zeros(3, 3, dtype=F64))
    f = lambda x: (Relu.apply(x) ** 3).sum()  # noqa: E731
    assert_close(pf.hessian(f)(x), torch.diag(6 * x.clamp(min=0)))


class Placed(torch.autograd.Function):
    """Arguments that are no tensors, or have no derivative, stand before those that have."""

    @staticmethod
    def forward(ctx, name, constant, factor, x, items, y):
        ctx.save_for_backward(x, y)
        ctx.factor = factor
        return factor * x * y

    @staticmethod
    def backward(ctx, z_bar):
        x, y = ctx.saved_tensors
        return None, None, None, ctx.factor * z_bar * y, None, ctx.factor * z_bar * x


def test_arguments_of_other_kinds_come_first():
    def f(x, y):
        return Placed.apply("name", torch.ones(1), 2.0, x, [1], y)

    x, y = rand(3), rand(3)
    for transform in (pf.jacfwd, pf.jacrev):
        of_x, of_y = transform(f, (0, 1))(x, y)
        assert_close(of_x, torch.diag(2 * y))
        assert_close(of_y, torch.diag(2 * x))
        assert_close(transform(lambda y: f(x, y))(y), torch.diag(2 * x))
    assert_close(
        pf.hessian(lambda x, y: f(x, y).sum(), (0, 1))(x, y)[0][1], 2 * torch.eye(3, dtype=F64)
    )


class Writing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x.mul_(2)
        _mark(ctx, x)
        return x

    @staticmethod
    def backward(ctx, y_bar):
        return 2 * y_bar


def _mark(ctx, x):
    ctx.mark_dirty(x)


def test_a_helper_marks_the_input_dirty():
    def f(x):
        y = x.clone()
        Writing.apply(y)
        return y * x

    x = rand(3)
    assert_close(pf.jacfwd(f)(x), torch.diag(4 * x))
    assert_close(pf.jacrev(f)(x), torch.diag(4 * x))


class JvpOnly(torch.autograd.Function):
    @staticmethod
    def forward(x, power):
        return x**power

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(inputs[0])
        ctx.power = inputs[1]

    @staticmethod
    def jvp(ctx, x_dot, _):
        return ctx.power * ctx.saved_tensors[0] ** (ctx.power - 1) * x_dot


def test_a_function_with_a_jvp_alone_serves_both_modes_to_any_order():
    def f(x):
        return JvpOnly.apply(x.sin(), 3)

    def g(x):
        return x.sin() ** 3

    x = rand(3)
    for _ in range(3):
        for transform in (pf.jacfwd, pf.jacrev, pf.jacobian):
            assert_close(transform(f)(x), transform(g)(x))
    assert_close(pf.jacfwd(pf.jacrev(f))(x), pf.jacfwd(pf.jacrev(g))(x))
    assert_close(pf.hessian(lambda x: f(x).sum())(x), pf.hessian(lambda x: g(x).sum())(x))
    assert_close(torch.func.jacrev(pf.jacfwd(f))(x), pf.jacrev(pf.jacfwd(g))(x))


def test_a_function_with_a_jvp_keeps_writes_to_the_input():
    def f(x):
        y = JvpOnly.apply(x, 3)
        x.mul_(2)
        return y * x

    x = rand(3)
    before = x.clone()
    assert_close(pf.jacfwd(f)(x), torch.diag(8 * before**3))
    assert_close(x, 2 * before)


def test_a_function_with_a_jvp_in_several_threads():
    x, found = rand(3), []
    expected = torch.diag(3 * x.sin() ** 2 * x.cos())

    def work():
        for _ in range(10):
            got = pf.jacfwd(lambda x: JvpOnly.apply(x.sin(), 3))(x)
            found.append(torch.allclose(got, expected))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 30


class WithBoth(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(inputs[0])
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx, y_bar):
        return 3 * ctx.saved_tensors[0] ** 2 * y_bar

    @staticmethod
    def jvp(ctx, x_dot):
        return 3 * ctx.saved_tensors[0] ** 2 * x_dot


class OnlyBackward(WithBoth):
    jvp = torch.autograd.Function.jvp

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output)


OURS = {"forward": pf.jacfwd, "reverse": pf.jacrev, "torch": torch.func.jacrev}


@pytest.mark.parametrize("function", [WithBoth, OnlyBackward])
@pytest.mark.parametrize(
    "names",
    [*product(OURS, repeat=1), *product(OURS, repeat=2), *product(OURS, repeat=3)],
    ids="-".join,
)
def test_nested_transforms(names, function):
    """With its own value in what is differentiated, and under vmap."""

    def f(x):
        return function.apply(x.sin()).cumsum(-1) * x.sum(-1, keepdim=True)

    def g(x):
        return (x.sin() ** 3).cumsum(-1) * x.sum(-1, keepdim=True)

    of_f, of_g = f, g
    for name in names:
        of_f, of_g = OURS[name](of_f), torch.func.jacfwd(of_g)
    x = rand(2)
    assert_close(of_f(x), of_g(x))
    xs = torch.stack([x, x + 1])
    assert_close(pf.vmap(of_f)(xs), torch.vmap(of_g)(xs))


def test_a_jvp_without_backward_is_refused_in_nested_transforms_that_need_it():
    f = lambda x: JvpOnly.apply(x, 3) * x  # noqa: E731
    with pytest.raises(pf.UnsupportedError, match="nested"):
        pf.jacfwd(pf.jacfwd(f))(rand(2))


# ----- Pieces that leave one node -----


def test_lstm_in_single_precision():
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 4).requires_grad_(False)
    x = torch.rand(5, 3)
    expected = torch.autograd.functional.jacobian(lambda x: lstm(x)[0], x)
    for transform in (pf.jacfwd, pf.jacrev, pf.jacobian):
        for _ in range(3):
            torch.testing.assert_close(transform(lambda x: lstm(x)[0])(x), expected)


def test_a_scripted_module_at_every_call():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    scripted, x = torch.jit.script(module), rand(3)
    expected = torch.autograd.functional.jacobian(module, x)
    for _ in range(4):
        assert_close(pf.jacfwd(scripted)(x), expected)
        assert_close(pf.jacrev(scripted)(x), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_traced_function_at_every_call():
    x = rand(3)
    traced = torch.jit.trace(lambda x: x.sin() * x, (x,))
    for _ in range(4):
        for transform in (pf.jacfwd, pf.jacrev):
            assert_close(transform(traced)(x), torch.diag(x.cos() * x + x.sin()))
    assert_close(pf.jacfwd(pf.jacrev(traced))(x).sum(0), torch.diag(2 * x.cos() - x * x.sin()))


def _cond(x):
    return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))


@pytest.mark.parametrize("sign", [1, -1])
def test_cond(sign):
    x = sign * (rand(3) + 0.1)
    expected = x.cos() if sign > 0 else -x.sin()
    for _ in range(3):
        assert_close(pf.jacfwd(_cond)(x), torch.diag(expected))
        assert_close(pf.jacrev(_cond)(x), torch.diag(expected))


def test_checkpoint():
    def f(x):
        return checkpoint(lambda x: x.sin().exp() * x, x, use_reentrant=False)

    def g(x):
        return x.sin().exp() * x

    x = rand(3)
    for _ in range(3):
        assert_close(pf.jacfwd(f)(x), pf.jacfwd(g)(x))
        assert_close(pf.jacrev(f)(x), pf.jacfwd(g)(x))
    assert_close(pf.jacfwd(pf.jacrev(f))(x), pf.jacfwd(pf.jacrev(g))(x))


@pytest.mark.parametrize("transform", [pf.jacfwd, pf.jacrev, pf.hessian])
def test_a_checkpoint_is_not_computed_again_for_every_tensor(transform):
    calls = []

    def f(x):
        def region(x):
            calls.append(1)
            for _ in range(10):
                x = x.sin() * x.exp()
            return x.sum()

        return checkpoint(region, x, use_reentrant=False)

    x = rand(2)
    for _ in range(4):
        calls.clear()
        transform(f)(x)
        assert len(calls) <= 3


@pytest.mark.parametrize("transform", [pf.jacfwd, pf.jacrev])
def test_reentrant_checkpoints_are_refused_and_leave_parameters_alone(transform):
    """Their backward adds to the gradients of parameters: PyTorch's own ``autograd.grad`` refuses them, too."""
    layer = nn.Linear(3, 3).double()
    with pytest.raises(RuntimeError, match="use_reentrant"):
        transform(lambda x: checkpoint(layer, x, use_reentrant=True))(rand(3))
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention(is_causal):
    def f(q):
        return nn.functional.scaled_dot_product_attention(q, 2 * q, q.sin(), is_causal=is_causal)

    q = rand(1, 2, 3, 4)
    expected = central_jacobian(f, q)
    for transform in (pf.jacfwd, pf.jacrev):
        assert_close(transform(f)(q), expected)


def test_several_outputs_of_which_some_are_no_tensors():
    class Many(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2, None, x.argmax(), x**3

        @staticmethod
        def backward(ctx, a, b, c, d):
            (x,) = ctx.saved_tensors
            return 2 * x * a + 3 * x**2 * d

    def f(x):
        square, nothing, position, cube = Many.apply(x)
        assert nothing is None
        return square * cube + position

    x = rand(3)
    for _ in range(3):
        assert_close(pf.jacfwd(f)(x), torch.diag(5 * x**4))
        assert_close(pf.jacrev(f)(x), torch.diag(5 * x**4))
    assert_close(pf.hessian(lambda x: f(x).sum())(x), torch.diag(20 * x**3))


class Conjugating(torch.autograd.Function):
    """z ↦ z conj(z) c, real for complex, and back."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z * z.conj()).real

    @staticmethod
    def backward(ctx, y_bar):
        return 2 * ctx.saved_tensors[0] * y_bar


@pytest.mark.parametrize("transform", [pf.jacfwd, pf.jacrev])
def test_complex_to_real(transform):
    z = torch.complex(rand(3), rand(3))
    expected = transform(lambda z: (z * z.conj()).real)(z)
    assert_close(transform(Conjugating.apply)(z), expected)


def test_other_dtypes_and_devices():
    x = torch.rand(3)
    for _ in range(2):
        got = pf.jacfwd(lambda x: OnceDifferentiable.apply(x.double()).float())(x)
        assert got.dtype is torch.float32
        torch.testing.assert_close(got, torch.diag(2 * x))
    meta = torch.empty(3, device="meta")
    assert pf.jacfwd(OnceDifferentiable.apply)(meta).shape == (3, 3)


def test_operators_that_pytorch_cannot_differentiate_are_refused():
    for transform in (pf.jacfwd, pf.jacrev):
        with pytest.raises((NotImplementedError, RuntimeError)):
            transform(lambda x: torch.unique(x))(torch.tensor([3.0, 1.0, 2.0]))


_TARGETS = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0], dtype=F64)
_LABELS = torch.tensor([1.0, 0.0, 0.3, 1.0, 0.0], dtype=F64)
_ROWS = torch.linspace(-2, 2, 15, dtype=F64).sin().reshape(5, 3)
_WEIGHTS = torch.linspace(0.5, 2, 5, dtype=F64)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("loss", "target", "options"),
    [
        (F.binary_cross_entropy_with_logits, _LABELS, {}),
        (F.binary_cross_entropy_with_logits, _LABELS, {"weight": _WEIGHTS}),
        (F.binary_cross_entropy_with_logits, _LABELS, {"pos_weight": _WEIGHTS.flip(0)}),
        (
            F.binary_cross_entropy_with_logits,
            _LABELS,
            {"weight": _WEIGHTS, "pos_weight": _WEIGHTS.flip(0)},
        ),
        (F.hinge_embedding_loss, _TARGETS, {}),
        (F.hinge_embedding_loss, _TARGETS, {"margin": 0.4}),
    ],
)
def test_losses_that_write_in_place_under_vmap_are_no_black_boxes(loss, target, options, reduction):
    """A batch that lies last is written to through a view."""
    x = torch.linspace(-1, 3, 12, dtype=F64).cos().reshape(4, 3)

    def f(x):
        return loss(_ROWS @ x, target, reduction=reduction, **options)

    black_boxes.COUNTS.clear()
    for _ in range(3):
        values = torch.vmap(lambda x: pf.value_and_jacobian(f)(x)[0])(x)
        first = torch.vmap(pf.jacrev(f))(x)
        second = torch.vmap(pf.hessian(f))(x)
    assert not black_boxes.COUNTS
    for i, point in enumerate(x):
        assert_close(values[i], f(point))
        assert_close(first[i], torch.autograd.functional.jacobian(f, point))
        assert_close(second[i], torch.func.hessian(f)(point))


def test_losses_under_vmap_refuse_what_pytorch_refuses():
    with pytest.raises(ValueError, match="must be the same"):
        torch.vmap(pf.grad(lambda x: F.binary_cross_entropy_with_logits(x, _LABELS)))(
            torch.ones(2, 3)
        )


@pytest.mark.parametrize("transform", [pf.jacfwd, pf.jacrev, pf.jacobian])
def test_checkpoints_whose_result_is_written_to_below_a_view(transform):
    def f(x):
        y = checkpoint(lambda t: t.sin() * t, x * 2, use_reentrant=False)
        z = y * 1
        view = z[..., 0]
        z.mul_(y)
        return view, z.sum()

    x = torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(3, 2)
    expected = torch.autograd.functional.jacobian(f, x)
    for _ in range(3):
        torch.testing.assert_close(transform(f)(x), expected)
