"""jacfwd: values, shapes, argnums, pytrees, aux, keyword arguments, chunks, randomness, dtypes."""

import functools
from collections import OrderedDict, namedtuple

import pytest
import torch
from doubles import F64, randn
from oracles import assert_close, assert_owned, central_jacobian
from torch import Tensor, nn

from pushforward import jacfwd, vmap

Point = namedtuple("Point", ["a", "b"])


# ---- The examples of PyTorch's documentation, only the import changed ----


def test_documentation_a_unary_function_gives_a_diagonal_jacobian():
    x = torch.randn(5)
    jacobian = jacfwd(torch.sin)(x)
    expected = torch.diag(torch.cos(x))
    assert torch.allclose(jacobian, expected)


def test_documentation_vmap_of_jacfwd_gives_batched_jacobians():
    x = torch.randn(64, 5)
    jacobian = vmap(jacfwd(torch.sin))(x)
    assert jacobian.shape == (64, 5, 5)
    assert torch.allclose(jacobian, torch.diag_embed(torch.cos(x)))


def test_documentation_has_aux_returns_the_output_as_well():
    x = torch.randn(5)

    def f(x):
        return x.sin()

    def g(x):
        result = f(x)
        return result, result

    jacobian_f, f_x = jacfwd(g, has_aux=True)(x)
    assert torch.allclose(f_x, f(x))
    assert torch.allclose(jacobian_f, torch.diag(x.cos()))


def test_documentation_jacfwd_over_jacrev_gives_the_hessian():
    def f(x):
        return x.sin().sum()

    x = torch.randn(5)
    hessian = jacfwd(torch.func.jacrev(f))(x)
    assert torch.allclose(hessian, torch.diag(-x.sin()))


def test_documentation_argnums_one_differentiates_the_second_argument():
    def f(x, y):
        return x + y**2

    x, y = torch.randn(5), torch.randn(5)
    jacobian = jacfwd(f, argnums=1)(x, y)
    expected = torch.diag(2 * y)
    assert torch.allclose(jacobian, expected)


def test_documentation_a_tuple_of_argnums_gives_a_tuple_of_jacobians():
    def f(x, y):
        return x + y**2

    x, y = torch.randn(5), torch.randn(5)
    jacobian = jacfwd(f, argnums=(0, 1))(x, y)
    expected_x = torch.diag(torch.ones_like(x))
    expected_y = torch.diag(2 * y)
    assert isinstance(jacobian, tuple)
    assert torch.allclose(jacobian[0], expected_x)
    assert torch.allclose(jacobian[1], expected_y)


# ---- Values and shapes ----


W = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(3))

