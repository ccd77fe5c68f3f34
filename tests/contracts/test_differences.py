"""What ours does otherwise than torch.func, on purpose: each beside what torch.func does.

The table for users is docs/reference/differences.md. If PyTorch changes one of these, the test says so.
"""

import pytest
import torch
from doubles import F64, close, randn
from torch import Tensor

import pushforward

REVERSE = ["grad", "grad_and_value", "jacrev"]
JACOBIANS = ["jacfwd", "jacrev", "jacobian"]


def raises(func, *args, match: str | None = None, **kwargs) -> None:
    """torch.func refuses."""
    with pytest.raises(Exception, match=match):
        func(*args, **kwargs)


# ---- Arguments ----


@pytest.mark.parametrize("name", ["jacfwd", "jacrev", "hessian"])
def test_keyword_arguments_are_accepted(name):
    x, y = randn(3), randn(3)

    def f(x, *, y):
        return (x**2 * y).sum()

    raises(getattr(torch.func, name)(f), x, y=y, match="unexpected keyword")
    expected = (2 * y).diag() if name == "hessian" else 2 * x * y
    close(getattr(pushforward, name)(f)(x, y=y), expected)


@pytest.mark.parametrize("name", [*JACOBIANS, "grad", "hessian"])
def test_a_list_is_accepted_as_argnums(name):
    x = randn()
    if hasattr(torch.func, name):
        raises(getattr(torch.func, name)(torch.mul, argnums=[0]), x, x, match="int or Tuple")
    result = getattr(pushforward, name)(torch.mul, argnums=[0, 1])(x, 2 * x)
    zero, one = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
    expected = ((zero, one), (one, zero)) if name == "hessian" else (2 * x, x)
    close(result, expected)


@pytest.mark.parametrize("name", ["jacfwd", "hessian"])
def test_a_negative_argnum_is_not_zeros(name):
    x, y = torch.tensor(2.0), torch.tensor(3.0)
    f = lambda x, y: x * y**2  # noqa: E731
    close(getattr(torch.func, name)(f, argnums=-1)(x, y), torch.tensor(0.0))
    expected = torch.tensor(4.0) if name == "hessian" else torch.tensor(12.0)
    close(getattr(pushforward, name)(f, argnums=-1)(x, y), expected)


@pytest.mark.parametrize("name", [*JACOBIANS, "grad"])
def test_numbers_strings_and_none_in_a_differentiated_pytree_are_constants(name):
    x = randn()
    tree = {"x": x, "power": 3, "mode": "a", "none": None}

    def f(tree):
        return tree["x"] ** tree["power"]

    if hasattr(torch.func, name):
        raises(getattr(torch.func, name)(f), tree)
    result = getattr(pushforward, name)(f)(tree)
    close(result.pop("x"), 3 * x**2)
    assert result == {"power": None, "mode": None, "none": None}


@pytest.mark.parametrize("name", ["vjp", "jacrev", "jacfwd", "jvp"])
def test_sparse_arguments_are_refused_by_name(name):
    x = torch.eye(2, dtype=F64).to_sparse()
    f = lambda x: x.to_dense().sum()  # noqa: E731
    calls = {
        "vjp": lambda: pushforward.vjp(f, x),
        "jvp": lambda: pushforward.jvp(f, (x,), (x,)),
    }
    with pytest.raises(TypeError, match=f"{name}: .*sparse_coo.*expected a dense tensor"):
        calls.get(name, lambda: getattr(pushforward, name)(f)(x))()


# ---- aux, outputs ----


@pytest.mark.parametrize("aux", [1, 1.0, "abc", None, [1, {"a": "b"}]], ids=repr)
@pytest.mark.parametrize("name", [*JACOBIANS, "grad", "grad_and_value"])
def test_aux_may_hold_anything(name, aux):
    x = randn()
    f = lambda x: (x.sin(), aux)  # noqa: E731
    if hasattr(torch.func, name) and aux is not None:
        raises(getattr(torch.func, name)(f, has_aux=True), x, match="Expected tensors")
    first, second = getattr(pushforward, name)(f, has_aux=True)(x)
    close(first, x.cos())
    assert (second[1] if name == "grad_and_value" else second) == aux


