"""grad and grad_and_value: values, nesting, aux, attributes seen inside, cuts, modes around."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from doubles import F64, close, randn
from torch import Tensor


def autograd(func, *args: Tensor) -> Tensor:
    x = args[0].detach().clone().requires_grad_()
    return torch.autograd.grad(func(x, *args[1:]), x)[0]


def test_of_one_operator(api):
    x = randn()
    close(api.grad(torch.sin)(x), x.cos())


FUNCTIONS = {
    "a sum over all axes": (lambda x: torch.flatten(x).sum(), [(2, 3, 4)]),
    "a matrix product": (lambda x, y: (x @ y).sum(), [(3,), (3, 5)]),
    "a loss": (lambda x: F.cross_entropy(x, torch.tensor([1, 4])), [(2, 5)]),
    "a linear layer with an activation in place": (
        lambda x, w, b: F.linear(x, w, b).relu_().sum(),
        [(2, 3, 8), (16, 8), (16,)],
    ),
    "an operator in place": (lambda x: x.clone().sin_().sum(), [()]),
    "in place on a view": (lambda x: _on_view(x), [(3,)]),
    "in place on the base of a view": (lambda x: _on_base(x), [(3,)]),
    "in place on a view of everything": (lambda x: _on_full_view(x), [()]),
    "a masked assignment": (lambda x: _masked(x), [(20,)]),
    "a tensor made inside": (lambda x: (x * torch.tensor(2.0, dtype=F64)).sum(), [()]),
}


def _on_view(x):
    y = x.clone()
    y[0].sin_()
    return y.sum()


def _on_base(x):
    y = x.clone()
    first = y[0]
    y.sin_()
    return first


def _on_full_view(x):
    y = x.clone()
    y.view([]).sin_()
    return y


def _masked(x):
    y = x.clone()
    y[y > 0] = 0
    return y.sum()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_autograd(api, name):
    func, shapes = FUNCTIONS[name]
    args = [randn(*shape) for shape in shapes]
    close(api.grad(func)(*args), autograd(func, *args))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_grad_and_value_returns_the_value_second(api, name):
    func, shapes = FUNCTIONS[name]
    args = [randn(*shape) for shape in shapes]
    gradient, value = api.grad_and_value(func)(*args)
    close(gradient, autograd(func, *args))
    close(value, func(*args))


def test_a_masked_assignment_to_a_constant_without_axes(api):
    def f(x):
        constant = torch.ones(())
        constant[torch.zeros(()) > 0] = 0
        return x

    close(api.grad(f)(randn()), torch.tensor(1.0, dtype=F64))


@pytest.mark.parametrize(
    "attribute", ["shape", "dtype", "is_cuda", "device", "ndim", "is_leaf_like", "numel"]
)
def test_attributes_inside_are_those_of_the_argument(api, attribute):
    read = {"is_leaf_like": lambda x: x.is_contiguous(), "numel": lambda x: x.numel()}
    read = read.get(attribute, lambda x: getattr(x, attribute))
    x = randn(2, 3, 5)

    def f(y):
        assert read(y) == read(x)
        return y.sum()

    api.grad(f)(x)


@pytest.mark.parametrize("shape", [(), (0,), (4, 2)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_a_tensor_can_be_printed_inside(api, shape, dtype):
    seen = []

    def f(x):
        seen.append(repr(x))
        return x.sum()

    api.grad(f)(torch.zeros(shape, dtype=dtype))
    assert "ensor" in seen[0] or "Tracer" in seen[0]


def test_a_captured_tensor_prints_inside_as_outside(api):
    captured = torch.tensor([1.0, 2.0, 3.0])
    seen = []

    def f(x):
        seen.append(repr(captured))
        return x

    api.vjp(f, torch.ones(4))
    assert seen == [repr(captured)]


def test_values_inside_can_be_turned_into_lists(api):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    seen = []

    def f(x):
        seen.append(x.tolist())
        return (x**2).sum()

    close(api.grad(f)(x), 2 * x)

    def outer(x):
        seen.append(x.tolist())
        return api.grad(f)(x).sum()

    close(api.grad(outer)(x), torch.full((2, 2), 2.0))
    assert all(values == [[1.0, 2.0], [3.0, 4.0]] for values in seen)


def test_a_conjugate_inside_can_be_turned_into_a_list(api):
    x = torch.tensor([1.0 + 2.0j, 3.0 + 4.0j])

    def f(x):
        assert x.conj().tolist() == [1.0 - 2.0j, 3.0 - 4.0j]
        return (x * x.conj()).real.sum()

    close(api.grad(f)(x), 2 * x)


def test_the_conjugate_bit_is_seen_inside(api):
    def f(x):
        assert not x.is_conj()
        assert x.conj().is_conj()
        return x.conj().abs()

    x = torch.tensor(1 + 1j)
    close(api.grad(f)(x), x.sgn())


def test_a_seed_set_inside_gives_the_draws_of_the_plain_call(api):
    def f(x):
        torch.manual_seed(0)
        return x * torch.randn_like(x)

    x = randn()
    close(api.grad(f)(x), autograd(f, x))


def test_a_tensor_that_escapes_is_an_ordinary_one_afterwards(api):
    escaped = []

    def f(x):
        escaped.append(x.sin())
        return escaped[0] * 1

    x = randn()
    api.grad(f)(x)
    close(escaped[0].sum() + 0, x.sin())


# ---- Unrelated, aux ----


def test_an_input_or_output_without_relation_has_a_zero_gradient(api):
    tree = {"a": randn(3), "b": randn(2)}
    gradient = api.grad(lambda t: (t["a"] ** 2).sum())(tree)
    close(gradient, {"a": 2 * tree["a"], "b": torch.zeros(2, dtype=F64)})
    y = randn()
    close(api.grad(lambda x: y)(randn()), torch.tensor(0.0, dtype=F64))


def test_an_output_with_axes_is_refused(api):
    with pytest.raises(RuntimeError, match=r"scalar [Tt]ensor"):
        api.grad(torch.sin)(randn(3))


@pytest.mark.parametrize("output", [1.0, None, "abc"], ids=repr)
def test_an_output_that_is_no_tensor_is_refused(api, output):
    with pytest.raises(RuntimeError, match="xpected f"):
        api.grad(lambda x: output)(randn(3))


def test_aux_is_returned_beside_gradient_and_value(api):
    def f(x):
        return x.sin().sum(), {"a": x.cos(), "b": [x.tan()]}

    x = randn(3)
    aux = f(x)[1]
    close(api.grad(f, has_aux=True)(x), (x.cos(), aux))
    close(api.grad_and_value(f, has_aux=True)(x), (x.cos(), (x.sin().sum(), aux)))


@pytest.mark.parametrize("output", [lambda x: [x, x], lambda x: (x, x, x), lambda x: x])
def test_has_aux_wants_a_pair(api, output):
    with pytest.raises(RuntimeError, match="output of function f should be a tuple"):
        api.grad(output, has_aux=True)(randn())


# ---- Cutting the derivative, modes around ----


def shifted(x):
    with torch.no_grad():
        shift = x**2
    return x**2 - shift


def test_no_grad_outside_gives_a_gradient_without_history(api):
    x = randn().requires_grad_()
    with torch.no_grad():
        gradient = api.grad(torch.sin)(x)
    close(gradient, x.cos().detach())
    assert not gradient.requires_grad


def test_no_grad_inside_makes_a_constant_at_every_order(api):
    x = randn().requires_grad_()
    gradient = api.grad(shifted)(x)
    close(gradient.detach(), 2 * x.detach())
    close(torch.autograd.grad(gradient, x)[0], torch.tensor(2.0, dtype=F64))
    close(api.grad(api.grad(shifted))(x.detach()), torch.tensor(2.0, dtype=F64))


def test_no_grad_inside_and_outside(api):
    x = randn().requires_grad_()
    with torch.no_grad():
        gradient = api.grad(shifted)(x)
    close(gradient, 2 * x.detach())
    assert not gradient.requires_grad


def test_a_gradient_taken_inside_no_grad_is_a_constant(api):
    def f(x):
        with torch.no_grad():
            shift = api.grad(lambda x: 0.25 * x**4)(x)
        return x**3 - shift

    x = torch.tensor(1.5, dtype=F64, requires_grad=True)
    gradient = api.grad(f)(x)
    close(gradient.detach(), 3 * x.detach() ** 2)
    close(torch.autograd.grad(gradient, x)[0], 6 * x.detach())


def test_a_value_taken_inside_no_grad_is_a_constant(api):
    def f(x):
        with torch.no_grad():
            _, value = api.grad_and_value(lambda x: x**3)(x)
        return x**3 - value

    x = torch.tensor(1.6, dtype=F64, requires_grad=True)
    gradient = api.grad(f)(x)
    close(gradient.detach(), 3 * x.detach() ** 2)
    close(torch.autograd.grad(gradient, x)[0], 6 * x.detach())


def test_cuts_at_two_levels(api):
    def f(x):
        with torch.no_grad():
            shift = x**3
        return x**3 - shift

    def g(x):
        first = api.grad(f)(x)
        with torch.no_grad():
            shift = api.grad(f)(x)
        return first - shift

    x = randn().requires_grad_()
    gradient = api.grad(g)(x)
    close(gradient.detach(), 6 * x.detach())
    close(torch.autograd.grad(gradient, x)[0], torch.tensor(6.0, dtype=F64))


def test_detach_inside_makes_a_constant(api):
    x = randn()
    close(api.grad(lambda x: x**2 - x.detach() ** 2)(x), 2 * x)


MODES = {
    "inference mode": [torch.inference_mode],
    "inference mode and no_grad": [torch.inference_mode, torch.no_grad],
}


@pytest.mark.parametrize("modes", MODES)
def test_inference_mode_around_changes_nothing(api, modes):
    x, xs = randn(3), randn(5, 3)
    square = lambda x: (x**2).sum()  # noqa: E731
    cube = lambda x: (x**3).sum()  # noqa: E731
    with contextlib.ExitStack() as stack:
        for mode in MODES[modes]:
            stack.enter_context(mode())
        close(api.grad(square)(x), 2 * x)
        _, pull = api.vjp(square, x)
        close(pull(torch.ones((), dtype=F64)), (2 * x,))
        close(api.jvp(square, (x,), (torch.ones_like(x),))[1], (2 * x).sum())
        close(api.jacrev(lambda x: x**2)(x), (2 * x).diag())
        close(api.jacfwd(lambda x: x**2)(x), (2 * x).diag())
        close(api.vmap(api.grad(square))(xs), 2 * xs)
        close(api.grad(lambda x: api.vmap(square)(x).sum())(xs), 2 * xs)
        close(api.grad(api.grad(lambda x: x**3))(x[0]), 6 * x[0])
        close(api.jacrev(api.grad(cube))(x), (6 * x).diag())
        assert torch.is_inference_mode_enabled()
    assert not torch.is_inference_mode_enabled()


def test_inference_mode_inside_makes_a_constant(api):
    def f(x):
        with torch.inference_mode():
            constant = x**2
        return (x - constant).sum()

    x = randn(3)
    close(api.grad(f)(x), torch.ones(3, dtype=F64))
    with torch.inference_mode():
        close(api.grad(f)(x), torch.ones(3, dtype=F64))


def test_a_sparse_result_inside_is_differentiated(api):
    """A dense argument made sparse inside and read back."""
    x = randn(2, 3)

    def f(x):
        return (x.to_sparse().to_dense() ** 2).sum()

    close(api.grad(f)(x), 2 * x)
