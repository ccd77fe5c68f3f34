"""In-place operators, ``out=`` and views have the derivative of the values they leave behind."""

import pytest
import torch
from doubles import F64, randn
from oracles import assert_close, central_jacobian
from torch import Tensor

import pushforward
from pushforward import jacfwd, jacobian, jacrev, jvp, linearize

MASK = torch.tensor([True, False, True, False])


def add_to_clone(x):
    y = x.clone()
    y.add_(1).mul_(x)
    return y.sin()


def augmented_assignment(x):
    y = x * 1
    y += x.sum()
    y *= y
    y -= 2 * x
    y /= 1 + x * x
    y **= 2
    return y


def set_item(x):
    y = x.sin()
    y[0] = x[1] * x[2]
    return y * x


def set_slice(x):
    y = x.clone()
    y[1:3] = x[:2] ** 2
    y[-1] = 5.0
    return y.exp()


def masked_scale(x):
    y = x.clone()
    y[MASK] *= 2
    return y**2


def masked_fill(x):
    y = x.sin()
    y[MASK] = 0.5
    y.masked_fill_(x > 10, 1.0)
    return y * x


def index_put_accumulate(x):
    y = x.clone()
    y.index_put_((torch.tensor([0, 0, 2]),), x[:3] ** 2, accumulate=True)
    return y


def index_add(x):
    return torch.zeros(3, dtype=F64).index_add_(0, torch.tensor([0, 2, 2, 1]), x**2)


def scatter_add(x):
    return torch.zeros(3, dtype=F64).scatter_add_(0, torch.tensor([0, 2, 2, 1]), x**2)


def out_argument(x):
    y = torch.empty(4, dtype=F64)
    torch.sin(x, out=y)
    return y * x


def out_argument_of_matmul(x):
    y = torch.empty(2, dtype=F64)
    torch.matmul(x.reshape(2, 2), x[:2], out=y)
    return y.exp()


def write_through_view_seen_by_base(x):
    y = x.clone()
    y[1:].mul_(x[:-1])
    return y


def write_to_base_seen_by_view(x):
    y = x.clone()
    view = y[1:3]
    y.mul_(x)
    return view * 2


def write_through_view_of_view_seen_by_every_alias(x):
    y = x.clone()
    pair = y.view(2, 2)
    column = pair[:, 1]
    column.mul_(x[:2])
    row = pair.t()[0]
    row.add_(x[2])
    return torch.cat([y, pair.reshape(-1), column, row])


def write_through_transpose_and_diagonal(x):
    y = x.clone().view(2, 2)
    y.t()[0].mul_(3 * x[0])
    y.diagonal().add_(x[:2] ** 2)
    return y


def siblings_see_each_other(x):
    y = x.clone()
    a, b = y[:3], y[1:]
    a.mul_(2 * x[:3])
    b.sub_(a.sum())
    return a * 1 + b


def split_and_unbind_are_views(x):
    y = x.clone()
    first, second = y.split(2)
    first.mul_(second)
    y.view(2, 2).unbind(0)[1].sin_()
    return y


def expand_then_read(x):
    y = x.clone()
    wide = y.expand(3, 4)
    y.mul_(x)
    return wide.sum(0) * x


def zeros_then_assign(x):
    y = torch.zeros(3, 2, dtype=F64)
    for i in range(3):
        y[i, 0] = x[i] ** 2
        y[i, 1] = x[i] * x[i + 1]
    return y


def zeros_like_then_assign(x):
    y = torch.zeros_like(x)
    y[:2] = x[2:].sin()
    return y + y.flip(0)


def new_empty_then_copy(x):
    return x.new_empty(4).copy_(x).cos_()


def plain_plus_equals_tracer(x):
    y = torch.ones(4, dtype=F64)
    y += x
    y *= x
    return y


def overwrite_forgets(x):
    y = x.sin()
    y.zero_()
    y.fill_(3.0)
    return y + x


def copy_from_constant_forgets(x):
    y = x**2
    y.copy_(torch.ones(4, dtype=F64))
    return y * x


def set_item_with_broadcast(x):
    y = torch.zeros(2, 4, dtype=F64)
    y[:] = x
    y[:, 0] = x.sum()
    return y


def advanced_index_is_a_copy(x):
    y = x.clone()
    part = y[torch.tensor([0, 1])]
    part.mul_(100)
    return y


def squeeze_in_place(x):
    y = (x * x).unsqueeze(0)
    y.squeeze_(0).unsqueeze_(1).transpose_(0, 1)
    return y