def test_aux_of_vjp_and_jvp_may_hold_anything():
    x = randn()
    f = lambda x: (x.sin(), ["abc", 3])  # noqa: E731
    assert pushforward.vjp(f, x, has_aux=True)[2] == ["abc", 3]
    assert pushforward.jvp(f, (x,), (x,), has_aux=True)[2] == ["abc", 3]


@pytest.mark.parametrize("name", JACOBIANS)
def test_an_integer_output_is_refused(name):
    with pytest.raises(TypeError, match="int64"):
        getattr(pushforward, name)(lambda x: x.long())(randn(3))


@pytest.mark.parametrize("name", JACOBIANS)
def test_the_dtype_is_the_promoted_one_in_every_mode(name):
    x = torch.ones(2)
    assert getattr(pushforward, name)(lambda x: x.double() ** 2)(x).dtype == F64
    assert getattr(pushforward, name)(lambda x: x.float() ** 2)(x.double()).dtype == F64
    assert torch.func.jacrev(lambda x: x.double() ** 2)(x).dtype == torch.float32


@pytest.mark.parametrize("name", REVERSE)
def test_a_gradient_has_the_dtype_of_its_argument(name):
    if name == "jacrev":
        pytest.skip("a Jacobian has the promoted dtype")
    x = torch.ones(2)
    result = getattr(pushforward, name)(lambda x: (x.double() ** 2).sum())(x)
    result = result[0] if name == "grad_and_value" else result
    assert result.dtype == torch.float32


# ---- Complex ----


@pytest.mark.parametrize("name", JACOBIANS)
def test_complex_inputs_and_outputs_are_accepted(name):
    z = torch.randn(2, dtype=torch.complex128)
    conj = lambda z: z.conj() * 1  # noqa: E731
    if hasattr(torch.func, name):
        raises(getattr(torch.func, name)(conj), z, match="Expected all inputs to be real")
        raises(
            getattr(torch.func, name)(lambda x: x * 1j), z.real, match="Expected all outputs to be"
        )
    result = getattr(pushforward, name)(conj)(z)
    eye = torch.eye(2, dtype=torch.complex128)
    close(result, torch.stack([eye, -1j * eye], dim=-1))
    close(getattr(pushforward, name)(lambda x: x * 1j)(z.real), 1j * eye)


def test_complex_gradients_follow_autograd():
    z = torch.randn(3, dtype=torch.complex128)
    f = lambda z: (z.exp() * z.conj()).abs().sum()  # noqa: E731
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(f(leaf), leaf)
    close(pushforward.grad(f)(z), expected)
    close(torch.func.grad(f)(z), expected)
    _, pull = pushforward.vjp(torch.exp, z)
    _, theirs = torch.func.vjp(torch.exp, z)
    close(pull(z), theirs(z))


def test_a_complex_output_has_no_gradient():
    with pytest.raises(TypeError, match="real"):
        pushforward.grad(lambda x: x * 1j)(randn())


# ---- What may happen inside ----


@pytest.mark.parametrize("name", [*JACOBIANS, "grad"])
def test_no_grad_inside_cuts_the_derivative_in_every_mode(name):
    def f(x):
        with torch.no_grad():
            shift = x**2
        return x**2 - shift

    x = randn()
    close(getattr(pushforward, name)(f)(x), 2 * x)
    close(torch.func.jacfwd(f)(x), torch.zeros((), dtype=F64))


@pytest.mark.parametrize("name", ["grad", "jacrev", "jacfwd", "grad_and_value"])
def test_a_captured_tensor_may_be_written_to(name):
    def run(api, captured, x):
        def f(x):
            captured.copy_(x)
            return (x * captured).sum()

        return getattr(api, name)(f)(x)

    x, captured = randn(3), randn(3)
    raises(run, torch.func, captured, x, match="mutate a captured Tensor")
    result = run(pushforward, captured, x)
    close(result[0] if name == "grad_and_value" else result, 2 * x)
    close(captured, x)


def test_requires_grad_and_autograd_grad_inside_are_accepted():
    def f(x):
        leaf = x.requires_grad_()
        return torch.autograd.grad(leaf.sin().sum(), leaf, create_graph=True)[0]

    x = randn(3)
    raises(torch.func.jacfwd(f), x, match="requires_grad_")
    close(pushforward.jacfwd(f)(x), (-x.sin()).diag())


CUTS = {
    "detach": lambda leaf: leaf.detach() ** 2,
    "no_grad": lambda leaf: _squared_without_grad(leaf),
}


