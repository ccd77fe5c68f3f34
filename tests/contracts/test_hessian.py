"""hessian: against ``torch.autograd.functional.hessian``, nesting, batches, what it shares with jacfwd."""

import pytest
import torch
from doubles import F64, close, randn

REFERENCES = {
    "one input with axes": (lambda x: (3 * x**2).sum(), [(2, 3, 5)]),
    "three inputs and a kink": (
        lambda x, y, z: ((x.relu() * x) @ y.sin() @ z).sum(),
        [(2, 3), (3, 4), (4, 4)],
    ),
    "an input without relation": (lambda x, y: (x**2).sum(), [(2,), (3,)]),
    "no relation at all": (lambda x, y: torch.ones([], dtype=F64), [(2,), (3,)]),
    "mixed terms only": (lambda x, y: (x.sin() @ y) ** 2, [(3,), (3,)]),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_the_hessian_of_torch_autograd_functional(api, name):
    func, shapes = REFERENCES[name]
    inputs = tuple(randn(*shape) for shape in shapes)
    expected = torch.autograd.functional.hessian(func, inputs)
    close(api.hessian(lambda args: func(*args))(inputs), expected)
    close(api.hessian(func, argnums=tuple(range(len(inputs))))(*inputs), expected)


def test_a_function_with_axes_has_one_hessian_for_each_output(api):
    x = randn(3)
    expected = torch.diag_embed(torch.diag_embed(-x.sin()))
    close(api.hessian(torch.sin)(x), expected)


def test_pytrees_nest_output_then_input_then_input(api):
    x, y = randn(2), randn(2)
    result = api.hessian(lambda d: {"o": (d["x"] * d["y"]).sum()})({"x": x, "y": y})
    zero, one = torch.zeros(2, 2, dtype=F64), torch.eye(2, dtype=F64)
    close(result, {"o": {"x": {"x": zero, "y": one}, "y": {"x": one, "y": zero}}})


def test_vmap_of_a_hessian_equals_the_nested_reverse_mode(api):
    a, x = 0.1 * randn(8, 2, 2), randn(8, 20, 2)

    def loss(a, x, y):
        return ((y - (a @ x.T).T) ** 2).sum()

    expected = api.vmap(api.jacrev(api.jacrev(loss)))(a, x, x)
    close(api.vmap(api.hessian(loss))(a, x, x), expected)
    one = torch.autograd.functional.hessian(lambda a: loss(a, x[3], x[3]), a[3])
    close(expected[3], one)


@pytest.mark.parametrize("outer", ["jacfwd", "jacrev"])
@pytest.mark.parametrize("inner", ["jacfwd", "jacrev", "grad"])
def test_every_pair_of_modes_gives_the_hessian(api, outer, inner):
    x = randn(3)
    func = lambda x: (x.sin() * x.roll(1)).sum()  # noqa: E731
    expected = torch.autograd.functional.hessian(func, x)
    close(getattr(api, outer)(getattr(api, inner)(func))(x), expected)


def test_a_jacobian_of_a_hessian_is_the_third_derivative(api):
    x = randn(3)
    expected = torch.zeros(3, 3, 3, dtype=F64)
    expected[range(3), range(3), range(3)] = 24 * x
    close(api.jacfwd(api.hessian(lambda x: (x**4).sum()))(x), expected)
    close(api.jacrev(api.hessian(lambda x: (x**4).sum()))(x), expected)