FUNCTIONS = {
    "elementwise": (lambda x: x.sin() * x.exp(), (2, 3)),
    "matrix times vector": (lambda x: W @ x, (3,)),
    "batched linear and tanh": (lambda x: torch.tanh(x @ W.T), (2, 3)),
    "sum of all": (lambda x: x.sin().sum(), (2, 3)),
    "sum over one axis": (lambda x: (x * x).sum(dim=1), (2, 3)),
    "mean subtracted": (lambda x: x - x.mean(), (4,)),
    "softmax": (lambda x: x.softmax(dim=-1), (2, 3)),
    "transpose and reshape": (lambda x: (x.T.reshape(-1) * 2).exp(), (2, 3)),
    "outer product": (lambda x: torch.outer(x, x), (3,)),
    "cat and slices": (lambda x: torch.cat([x[1:], x[:2] * x[1:3]]), (4,)),
    "product with itself shifted": (lambda x: x[:-1] * x[1:], (5,)),
    "gather with repeats": (lambda x: x[torch.tensor([0, 2, 2, 1])] ** 2, (3,)),
    "cumulative sum": (lambda x: x.cumsum(0).sin(), (4,)),
    "matrix product with its transpose": (lambda x: x @ x.T, (2, 3)),
    "scalar to vector": (lambda x: x * torch.arange(3.0, dtype=F64).cos(), ()),
    "scalar to scalar": (lambda x: x.sin().exp(), ()),
    "size one": (lambda x: x.sin().expand(3) * 2, (1,)),
    "max": (lambda x: x.max(dim=1).values, (2, 3)),
    "where": (lambda x: torch.where(x > 0, x.sin(), x**3), (5,)),
    "norm": (lambda x: torch.linalg.norm(x), (3,)),
    "inverse": (lambda x: torch.linalg.inv(x + 3 * torch.eye(3, dtype=F64)), (3, 3)),
    "logsumexp": (lambda x: x.logsumexp(0), (4, 2)),
    "identity": (lambda x: x, (2, 3)),
    "constant": (lambda x: torch.ones(2, dtype=F64), (3,)),
    "three-dimensional": (lambda x: x.permute(2, 0, 1).sum(1) * 2, (2, 3, 2)),
    "einsum": (lambda x: torch.einsum("ij,kj->ik", x, W).sin(), (2, 3)),
    "polynomial with reuse": (lambda x: x * x + x * x * x - x / (1 + x * x), (4,)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jacobian_equals_central_differences(name):
    func, shape = FUNCTIONS[name]
    x = randn(*shape)
    jac = jacfwd(func)(x)
    expected = central_jacobian(func, x)
    assert jac.shape == expected.shape
    assert_close(jac, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivative_equals_central_differences_of_the_first(name):
    func, shape = FUNCTIONS[name]
    x = randn(*shape)
    assert_close(jacfwd(jacfwd(func))(x), central_jacobian(jacfwd(func), x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_result_is_contiguous_owned_and_writable(name):
    func, shape = FUNCTIONS[name]
    x = randn(*shape)
    before = x.clone()
    assert_owned(jacfwd(func)(x))
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("chunk_size", [1, 2, 1000])
def test_chunk_size_gives_the_same_numbers(name, chunk_size):
    func, shape = FUNCTIONS[name]
    x = randn(*shape)
    chunked = jacfwd(func, chunk_size=chunk_size)(x)
    whole = jacfwd(func)(x)
    assert chunked.shape == whole.shape
    assert chunked.dtype == whole.dtype
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-13)


def test_chunked_results_are_contiguous_owned_and_writable():
    assert_owned(jacfwd(lambda x: torch.tanh(x @ W.T), chunk_size=4)(randn(2, 3)))


def test_chunk_size_with_two_arguments_and_two_outputs_gives_the_same_numbers():
    def f(x, y):
        return {"p": x @ y, "s": x.sin().sum() + y.cumsum(0).sum()}

    x, y = randn(2, 3), randn(3, 2)
    chunked = jacfwd(f, argnums=(0, 1), chunk_size=2)(x, y)
    whole = jacfwd(f, argnums=(0, 1))(x, y)
    for key in ("p", "s"):
        for a, b in zip(chunked[key], whole[key], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_the_function_is_called_once_without_chunks():
    calls = []

    def f(x):
        calls.append(1)
        return x.sin().cumsum(0) @ torch.ones(3, 2, dtype=F64)

    jacfwd(f)(randn(3))
    assert len(calls) == 1


def test_the_function_sees_the_values_of_its_arguments():
    seen = []

    def f(x):
        seen.append(x.tolist())
        return x * 2

    jacfwd(f)(torch.tensor([1.5, -2.0]))
    assert seen[0] == [1.5, -2.0]


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 2)])
def test_empty_input_gives_an_empty_jacobian(shape):
    jac = jacfwd(lambda x: x.sin())(torch.zeros(shape))
    assert jac.shape == shape + shape
    assert jac.dtype == torch.float32


def test_empty_output_gives_an_empty_jacobian():
    assert jacfwd(lambda x: x[:0])(randn(3)).shape == (0, 3)


def test_sum_of_an_empty_input_has_a_jacobian_of_the_input_shape():
    assert jacfwd(lambda x: x.sum())(torch.zeros(2, 0)).shape == (2, 0)


def test_nondifferentiable_steps_give_zero():
    x = torch.tensor([0.3, -1.7, 2.2], dtype=F64)
    jac = jacfwd(lambda x: x.floor() * x + torch.sign(x))(x)
    assert_close(jac, torch.diag(x.floor()))


def test_noncontiguous_and_strided_inputs_work():
    base = randn(4, 6)
    x = base.T[::2]
    assert not x.is_contiguous()
    jac = jacfwd(lambda x: (x * x).sum(1))(x)
    assert_close(jac, central_jacobian(lambda x: (x * x).sum(1), x))
    assert_owned(jac)


def test_a_view_of_a_larger_tensor_is_differentiated_alone():
    base = randn(6)
    jac = jacfwd(lambda x: x**2)(base[2:5])
    assert_close(jac, torch.diag(2 * base[2:5]))


def test_parameter_as_input_gives_a_plain_tensor():
    p = nn.Parameter(randn(3))
    jac = jacfwd(lambda p: p**2)(p)
    assert type(jac) is Tensor
    assert_close(jac, torch.diag(2 * p.detach()))


def test_torch_func_transforms_keep_name_and_wrapped():
    def rosenbrock(x):
        """The doc."""
        return x

    wrapped = jacfwd(rosenbrock)
    assert wrapped.__name__ == "rosenbrock"
    assert wrapped.__wrapped__ is rosenbrock


def test_callables_without_a_name_are_accepted():
    x = randn(3)
    assert_close(jacfwd(functools.partial(torch.mul, 2.0))(x), 2 * torch.eye(3, dtype=F64))
    assert_close(jacfwd(nn.Tanh())(x), torch.diag(1 - x.tanh() ** 2))


# ---- argnums ----


def weighted(x, y, z):
    return x.sin() * y.sum() + z[0] * y[:2]


EXPECTED_ARGNUMS = [0, 1, 2, -1, -2, -3]


@pytest.mark.parametrize("argnum", EXPECTED_ARGNUMS)
def test_each_argnum_positive_or_negative_gives_that_arguments_jacobian(argnum):
    args = (randn(2), randn(3), randn(4))
    jac = jacfwd(weighted, argnums=argnum)(*args)
    assert_close(jac, central_jacobian(weighted, *args, argnum=argnum % 3))


@pytest.mark.parametrize("argnums", [(0,), (1, 0), (0, 2), (-1, 0), (2, 1, 0), (0, -1, 1)])
@pytest.mark.parametrize("container", [tuple, list])
def test_several_argnums_give_a_tuple_in_the_order_asked(argnums, container):
    args = (randn(2), randn(3), randn(4))
    jac = jacfwd(weighted, argnums=container(argnums))(*args)
    assert type(jac) is tuple
    assert len(jac) == len(argnums)
    for block, argnum in zip(jac, argnums, strict=True):
        assert_close(block, central_jacobian(weighted, *args, argnum=argnum % 3))


def test_an_argument_that_is_not_used_has_a_zero_jacobian():
    x, y = randn(2), randn(3)
    jac = jacfwd(lambda x, y: x.sin(), argnums=1)(x, y)
    assert torch.equal(jac, torch.zeros(2, 3, dtype=F64))
    assert_owned(jac)


def test_the_same_tensor_in_two_arguments_is_two_variables():
    x = randn(3)
    jac = jacfwd(lambda a, b: a * b**2, argnums=0)(x, x)
    assert_close(jac, torch.diag(x**2))


def test_other_arguments_may_be_anything():
    x = randn(3)

    def f(n, x, name, net, none):
        assert name == "relu"
        assert none is None
        return net(x) * n

    jac = jacfwd(f, argnums=1)(3, x, "relu", nn.Tanh(), None)
    assert_close(jac, torch.diag(3 * (1 - x.tanh() ** 2)))


def test_keyword_arguments_are_passed_through():
    x, y = randn(3), randn(3)

    def f(x, *, power, scale=None):
        return x**power * scale

    assert_close(jacfwd(f)(x, power=3, scale=y), torch.diag(3 * x**2 * y))


def test_a_default_argument_stays_a_default():
    x = randn(3)
    jac = jacfwd(lambda x, k=2.0: x * k)(x)
    assert_close(jac, 2 * torch.eye(3, dtype=F64))


# ---- Pytrees ----


def test_output_tuple_is_outside_and_argnums_inside():
    x, y = randn(2), randn(3)
    jac = jacfwd(lambda x, y: (x.sin(), y * x.sum()), argnums=(0, 1))(x, y)
    assert type(jac) is tuple
    assert [type(row) for row in jac] == [tuple, tuple]
    assert_close(jac[0][0], torch.diag(x.cos()))
    assert_close(jac[0][1], torch.zeros(2, 3, dtype=F64))
    assert_close(jac[1][0], y[:, None].expand(3, 2))
    assert_close(jac[1][1], x.sum() * torch.eye(3, dtype=F64))


def test_dict_output_gives_dict_of_jacobians():
    x = randn(3)
    jac = jacfwd(lambda x: {"s": x.sin(), "t": x.sum()})(x)
    assert set(jac) == {"s", "t"}
    assert_close(jac["s"], torch.diag(x.cos()))
    assert_close(jac["t"], torch.ones(3, dtype=F64))


def test_dict_input_gives_dict_of_jacobians():
    params = {"w": randn(2, 3), "b": randn(2)}
    x = randn(3)
    jac = jacfwd(lambda p: p["w"] @ x + p["b"])(params)
    assert set(jac) == {"w", "b"}
    eye = torch.eye(2, dtype=F64)
    assert_close(jac["w"], torch.einsum("ij,k->ijk", eye, x))
    assert_close(jac["b"], eye)


def test_input_tree_is_inside_the_argnums_tuple():
    p, x = {"w": randn(2)}, randn(2)
    jac = jacfwd(lambda p, x: [p["w"] * x], argnums=(0, 1))(p, x)
    assert type(jac) is list
    assert type(jac[0]) is tuple
    assert_close(jac[0][0]["w"], torch.diag(x))
    assert_close(jac[0][1], torch.diag(p["w"]))


def test_namedtuple_is_kept_on_both_sides():
    jac = jacfwd(lambda p: Point(a=p.a * p.b.sum(), b=p.b.sin()))(Point(randn(2), randn(3)))
    assert type(jac) is Point
    assert type(jac.a) is Point
    assert jac.a.b.shape == (2, 3)
    assert jac.b.a.shape == (3, 2)
    assert torch.equal(jac.b.a, torch.zeros(3, 2, dtype=F64))


def test_ordered_dict_is_kept_on_both_sides_in_order():
    p = OrderedDict([("z", randn(2)), ("a", randn(3))])
    jac = jacfwd(lambda p: OrderedDict([("y", p["z"] * 2), ("b", p["a"].sum())]))(p)
    assert type(jac) is OrderedDict
    assert list(jac) == ["y", "b"]
    assert type(jac["y"]) is OrderedDict
    assert list(jac["y"]) == ["z", "a"]
    assert_close(jac["y"]["z"], 2 * torch.eye(2, dtype=F64))
    assert_close(jac["b"]["a"], torch.ones(3, dtype=F64))


def test_deeply_nested_trees_keep_their_structure():
    tree = [{"a": (randn(2), [randn(1)])}, randn(3)]
    jac = jacfwd(lambda t: {"o": [t[0]["a"][0].sum() * t[1]]})(tree)
    block = jac["o"][0]
    assert type(block) is list
    assert type(block[0]["a"]) is tuple
    assert_close(block[0]["a"][0], tree[1][:, None].expand(3, 2))
    assert torch.equal(block[0]["a"][1][0], torch.zeros(3, 1, dtype=F64))


def test_blocks_of_several_arguments_own_their_storages_separately():
    jac = jacfwd(lambda x, y: (x.sin(), x[:, None] * y), argnums=(0, 1))(randn(2), randn(3))
    blocks = [b for row in jac for b in row]
    for block in blocks:
        assert_owned(block)
    assert len({b.untyped_storage().data_ptr() for b in blocks}) == 4


def test_the_same_output_twice_gives_two_independent_jacobians():
    def f(x):
        y = x.sin()
        return y, y

    first, second = jacfwd(f)(randn(3))
    expected = second.clone()
    first.zero_()
    assert torch.equal(second, expected)


def test_outputs_that_are_the_input_do_not_share_memory_with_it():
    x = randn(2, 3)
    before = x.clone()
    jac = jacfwd(lambda x: x)(x)
    jac.zero_()
    assert torch.equal(x, before)


def test_writing_the_result_changes_no_captured_tensor_and_no_later_result():
    """The Jacobian of W @ x has the values of W, and must not be W."""
    matrix, x = randn(4, 3), randn(3)
    before = matrix.clone()
    for func in (lambda x: matrix @ x, lambda x: x @ matrix.T, lambda x: matrix[0] * x):
        first = jacfwd(func)(x)
        expected = first.clone()
        first.zero_()
        assert torch.equal(matrix, before)
        assert torch.equal(jacfwd(func)(x), expected)


# ---- has_aux ----


def test_aux_values_are_plain_tensors_and_right():
    x = randn(3)
    jac, aux = jacfwd(lambda x: (x.sin(), {"twice": 2 * x, "n": x.sum()}), has_aux=True)(x)
    assert_close(jac, torch.diag(x.cos()))
    assert type(aux["twice"]) is Tensor
    assert torch.equal(aux["twice"], 2 * x)
    assert torch.equal(aux["n"], x.sum())


@pytest.mark.parametrize("leaf", [1, 2.5, "name", None, True, nn.Identity(), torch.float32])
def test_aux_may_hold_any_leaf(leaf):
    x = randn(2)
    jac, aux = jacfwd(lambda x: (x * 2, (leaf, x)), has_aux=True)(x)
    assert aux[0] is leaf
    assert torch.equal(aux[1], x)
    assert_close(jac, 2 * torch.eye(2, dtype=F64))


def test_aux_of_integer_and_complex_tensors_is_returned():
    x = randn(3)
    _, (i, z) = jacfwd(lambda x: (x, (x.argmax(), torch.complex(x, x))), has_aux=True)(x)
    assert i == x.argmax()
    assert torch.equal(z, torch.complex(x, x))


def test_aux_keeps_its_autograd_history():
    x = randn(3).requires_grad_()
    _, aux = jacfwd(lambda x: (x, x**2), has_aux=True)(x)
    (g,) = torch.autograd.grad(aux.sum(), x)
    assert_close(g, 2 * x.detach())


def test_aux_works_with_an_empty_input():
    jac, aux = jacfwd(lambda x: (x.sin(), x.sum()), has_aux=True)(torch.zeros(0))
    assert jac.shape == (0, 0)
    assert aux == 0


def test_aux_works_with_chunks_argnums_and_pytrees():
    x, y = randn(2), randn(3)

    def f(x, y):
        return {"o": torch.outer(x, y)}, ["aux", x]

    jac, aux = jacfwd(f, (0, 1), has_aux=True, chunk_size=2)(x, y)
    assert_close(jac["o"][1], torch.einsum("i,jk->ijk", x, torch.eye(3, dtype=F64)))
    assert aux[0] == "aux"
    assert torch.equal(aux[1], x)


def test_has_aux_is_also_the_third_positional_parameter():
    jac, aux = jacfwd(lambda x: (x, "a"), 0, True)(randn(2))
    assert aux == "a"
    assert torch.equal(jac, torch.eye(2, dtype=F64))


# ---- dtypes ----

HALF, BF, F32 = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("in_dtype", "out_dtype"),
    [(F32, F32), (F64, F64), (F32, F64), (F64, F32), (HALF, F32), (BF, BF), (HALF, BF), (BF, F64)],
)
def test_dtype_of_the_jacobian_is_the_promoted_type_of_output_and_input(in_dtype, out_dtype):
    jac = jacfwd(lambda x: (2 * x).to(out_dtype))(torch.ones(3, dtype=in_dtype))
    assert jac.dtype == torch.promote_types(in_dtype, out_dtype)
    assert torch.equal(jac.double(), 2 * torch.eye(3, dtype=F64))


def test_dtype_of_each_block_follows_its_own_input():
    x, y = torch.ones(2), torch.ones(2, dtype=F64)
    jac = jacfwd(lambda x, y: (x * 2, y * 3, x * y), argnums=(0, 1))(x, y)
    assert [[b.dtype for b in row] for row in jac] == [[F32, F64], [F64, F64], [F64, F64]]


def test_dtype_of_the_jacobian_does_not_depend_on_chunks():
    x = torch.ones(3)
    assert jacfwd(lambda x: x.double(), chunk_size=1)(x).dtype == F64


def test_default_dtype_does_not_leak_into_results():
    torch.set_default_dtype(F64)
    try:
        jac = jacfwd(lambda x: 0.5 * x.sum() + x)(torch.ones(3, dtype=F32))
    finally:
        torch.set_default_dtype(F32)
    assert jac.dtype == F32


# ---- randomness ----


@pytest.mark.parametrize(
    "func",
    [
        lambda x: x * torch.rand(3),
        lambda x: torch.dropout(x, 0.5, True),
        lambda x: x + torch.randn_like(x),
        lambda x: x * torch.bernoulli(torch.full((3,), 0.5)),
        lambda x: x[torch.randperm(3)],
        lambda x: x + torch.empty(3).normal_(),
        lambda x: nn.Linear(3, 2)(x),
    ],
)
def test_randomness_error_refuses_every_random_operator(func):
    with pytest.raises(RuntimeError, match="randomness"):
        jacfwd(func)(torch.randn(3))
    with pytest.raises(RuntimeError, match="randomness"):
        jacfwd(func, randomness="error")(torch.randn(3))


def test_randomness_error_is_the_default_and_allows_deterministic_functions():
    x = randn(3)
    assert_close(jacfwd(torch.sin, randomness="error")(x), torch.diag(x.cos()))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_random_draws_are_those_of_the_plain_call(randomness):
    def f(x):
        return x * torch.rand(3, dtype=F64) + torch.dropout(x, 0.5, True)

    x = randn(3)
    torch.manual_seed(7)
    plain = f(x)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    jac = jacfwd(f, randomness=randomness)(x)
    assert torch.equal(torch.get_rng_state(), after)
    assert_close(jac @ x, plain)  # f is linear in x for one draw
    assert torch.equal(jac, torch.diag(jac.diagonal()))


def test_random_draws_are_the_same_in_every_chunk_and_leave_the_same_state():
    x = randn(5)
    torch.manual_seed(8)
    whole = jacfwd(lambda x: torch.dropout(x, 0.5, True).cumsum(0), randomness="same")(x)
    state = torch.get_rng_state()
    torch.manual_seed(8)
    chunked = jacfwd(
        lambda x: torch.dropout(x, 0.5, True).cumsum(0), randomness="same", chunk_size=2
    )(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(chunked, whole)


def test_outer_vmap_with_different_randomness_draws_for_each_example():
    f = jacfwd(lambda x: torch.dropout(x, 0.5, True), randomness="different")
    jac = vmap(f, randomness="different")(torch.ones(64, 4))
    masks = jac.diagonal(dim1=1, dim2=2)
    assert set(masks.unique().tolist()) == {0.0, 2.0}
    assert not bool((masks == masks[0]).all())


def test_outer_vmap_with_same_randomness_draws_once_for_all_examples():
    f = jacfwd(lambda x: torch.dropout(x, 0.5, True), randomness="same")
    masks = vmap(f, randomness="same")(torch.ones(64, 8)).diagonal(dim1=1, dim2=2)
    assert set(masks.unique().tolist()) == {0.0, 2.0}
    assert bool((masks == masks[0]).all())


def test_an_explicit_generator_is_used_and_advanced_as_by_the_plain_call():
    def f(x, generator):
        return x * torch.rand(3, generator=generator, dtype=F64)

    x = torch.ones(3, dtype=F64)
    plain_generator = torch.Generator().manual_seed(5)
    plain = f(x, plain_generator)
    generator = torch.Generator().manual_seed(5)
    jac = jacfwd(f, randomness="same")(x, generator)
    assert torch.equal(jac, torch.diag(plain))
    assert torch.equal(generator.get_state(), plain_generator.get_state())


# ---- vmap, both orders ----


def test_vmap_outside_equals_a_loop():
    x = randn(5, 3)
    f = jacfwd(lambda x: torch.tanh(W @ x))
    assert_close(vmap(f)(x), torch.stack([f(row) for row in x]))


def test_vmap_outside_with_in_dims_and_out_dims_equals_a_loop():
    x, y = randn(3, 5), randn(3)
    f = jacfwd(lambda x, y: x.sin() * y.sum(), argnums=1)
    out = vmap(f, in_dims=(1, None), out_dims=2)(x, y)
    assert_close(out, torch.stack([f(c, y) for c in x.unbind(1)], dim=2))


def test_vmap_inside_equals_central_differences():
    def f(x):
        return vmap(lambda row: torch.tanh(W @ row) * row.sum())(x)

    x = randn(2, 3)
    assert_close(jacfwd(f)(x), central_jacobian(f, x))


def test_vmap_inside_with_a_captured_tracer_equals_central_differences():
    y = randn(4, 3)

    def f(x):
        return vmap(lambda row: (row * x).sin().sum())(y)

    x = randn(3)
    assert_close(jacfwd(f)(x), central_jacobian(f, x))


def test_vmap_is_pytorchs():
    assert vmap is torch.func.vmap or vmap is torch.vmap