def _squared_without_grad(leaf):
    with torch.no_grad():
        return leaf**2


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", JACOBIANS)
def test_cuts_hold_where_autograd_grad_is_called_inside(name, cut):
    def f(x):
        leaf = (x * 1).requires_grad_()
        return torch.autograd.grad((CUTS[cut](leaf) * leaf).sum(), leaf, create_graph=True)[0]

    close(getattr(pushforward, name)(f)(randn(3)), torch.zeros(3, 3, dtype=F64))


@pytest.mark.parametrize("operator", ["tanh", "exp", "sin", "sigmoid", "sqrt"])
@pytest.mark.parametrize("name", JACOBIANS)
def test_autograd_outside_and_inside_of_ours_gives_the_third_derivative(name, operator):
    """Operators that save their output, and one that saves its input."""
    func = getattr(torch, operator)

    def gradient(x):
        leaf = (x * 1).requires_grad_()
        return torch.autograd.grad(func(leaf).sum(), leaf, create_graph=True)[0]

    x = torch.rand(3, dtype=F64) + 0.5
    leaf = x.clone().requires_grad_()
    second = getattr(pushforward, name)(gradient)(leaf)
    (third,) = torch.autograd.grad(second.sum(), leaf)
    nested = func
    for _ in range(3):
        nested = torch.func.grad(lambda x, f=nested: f(x).sum())
    close(third, nested(x))


INSIDE = {
    "functional.jacobian": lambda x: torch.autograd.functional.jacobian(torch.sin, x),
    "functional.hessian": lambda x: torch.autograd.functional.hessian(torch.sin, x),
    "functional.vjp": lambda x: torch.autograd.functional.vjp(torch.sin, x)[1],
    "functional.jvp": lambda x: torch.autograd.functional.jvp(torch.sin, (x,), (x,))[1],
    "retain_grad": lambda x: _with_retained_gradient(x),
}


def _with_retained_gradient(x):
    y = x.sin()
    y.retain_grad()
    return y * 1


DERIVATIVES_INSIDE = {
    "functional.jacobian": lambda x: 0 * x,
    "functional.hessian": lambda x: 0 * x,
    "functional.vjp": lambda x: 0 * x,
    "functional.jvp": lambda x: 0 * x,
    "retain_grad": torch.cos,
}


@pytest.mark.parametrize("name", INSIDE)
def test_what_asks_autograd_about_the_argument_itself_works_here(name):
    """Without ``create_graph`` autograd's answers are constants."""
    x = randn()
    with pytest.raises(RuntimeError):
        torch.func.grad(INSIDE[name])(x)
    close(pushforward.grad(INSIDE[name])(x), DERIVATIVES_INSIDE[name](x))


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


@pytest.mark.parametrize("outer", ["grad", "jacfwd", "jacrev"])
@pytest.mark.parametrize("inner", ["grad", "jacfwd", "jacrev"])
def test_a_second_derivative_of_once_differentiable_is_no_silent_zero(outer, inner):
    """torch.func gives zero (its own test of this is marked as a failure to be mended)."""
    x = torch.tensor(2.0, dtype=F64)
    close(torch.func.grad(torch.func.grad(OnceOnly.apply))(x), torch.zeros((), dtype=F64))
    try:
        second = getattr(pushforward, outer)(getattr(pushforward, inner)(OnceOnly.apply))(x)
    except RuntimeError:
        return
    close(second, 6 * x)


@pytest.mark.parametrize("name", ["grad", "jacrev", "jacfwd", "hessian", "grad_and_value"])
def test_an_autograd_function_without_setup_context_works(name):
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, y_bar):
            return y_bar * ctx.saved_tensors[0].cos()

    x = randn()
    raises(getattr(torch.func, name)(Sine.apply), x, match="must override the setup_context")
    result = getattr(pushforward, name)(Sine.apply)(x)
    result = result[0] if name == "grad_and_value" else result
    close(result, -x.sin() if name == "hessian" else x.cos())


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_a_backward_may_do_what_vmap_cannot_at_any_chunk_size(chunk_size):
    class Reading(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * 2

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, x_bar):
            x_bar.nonzero()
            return 2 * x_bar

    x = randn(3)
    raises(torch.func.jacrev(Reading.apply, chunk_size=2), x, match="dynamic shape")
    result = pushforward.jacrev(Reading.apply, chunk_size=chunk_size)(x)
    close(result, 2 * torch.eye(3, dtype=F64))


