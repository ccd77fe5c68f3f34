"""jacfwd, jacrev and jacobian: values, shapes, nesting, aux, outputs, chunks."""

from collections import OrderedDict, namedtuple
from functools import partial

import pytest
import torch
from doubles import F64, close, randn

import pushforward

Pair = namedtuple("Pair", ["a", "b"])


# ---- Values and shapes ----


def test_an_elementwise_function_has_a_diagonal_jacobian(jac):
    x = randn(3)
    close(jac(torch.sin)(x), x.cos().diag())


def test_axes_of_the_output_come_before_those_of_the_input(jac):
    x = randn(2, 3)
    close(jac(torch.sin)(x), x.flatten().cos().diag().reshape(2, 3, 2, 3))


def test_input_and_output_may_differ_in_number_and_axes(jac):
    x = randn(2, 4)
    result = jac(lambda x: x[1, :3, None] * 2)(x)
    expected = torch.zeros(3, 1, 2, 4, dtype=F64)
    expected[torch.arange(3), 0, 1, torch.arange(3)] = 2
    close(result, expected)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_the_identity_keeps_axes_of_size_one_and_no_axes(jac, shape):
    x = randn(*shape)
    close(jac(lambda x: x)(x), torch.ones(shape + shape, dtype=F64))


def test_a_function_of_no_axes_to_several(jac):
    close(
        jac(lambda x: torch.stack([x, 2 * x, x**2]))(torch.tensor(3.0)), torch.tensor([1.0, 2, 6])
    )


def test_repeated_positions_of_take_add_nothing_up_in_the_jacobian(jac):
    x = randn(5)
    result = jac(lambda x: torch.take(x, torch.tensor([1, 1, 4])))(x)
    expected = torch.zeros(3, 5, dtype=F64)
    expected[[0, 1, 2], [1, 1, 4]] = 1
    close(result, expected)


def test_a_branch_of_the_function_that_is_not_used_has_a_zero_jacobian(jac):
    x, y = randn(2, 3), randn(2)
    result = jac(lambda x, y: x.sin(), argnums=(0, 1))(x, y)
    assert isinstance(result, tuple)
    close(result[0], x.flatten().cos().diag().reshape(2, 3, 2, 3))
    close(result[1], torch.zeros(2, 3, 2, dtype=F64))


def test_an_output_that_is_a_captured_constant_has_a_zero_jacobian(jac):
    y = randn(2, 3)
    close(jac(lambda x: y)(randn(4)), torch.zeros(2, 3, 4, dtype=F64))


def test_second_derivatives_by_nesting(jac):
    x = randn(3)
    close(jac(jac(lambda x: x.sin().sum()))(x), (-x.sin()).diag())


def test_the_second_derivative_of_a_linear_function_is_zero(jac):
    w = randn(5, 3)
    close(jac(jac(lambda x: w @ x))(randn(3)), torch.zeros(5, 3, 3, dtype=F64))


def test_vmap_of_a_jacobian_gives_one_for_each_example(jac):
    x = randn(2, 3)
    close(pushforward.vmap(jac(torch.sin))(x), torch.diag_embed(x.cos()))