def fill_diagonal(x):
    y = torch.outer(x, x)
    y.fill_diagonal_(1.0)
    return y


def relu_in_place(x):
    y = x * 2
    torch.nn.functional.relu(y, inplace=True)
    return y.clamp_(max=1.5)


def write_after_use(x):
    y = x.clone()
    z = y * y
    y.mul_(10)
    return z + y


FUNCTIONS = [
    add_to_clone,
    augmented_assignment,
    set_item,
    set_slice,
    masked_scale,
    masked_fill,
    index_put_accumulate,
    index_add,
    scatter_add,
    out_argument,
    out_argument_of_matmul,
    write_through_view_seen_by_base,
    write_to_base_seen_by_view,
    write_through_view_of_view_seen_by_every_alias,
    write_through_transpose_and_diagonal,
    siblings_see_each_other,
    split_and_unbind_are_views,
    expand_then_read,
    zeros_then_assign,
    zeros_like_then_assign,
    new_empty_then_copy,
    plain_plus_equals_tracer,
    overwrite_forgets,
    copy_from_constant_forgets,
    set_item_with_broadcast,
    advanced_index_is_a_copy,
    squeeze_in_place,
    fill_diagonal,
    relu_in_place,
    write_after_use,
]

POINT = torch.tensor([0.7, -1.2, 1.6, 0.4], dtype=F64)


@pytest.mark.parametrize("func", FUNCTIONS, ids=lambda f: f.__name__)
def test_jacobian_of_code_that_writes_equals_central_differences(func):
    x = POINT.clone()
    assert_close(jacfwd(func)(x), central_jacobian(func, x))
    assert torch.equal(x, POINT)


@pytest.mark.parametrize("func", FUNCTIONS, ids=lambda f: f.__name__)
def test_linearize_of_code_that_writes_equals_the_jacobian(func):
    out, lin = linearize(func, POINT.clone())
    assert_close(out, func(POINT.clone()))
    jac = central_jacobian(func, POINT)
    assert_close(lin.batched(torch.eye(4, dtype=F64)), jac.movedim(-1, 0))


@pytest.mark.parametrize("func", FUNCTIONS, ids=lambda f: f.__name__)
def test_second_derivative_of_code_that_writes_equals_central_differences(func):
    assert_close(jacfwd(jacfwd(func))(POINT.clone()), central_jacobian(jacfwd(func), POINT))


# ---- The input itself, and what the caller is left with (as torch.func leaves it) ----


def write_input_whole(x):
    x.add_(1)
    return x.sin()


def write_input_item(x):
    x[0] = x[1] * x[2]
    return x**2


def write_input_masked(x):
    x[MASK] *= 2
    return x**2


def write_input_through_a_view(x):
    x.view(2, 2)[1].mul_(x[0])
    return x * 3


def write_input_by_out(x):
    torch.sin(x * 1, out=x)
    return x * 2


WRITERS = [
    write_input_whole,
    write_input_item,
    write_input_masked,
    write_input_through_a_view,
    write_input_by_out,
]


@pytest.mark.parametrize("func", WRITERS, ids=lambda f: f.__name__)
def test_writing_the_input_has_the_right_derivative_and_changes_the_callers_tensor(func):
    expected_after = POINT.clone()
    func(expected_after)
    x = POINT.clone()
    jac = jacfwd(func)(x)
    assert_close(jac, central_jacobian(func, POINT))
    assert torch.equal(x, expected_after)
    assert type(x) is Tensor


LAYOUTS = {
    "t_": lambda x: x.t_(),
    "unsqueeze_": lambda x: x.unsqueeze_(1),
    "squeeze_": lambda x: x.squeeze_(),
    "transpose_": lambda x: x.transpose_(0, 1),
    "mul_ and t_": lambda x: x.mul_(2).t_().mul_(x),
}