@pytest.mark.parametrize("name", [*JACOBIANS, "hessian"])
def test_random_operators_in_reverse_mode_draw_once(name):
    """jacrev and hessian draw what the plain call draws; jacfwd and jacobian ask for ``randomness='same'``."""
    x = randn(3)

    def f(x):
        return (torch.nn.functional.dropout(x) ** 2).sum()

    options = {"randomness": "same"} if name in ("jacfwd", "jacobian") else {}
    torch.manual_seed(3)
    mask = (torch.nn.functional.dropout(torch.ones_like(x)) ** 2).detach()
    torch.manual_seed(3)
    result = getattr(pushforward, name)(f, **options)(x)
    close(result, 2 * mask.diag() if name == "hessian" else 2 * mask * x)


def test_linearize_is_followed_by_autograd_and_by_branches():
    w = randn(3).requires_grad_()
    x = randn(3)
    _, linear = pushforward.linearize(lambda x: (w * x).sin() if x.sum() > -100 else x, x)
    (gradient,) = torch.autograd.grad(linear(x).sum(), w)
    leaf = w.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad((leaf * x * (leaf * x).cos()).sum(), leaf)
    close(gradient, expected)


def test_a_cotangent_or_tangent_of_another_dtype_is_converted():
    x = torch.ones(3)
    _, pull = pushforward.vjp(torch.sin, x)
    assert pull(torch.ones(3, dtype=F64))[0].dtype == torch.float32
    _, linear = pushforward.linearize(torch.sin, x)
    assert linear(torch.ones(3, dtype=F64)).dtype == torch.float32


def test_no_grad_around_the_recording_only_cuts_the_history_of_the_result():
    """torch.func.vjp under no_grad returns a pullback whose results require grad by its cut graph."""
    x = torch.tensor(3.0, dtype=F64, requires_grad=True)
    with torch.no_grad():
        out, pull = pushforward.vjp(lambda x: x**2, x)
    assert not out.requires_grad
    close(pull(torch.ones((), dtype=F64))[0].detach(), torch.tensor(6.0, dtype=F64))


@pytest.mark.parametrize("transform", [pushforward.jacrev, pushforward.jacfwd])
def test_batches_of_solutions_are_right_without_grad_mode(transform):
    matrix, x = randn(3, 3) + 3 * torch.eye(3, dtype=F64), randn(2, 3, 3)

    def f(x: Tensor) -> Tensor:
        return torch.linalg.solve(matrix, x)

    inverse = torch.linalg.inv(matrix)
    expected = torch.einsum("ik,jl->ijkl", inverse, torch.eye(3, dtype=F64)).expand(2, 3, 3, 3, 3)
    for _ in range(3):
        with torch.no_grad():
            close(torch.func.vmap(transform(f))(x), expected)


@pytest.mark.skipif(
    not hasattr(torch.nn.modules, "linear_cross_entropy_options"), reason="new in PyTorch 2.13"
)
def test_second_derivatives_of_losses_in_chunks_are_not_zero():
    options = torch.nn.modules.linear_cross_entropy_options.LinearCrossEntropyOptions(
        allow_retain_graph=True, batch_chunk_size=2
    )
    weight, x, target = randn(4, 3), randn(4, 3), torch.tensor([0, 2, 1, 3])

    def loss(x: Tensor) -> Tensor:
        return torch.nn.functional.linear_cross_entropy(x, weight, target, options=options)

    def plain(x: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(x @ weight.mT, target)

    expected = torch.func.hessian(plain)(x)
    assert not torch.autograd.functional.hessian(loss, x).any()
    for _ in range(4):
        close(pushforward.hessian(loss)(x), expected)
        close(pushforward.jacfwd(pushforward.jacfwd(loss))(x), expected)


@pytest.mark.parametrize("name", JACOBIANS)
def test_vectors_that_svd_adds_stay_orthogonal_to_the_others(name):
    x = randn(3, 5)

    def all_rows(x: Tensor) -> Tensor:
        return torch.linalg.svd(x, full_matrices=True)[2]

    assert not torch.func.jacrev(all_rows)(x)[3:].any()
    moved = torch.einsum("ijkl,mj->imkl", getattr(pushforward, name)(all_rows)(x), all_rows(x))
    close(moved, -moved.transpose(0, 1))