REFERENCES = {
    "one input": (lambda x: 3 * x**2, [(2, 3, 5)]),
    "two inputs": (lambda x, y: (x.cos() * x) @ y.sin(), [(2, 3), (3, 5)]),
    "several outputs": (lambda x, y: ((x * x) @ y, x @ (x.sum(1) * y), y.sum()), [(5, 3), (3, 5)]),
    "inputs as outputs": (lambda x, y: (x, y, x, y), [(2,), (3,)]),
    "outputs without axes": (lambda x, y: (x.sum(), y.sum(), x * y), [(3,), (3,)]),
    "an input without axes": (lambda x: torch.stack([x, x, x]), [()]),
    "without axes on both sides": (lambda x, y: (y.sum(), x * y), [(), (1,)]),
    "moved to its own device": (lambda x, y: (x * y, (x * y).to("cpu")), [(3,), (3,)]),
    "a default argument": (lambda x, y, z=3.0: x * y * z, [(3,), (3,)]),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_the_jacobian_of_torch_autograd_functional(jac, name):
    func, shapes = REFERENCES[name]
    inputs = tuple(randn(*shape) for shape in shapes)
    expected = torch.autograd.functional.jacobian(func, inputs)
    close(jac(lambda args: func(*args))(inputs), expected)


def test_an_argument_that_is_a_number_stays_one(jac):
    t = randn(3, 3)
    expected = torch.autograd.functional.jacobian(partial(torch.add, other=3), t)
    close(jac(torch.add)(t, 3), expected)


# ---- Nesting of the results ----


def two(x, y):
    return 2 * x + 3 * y, 4 * x + 5 * y


def eye(scale, n=3):
    return scale * torch.eye(n, dtype=F64)


def test_outputs_are_outside_and_argnums_inside(jac):
    x, y = randn(3), randn(3)
    close(jac(two)(x, y), (eye(2), eye(4)))
    close(jac(two, argnums=1)(x, y), (eye(3), eye(5)))
    close(jac(two, argnums=(0,))(x, y), ((eye(2),), (eye(4),)))
    close(jac(two, argnums=(1, 0))(x, y), ((eye(3), eye(2)), (eye(5), eye(4))))


def test_a_dictionary_of_outputs(jac):
    x, y = randn(3), randn(3)
    result = jac(lambda x, y: dict(zip(("l", "r"), two(x, y), strict=True)), argnums=(0, 1))(x, y)
    close(result, {"l": (eye(2), eye(3)), "r": (eye(4), eye(5))})


def test_pytrees_on_both_sides(jac):
    def f(a, b, c):
        a0, a1 = a
        return a0 + a1 * 2, {"foo": b * 3 + c * 4}

    x = randn()
    n = partial(torch.tensor, dtype=F64)
    args = ((x, x), x, x)
    close(jac(f)(*args), ((n(1.0), n(2.0)), {"foo": (n(0.0), n(0.0))}))
    close(jac(f, argnums=(0,))(*args), (((n(1.0), n(2.0)),), {"foo": ((n(0.0), n(0.0)),)}))
    close(
        jac(f, argnums=(0, 2))(*args),
        (((n(1.0), n(2.0)), n(0.0)), {"foo": ((n(0.0), n(0.0)), n(4.0))}),
    )


def test_a_dictionary_on_both_sides(jac):
    x, y = randn(3), randn(2)
    result = jac(lambda d: {"c": d["a"].sin(), "d": d["b"].cos()})({"a": x, "b": y})
    zero = partial(torch.zeros, dtype=F64)
    close(
        result,
        {
            "c": {"a": x.cos().diag(), "b": zero(3, 2)},
            "d": {"a": zero(2, 3), "b": (-y.sin()).diag()},
        },
    )


@pytest.mark.parametrize(
    "tree",
    [
        lambda x, y: [x, y],
        lambda x, y: (x, y),
        lambda x, y: {"x": x, "y": y},
        lambda x, y: OrderedDict(y=y, x=x),
        lambda x, y: Pair(x, y),
        lambda x, y: [(y, {"x": x, "out": [x, y]})],
    ],
    ids=["list", "tuple", "dict", "OrderedDict", "namedtuple", "nested"],
)
def test_containers_of_outputs_keep_their_types(jac, tree):
    x = randn(2, 3)
    result = jac(lambda x: tree(x * 2, x.sum()))(x)
    double = 2 * torch.eye(6, dtype=F64).reshape(2, 3, 2, 3)
    close(result, tree(double, torch.ones_like(x)))
    assert type(result) is type(tree(x, x))


# ---- Outputs that are refused, aux ----


@pytest.mark.parametrize("output", [None, ()], ids=repr)
def test_an_empty_output_is_refused(jac, output):
    with pytest.raises(RuntimeError, match="Expected f to be a function that has non-empty output"):
        jac(lambda x: output)(randn(3))


@pytest.mark.parametrize("output", [1, True, 12.2, "abc"], ids=repr)
def test_an_output_that_is_no_tensor_is_refused(jac, output):
    with pytest.raises(RuntimeError, match=r"xpected f\(\*primals\) to return only tensors"):
        jac(lambda x: output)(randn(3))
    with pytest.raises(RuntimeError, match=r"xpected f\(\*primals\) to return only tensors"):
        jac(lambda x: [x, {"a": output}])(randn(3))


def test_aux_is_returned_beside_the_jacobian(jac):
    x = randn(3)
    result, aux = jac(lambda x: (x.sin(), x.cos()), has_aux=True)(x)
    close(result, x.cos().diag())
    close(aux, x.cos())


def test_aux_may_be_a_pytree(jac):
    x = randn(3)
    result, aux = jac(lambda x: (x * 1, {"a": x.cos(), "b": [x.tan()]}), has_aux=True)(x)
    close(result, torch.eye(3, dtype=F64))
    close(aux, {"a": x.cos(), "b": [x.tan()]})


@pytest.mark.parametrize("output", [lambda x: x, lambda x: [x, x], lambda x: (x, x, x)])
def test_has_aux_wants_a_pair(jac, output):
    with pytest.raises(RuntimeError, match="output of function f should be a tuple"):
        jac(output, has_aux=True)(randn(3))


# ---- In place ----


def test_writing_into_an_argument_that_is_not_differentiated(jac):
    def f(x, y):
        y.copy_(x)
        return y

    close(jac(f)(randn(2), randn(2)), torch.eye(2, dtype=F64))


def test_writing_a_differentiated_argument_into_a_part_of_another(jac):
    def f(x, y, z):
        x[:2] = y
        return torch.vstack([(x**2).sum(), (z**3).sum()])

    x, y, z = randn(3), randn(2), randn(2)
    result = jac(f, argnums=(1, 2))(x, y.clone(), z.clone())
    by_y, by_z = torch.zeros(2, 1, 2, dtype=F64), torch.zeros(2, 1, 2, dtype=F64)
    by_y[0, 0] = 2 * y
    by_z[1, 0] = 3 * z**2
    close(result, (by_y, by_z))


# ---- Chunks of jacrev ----


def pairs(x, y):
    return (x.sin(), x + y), (x + 2, x.sum())


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 20, 1000])
def test_chunks_of_rows_change_nothing(api, chunk_size):
    x, y = randn(5, 2), randn(1, 2)
    whole = api.jacrev(pairs, argnums=(0, 1))(x, y)
    close(api.jacrev(pairs, argnums=(0, 1), chunk_size=chunk_size)(x, y), whole)


@pytest.mark.parametrize("chunk_size", [0, -2])
def test_a_chunk_size_below_one_is_refused(api, chunk_size):
    with pytest.raises(ValueError, match="jacrev: `chunk_size` should be greater than 0"):
        api.jacrev(pairs, chunk_size=chunk_size)(randn(3), randn(3))


def test_chunks_inside_chunks_inside_vmap(api):
    def f(x):
        return (x.sin(), x), (x + 2, x.sum())

    x = randn(4, 2)
    chunked = api.jacrev(api.jacrev(f, chunk_size=3), chunk_size=3)
    close(api.vmap(chunked)(x), api.vmap(api.jacrev(api.jacrev(f)))(x))


class ReadsItsCotangent(torch.autograd.Function):
    """The identity; its backward does what vmap cannot do."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, x_bar):
        x_bar.nonzero()
        return x_bar


def test_with_one_row_at_a_time_a_backward_may_do_what_vmap_cannot(api):
    x = randn(2, 2)
    result = api.jacrev(ReadsItsCotangent.apply, chunk_size=1)(x)
    close(result, torch.eye(4, dtype=F64).reshape(2, 2, 2, 2))