INPUTS = {
    "turned": lambda: torch.tensor([[0.7, -0.4, 1.2]], dtype=F64).t(),
    "a part": lambda: torch.tensor([[0.7, -0.4], [1.2, 0.3], [0.5, 0.6]], dtype=F64)[:, :1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("made", INPUTS)
@pytest.mark.parametrize("transform", [jacfwd, jacrev, jacobian])
def test_an_input_that_is_laid_out_anew_in_place_keeps_its_layout_outside(transform, made, layout):
    def f(x):
        LAYOUTS[layout](x)
        return x.sin() * x[0]

    for _ in range(3):
        x, plain = INPUTS[made](), INPUTS[made]()
        shape, strides = x.shape, x.stride()
        in_memory = plain.as_strided(shape, strides)
        jac = transform(f)(x)
        f(plain)
        assert (x.shape, x.stride()) == (shape, strides)
        assert_close(x, in_memory)
        assert_close(jac, central_jacobian(f, INPUTS[made]()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inner", ["jacfwd", "jacrev", "vjp", "jvp", "linearize"])
def test_layouts_of_inputs_changed_in_place_in_nested_transforms(inner, layout):
    def f(x):
        LAYOUTS[layout](x)
        return x.sin()

    def differentiated(api, f):
        return {
            "jacfwd": lambda x: api.jacrev(f)(x),
            "jacrev": lambda x: api.jacrev(f)(x),
            "vjp": lambda x: api.vjp(f, x)[1](torch.ones_like(f(x * 1)))[0],
            "jvp": lambda x: api.jvp(f, (x,), (x * 1,))[1],
            "linearize": lambda x: api.linearize(f, x)[1](torch.ones_like(x)),
        }[inner]

    def out_of_place(x):
        x = x * 1
        return f(x)

    x = torch.tensor([[0.7], [-0.4], [1.2]], dtype=F64)
    expected = central_jacobian(differentiated(pushforward, out_of_place), x)
    for outer in (torch.func.jacrev, torch.func.jacfwd, jacrev, jacfwd):
        assert_close(outer(differentiated(pushforward, f))(x.clone()), expected)


@pytest.mark.parametrize("func", WRITERS, ids=lambda f: f.__name__)
def test_writing_the_input_in_jvp_and_linearize_changes_the_callers_tensor_once(func):
    expected_after = POINT.clone()
    expected_out = func(expected_after)
    t = randn(4)
    expected_dot = central_jacobian(func, POINT) @ t
    x = POINT.clone()
    out, out_dot = jvp(func, (x,), (t,))
    assert torch.equal(x, expected_after)
    assert_close(out, expected_out)
    assert_close(out_dot, expected_dot)
    x = POINT.clone()
    _, lin = linearize(func, x)
    assert torch.equal(x, expected_after)
    assert_close(lin(t), expected_dot)


def test_writing_the_input_with_chunks_changes_the_callers_tensor_once():
    x = POINT.clone()
    jac = jacfwd(write_input_whole, chunk_size=1)(x)
    assert torch.equal(x, POINT + 1)
    assert_close(jac, torch.diag((POINT + 1).cos()))


def test_writing_an_argument_that_is_not_differentiated_works_as_the_plain_call():
    def f(x, y):
        y.mul_(2)
        return x * y

    x, y = randn(3), randn(3)
    before = y.clone()
    assert_close(jacfwd(f)(x, y), torch.diag(2 * before))
    assert torch.equal(y, 2 * before)


def test_writing_a_derivative_into_an_argument_that_is_not_differentiated_carries_it():
    def f(x, y):
        y.add_(x**2)
        return y * 3

    x, y = randn(3), randn(3)
    before = y.clone()
    assert_close(jacfwd(f)(x, y), torch.diag(6 * x))
    assert_close(y, before + x**2)


# ---- Captured tensors ----


def test_a_captured_tensor_written_by_item_ends_as_after_the_plain_call():
    store = torch.zeros(4, dtype=F64)

    def f(x):
        for i in range(4):
            store[i] = x[i] ** 2
        return store.sum() * x[0]

    jac = jacfwd(f)(POINT.clone())
    assert torch.equal(store, POINT**2)
    store.zero_()
    assert_close(jac, central_jacobian(f, POINT))


def test_a_captured_tensor_written_through_its_view_carries_the_derivative():
    store = torch.zeros(2, 2, dtype=F64)

    def f(x):
        store.view(-1)[1:3].copy_(x[:2] * x[2:])
        return store @ x[:2]

    jac = jacfwd(f)(POINT.clone())
    assert_close(jac, central_jacobian(f, POINT))
    assert type(store) is Tensor


def test_a_view_taken_before_the_call_sees_the_derivative_written_to_its_base():
    store = torch.zeros(4, dtype=F64)
    view = store[1:3]

    def f(x):
        store.copy_(x**2)
        return view * 1

    assert_close(jacfwd(f)(POINT.clone()), central_jacobian(f, POINT))


def test_an_inner_recording_may_write_a_tensor_of_the_outer_one():
    def f(x):
        y = x**2
        inner = jacfwd(lambda a: a * y)(x)
        y.mul_(2)
        return inner.diagonal() + y

    assert_close(jacfwd(f)(POINT.clone()), torch.diag(6 * POINT))


def test_an_alias_made_by_detach_shares_values_but_no_derivative():
    def f(x):
        y = x * 1
        constant = y.detach()
        y.mul_(2)
        return constant * x  # the detached alias shows the new value 2x, and is constant

    assert_close(jacfwd(f)(POINT.clone()), torch.diag(2 * POINT))


def test_views_of_the_result_do_not_alias_the_input():
    x = POINT.clone()
    out, _ = jvp(lambda x: (x * 1).view(2, 2), (x,), (randn(4),))
    out.zero_()
    assert torch.equal(x, POINT)


def test_views_and_strides_inside_are_those_of_the_plain_call():
    seen = []

    def f(x):
        y = x.t()
        seen.append((y.shape, y.stride(), y.is_contiguous(), y[0].storage_offset()))
        return y.contiguous()

    x = randn(2, 3)
    f(x)
    jacfwd(f)(x)
    assert seen[0] == seen[1]


def test_writing_an_expanded_view_raises_as_the_plain_call_does():
    with pytest.raises(RuntimeError):
        jacfwd(lambda x: x.expand(3, 4).add_(1))(randn(4))


WRITES_TO_ALL = {
    "mul_": lambda y: y.mul_(2),
    "sin_": lambda y: y.sin_(),
    "relu_": lambda y: y.relu_(),
    "elu": lambda y: torch.nn.functional.elu(y, inplace=True),
    "copy_": lambda y: y.copy_(y * y),
}


@pytest.mark.parametrize("writing", WRITES_TO_ALL)
@pytest.mark.parametrize("transform", [jacfwd, jacrev, jacobian])
def test_writes_below_vmap_to_what_has_the_batch_in_another_place(transform, writing):
    def f(x):
        rows = torch.stack([x, x * 2, x * 3])[:, None] * torch.tensor([1.0, 0.5], dtype=F64)
        y = torch.nn.functional.embedding(torch.tensor([2, 0, 2]), rows)  # the batch is in between
        WRITES_TO_ALL[writing](y)
        return y

    def loop(x):
        return torch.stack([f(row) for row in x])

    x = torch.tensor([-0.8, 0.5], dtype=F64)
    for _ in range(3):
        assert_close(transform(pushforward.vmap(f))(x), central_jacobian(loop, x))
    y = torch.tensor([[-0.8, 0.5], [0.3, 0.9]], dtype=F64)
    expected = central_jacobian(lambda y: torch.stack([loop(row) for row in y]), y)
    assert_close(transform(pushforward.vmap(pushforward.vmap(f)))(y), expected)


INSIDE = {
    "vjp": lambda g, x: torch.func.vjp(g, x)[1](torch.ones_like(x))[0],
    "grad": lambda g, x: torch.func.grad(lambda t: g(t).sum())(x),
    "jacrev": lambda g, x: torch.func.jacrev(g)(x),
}


def _assigned(index):
    return lambda captured, view, t: captured.__setitem__(index, t[index])


REFUSED = {
    "all": _assigned(...),
    "one": _assigned(0),
    "some": _assigned(slice(1)),
    "a view, copied into": lambda captured, view, t: view.copy_(t),
    "a view, multiplied": lambda captured, view, t: view.mul_(t),
    "a part of a view": lambda captured, view, t: view.__setitem__(0, t[0]),
}


@pytest.mark.parametrize("write", REFUSED)
@pytest.mark.parametrize("outer", [jacfwd, jacrev, pushforward.jacobian, pushforward.hessian])
@pytest.mark.parametrize("name", INSIDE)
def test_writes_to_captured_tensors_that_torch_func_refuses_are_refused_inside_ours(
    name, outer, write
):
    def g(t):
        REFUSED[write](captured, view, t)
        return captured * t

    captured = torch.tensor([0.2, 0.3], dtype=torch.float64)
    view = captured[:]
    x = torch.tensor([1.5, -0.5], dtype=torch.float64)
    with pytest.raises(RuntimeError, match="would mutate a captured Tensor"):
        INSIDE[name](g, x)
    with pytest.raises(RuntimeError, match="would mutate a captured Tensor"):
        outer(lambda a: INSIDE[name](g, a))(x)
