"""Writes seen through aliases, and overwritten saved tensors: every way to write, every transform, called again.

Expected values come from the same function by central differences, or are written out where autograd's meaning differs
from what differences see (no_grad, detach).
"""

from collections.abc import Callable

import pytest
import torch
from oracles import assert_close, central_jacobian
from torch import Tensor, nn
from torch.nn import functional as F

from pushforward import hessian, jacfwd, jacobian, jacrev, jvp, linearize, vjp, vmap

F64 = torch.float64
X = torch.tensor([0.7, -0.4, 1.2], dtype=F64)
TRANSFORMS = [jacfwd, jacrev, jacobian]


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=F64)


# ----- Saved tensors that are overwritten -----


def input_saved_by_a_product(x):
    y = x.sin()
    z = y * y
    y.mul_(10)
    return z + y


def result_saved(x):
    y = x.exp()
    z = y.tanh()
    y.add_(1)
    z.sub_(y)
    return y * z


def view_saved(x):
    y = x * 2
    z = y[1:] * y[:2]
    y[1].zero_()
    y.mul_(x)
    return torch.cat([z, y])


def saved_twice_and_written_twice(x):
    y = x * 1
    a = y * y
    y.add_(1)
    b = y * y
    y[0] = x[2]
    return a + b + y


def saved_and_written_in_a_loop(x):
    u = zeros(6, 3)
    u[0] = x
    for t in range(5):
        u[t + 1] = u[t] + 0.1 * u[t] * u[t].roll(1)
    return u


def recurrence_of_elements(x):
    y = zeros(8)
    y[0] = x[0]
    for i in range(1, 8):
        y[i] = y[i - 1] * x[i % 3] + y[i - 1].sin()
    return y


def stencil_in_place(x):
    y = zeros(5, 5)
    y[1:-1, 1:-1] = torch.outer(x, x)
    for _ in range(2):
        neighbours = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:]
        y[1:-1, 1:-1] = 0.25 * neighbours * y[1:-1, 1:-1]
    return y


def operand_is_the_target(x):
    y = x * 1
    y *= y
    y[0] = y[1] * y[0]
    y[1:] *= y[1:]
    return y.pow_(2).sigmoid_()


def siblings_from_unbind(x):
    y = x * 1
    a, b, c = y.unbind()
    z = a * b
    b.mul_(c)
    return y * z


def rows_by_iteration(x):
    y = torch.outer(x, x)
    for row in y:
        row.mul_(x)
    first, rest = y.split([1, 2])
    rest.add_(first)
    for part in y.chunk(2, 1):
        part.sin_()
    return y


OVERWRITING = [
    input_saved_by_a_product,
    result_saved,
    view_saved,
    saved_twice_and_written_twice,
    saved_and_written_in_a_loop,
    recurrence_of_elements,
    stencil_in_place,
    operand_is_the_target,
    siblings_from_unbind,
    rows_by_iteration,
]

# ----- Writes through views of every kind -----


def real_and_imaginary_parts(x):
    z = torch.zeros(3, dtype=torch.complex128)
    z.real = x
    z.imag = x**2
    return (z * z.conj()).real


def real_view_of_complex(x):
    z = torch.complex(x, x**2)
    torch.view_as_real(z)[:, 0].mul_(x)
    z.imag.add_(x)
    return (z * z).imag


def masks_on_a_view(x):
    y = x * 2
    view = y[1:]
    view[torch.tensor([True, False])] = x[0] ** 2
    view.masked_fill_(torch.tensor([False, True]), 3.0)
    return y * x


def indices_on_a_view(x):
    y = zeros(2, 3)
    y[1].index_put_((torch.tensor([0, 2]),), x[:2] ** 2)
    y[:, 1].index_add_(0, torch.tensor([0, 1]), x[1:] ** 3)
    y[0].scatter_(0, torch.tensor([2, 0]), x[:2])
    return y.masked_scatter_(torch.eye(2, 3, dtype=torch.bool), x * x)


def activations_on_a_view(x):
    y = x * 2 - 1
    y[1:].relu_()
    F.elu(y[:2], inplace=True)
    F.leaky_relu_(y[2:], 0.3)
    F.hardtanh(y[1:], -1.0, 1.5, True)
    return y


def outputs_into_views(x):
    y = zeros(2, 3)
    torch.mul(x, x, out=y[1])
    torch.add(x, 1, out=y[0])
    values, order = torch.empty(3, dtype=F64), torch.empty(3, dtype=torch.long)
    torch.sort(x**2, out=(values, order))
    return y.prod(0) + values


def transposed_base(x):
    y = zeros(3, 2).t()
    y[0] = x**2
    y[1, 1:] = x[:2]
    y.t()[0].mul_(x[:2])
    return y


def diagonals(x):
    y = torch.outer(x, x)
    y.diagonal().mul_(x)
    y.diagonal(1).copy_(x[:2])
    torch.diagonal(y, -1).zero_()
    return y


def windows(x):
    y = torch.cat([x, x])
    y.unfold(0, 2, 2)[:, 0].mul_(x)
    y.view(2, 3)[:, 1] = x[:2]
    y.narrow(0, 4, 2).neg_()
    return y


def swapped_rows(x):
    y = x * x
    y[0], y[1] = y[1].clone(), y[0].clone()
    y[[0, 2]] = y[[2, 0]]
    return y * x


def odd_indices(x):
    y = zeros(3)
    y[torch.tensor(1)] = x[0] ** 2
    y[...] = y + x
    y[None, :2] = x[1:] * y[:2]
    y[::2] += 1
    y[-1:] = x[:1]
    return y**2


def overlapping_pieces(x):
    y = zeros(4, 3)
    y[0] = x
    y[0, 1] = x[0] ** 2
    y[1:3] = torch.outer(x[:2], x)
    y[1:4, 2] = x.sin()
    y[2, ::2] *= 2
    return y


def fills(x):
    y = zeros(3)
    y[0].fill_(x[1] * 2)
    y[1:].fill_(x[0] ** 2)
    return y * x


def batch_norm_in_training(x):
    return nn.BatchNorm1d(1).double()(x[:, None])[:, 0]


VIEWS = [
    real_and_imaginary_parts,
    real_view_of_complex,
    masks_on_a_view,
    indices_on_a_view,
    activations_on_a_view,
    outputs_into_views,
    transposed_base,
    diagonals,
    windows,
    swapped_rows,
    odd_indices,
    overlapping_pieces,
    fills,
    batch_norm_in_training,
]


@pytest.mark.parametrize("func", OVERWRITING + VIEWS, ids=lambda f: f.__name__)
def test_every_transform_is_right_at_every_call(func: Callable[[Tensor], Tensor]) -> None:
    expected = central_jacobian(func, X)
    for _ in range(3):
        for transform in TRANSFORMS:
            assert_close(transform(func)(X.clone()), expected)
    out, push = linearize(func, X.clone())
    assert_close(push(X), expected @ X)
    assert_close(jvp(func, (X.clone(),), (X,))[1], expected @ X)
    y_bar = torch.randn_like(out)
    assert_close(vjp(func, X.clone())[1](y_bar)[0], torch.tensordot(y_bar, expected, out.dim()))


@pytest.mark.parametrize("func", OVERWRITING + VIEWS, ids=lambda f: f.__name__)
def test_second_derivatives_are_right(func: Callable[[Tensor], Tensor]) -> None:
    expected = central_jacobian(lambda x: central_free(func, x), X)
    for outer, inner in ((jacfwd, jacfwd), (jacfwd, jacrev), (jacrev, jacrev)):
        assert_close(outer(inner(func))(X.clone()), expected)


def central_free(func: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the Jacobian by rows of plain forward mode, which the first test checks."""
    return jacfwd(func)(x).detach()


@pytest.mark.parametrize(
    "func",
    [*OVERWRITING[:4], operand_is_the_target, siblings_from_unbind, masks_on_a_view, diagonals],
)  # torch.func.vmap itself refuses to write batched values into tensors that are not
def test_under_vmap(func: Callable[[Tensor], Tensor]) -> None:
    xs = torch.stack([X, 0.5 * X, X + 1])
    expected = torch.stack([central_jacobian(func, x) for x in xs])
    for _ in range(3):
        for transform in (jacfwd, jacrev):
            assert_close(vmap(transform(func))(xs), expected)
            assert_close(torch.func.vmap(transform(func))(xs), expected)


@pytest.mark.parametrize("func", [*OVERWRITING, diagonals, overlapping_pieces])
def test_inside_forward_mode_of_torch_func(func):
    expected = central_jacobian(jacfwd(func), X)
    for inner in TRANSFORMS:
        assert_close(torch.func.jacfwd(inner(func))(X.clone()), expected)


@pytest.mark.parametrize("func", [*OVERWRITING, diagonals, overlapping_pieces])
def test_inside_reverse_mode_of_torch_func_it_is_right_or_refused_by_pytorch(func):
    for inner in TRANSFORMS:
        try:
            found = torch.func.jacrev(inner(func))(X.clone())
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)  # noqa: PT017
        else:
            assert_close(found, central_jacobian(jacfwd(func), X))


# ----- What autograd does not follow -----


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("way", ["no_grad", "detach", "data"])
def test_an_unfollowed_write_changes_what_is_read_afterwards(transform, way):
    is_writing = False

    def f(x):
        y = x * 1.0
        if is_writing:
            if way == "no_grad":
                with torch.no_grad():
                    y.mul_(3.0)
            elif way == "detach":
                y.detach().mul_(3.0)
            else:
                y.data.mul_(3.0)
        return y.sin() * y

    for _ in range(4):
        transform(f)(X)
    is_writing = True
    y = 3 * X
    for _ in range(3):
        assert_close(transform(f)(X), torch.diag(y.sin() + y * y.cos()))


@pytest.mark.parametrize("way", ["no_grad", "detach"])
def test_second_derivatives_of_what_was_saved_before_an_unfollowed_write(way):
    def f(x):
        y = x * 1.0
        z = y.exp() * y.cos()
        if way == "no_grad":
            with torch.no_grad():
                y.mul_(3.0)
        else:
            y.detach().mul_(3.0)
        return (z * y).sum()

    x = X.clone().requires_grad_()
    total = (x.exp() * x.cos() * (x + (2 * x).detach())).sum()
    (row,) = torch.autograd.grad(total, x, create_graph=True)
    expected = torch.stack([torch.autograd.grad(v, x, retain_graph=True)[0] for v in row])
    for _ in range(2):
        assert_close(hessian(f)(X), expected)
        assert_close(jacfwd(jacfwd(f))(X), expected)


# ----- An operand and the result of one operator, both overwritten -----


def result_then_operand(x, c):
    y = x * c
    y.mul_(0.5)
    c.add_(1)
    return y


def operand_then_result(x, c):
    y = x * c
    c.add_(1)
    z = y.view(3, 1)
    y.mul_(0.5)
    return z


def own_operand_and_result(x, c):
    u = x * 1
    y = u * c
    u.mul_(3)
    y.exp_()
    c.sub_(0.5)
    return y * u


def result_saved_by_its_maker(x, c):
    y = torch.tanh(x * c)
    z = y * c
    y.add_(c)
    c.mul_(2)
    z.sin_()
    return z + y


@pytest.mark.parametrize("transform", [*TRANSFORMS, "vmap"])
@pytest.mark.parametrize(
    "func",
    [
        result_then_operand,
        operand_then_result,
        own_operand_and_result,
        result_saved_by_its_maker,
    ],
)
def test_an_operand_and_a_result_that_are_overwritten_are_told_apart(func, transform):
    def f(x, factor):
        return func(x, factor.clone())

    captured = torch.tensor([-1.1, 0.3, 0.8], dtype=F64)
    y_bar = torch.tensor([0.3, -0.2, 0.9], dtype=F64)
    leaf = X.clone().requires_grad_()
    reference = OUT_OF_PLACE[func.__name__](leaf, captured).reshape(3)
    (expected,) = torch.autograd.grad(reference, leaf, y_bar)
    for _ in range(3):
        if transform == "vmap":
            (jac,) = vmap(lambda x: jacrev(lambda x: f(x, captured))(x))(X[None])
        else:
            jac = transform(lambda x: f(x, captured))(X)
        assert_close(y_bar @ jac.reshape(3, 3), expected)


OUT_OF_PLACE = {
    "result_then_operand": lambda x, c: x * c * 0.5,
    "operand_then_result": lambda x, c: x * c * 0.5,
    "own_operand_and_result": lambda x, c: (x * c).exp() * x * 3,
    "result_saved_by_its_maker": lambda x, c: (torch.tanh(x * c) * c).sin() + torch.tanh(x * c) + c,
}


# ----- The caller's tensors -----


def test_a_captured_tensor_that_is_written_after_use():
    buffer = torch.ones(3, dtype=F64)

    def f(x):
        y = x * buffer
        buffer.mul_(5.0)
        return y * x

    for transform in TRANSFORMS:
        for _ in range(3):
            buffer.fill_(1.0)
            assert_close(transform(f)(X), torch.diag(2 * X))
            assert torch.equal(buffer, torch.full((3,), 5.0, dtype=F64))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_captured_tensors_keep_values_and_lose_history(transform):
    buffer, view = zeros(3), zeros(2, 3)[1]

    def f(x):
        buffer.copy_(x**2)
        view[1:] = buffer[:2] * x[0]
        torch.sin(x, out=buffer)
        return buffer.sum() * view

    for _ in range(3):
        buffer.zero_()
        view.zero_()
        jac = transform(f)(X.clone())
        for tensor in (buffer, view):
            assert not tensor.requires_grad
            assert tensor.grad_fn is None
        assert_close(buffer, X.sin())
        assert_close(view[1:], X[:2] ** 2 * X[0])
        assert_close(jac, central_jacobian(f, X))


CAPTURED_VIEWS = {
    "reshaped": lambda: zeros(4).reshape(4, 1),
    "turned": lambda: zeros(1, 4).t(),
    "a part": lambda: zeros(5, 1)[1:],
}


def _write_at_places(c, x):
    c[[0, 2]] = x[[1, 0]]


def _write_where(c, x):
    c[x > 0] = x[x > 0]


def _write_slices(c, x):
    c[1:] += x[1:]


WRITES = {
    "[list]": _write_at_places,
    "[mask]": _write_where,
    "[1:] +=": _write_slices,
    "add_": lambda c, x: c.add_(x),
    "index_add_": lambda c, x: c.index_add_(0, torch.tensor([1]), x[:1]),
    "select().copy_": lambda c, x: c.select(0, 1).copy_(x[0]),
    "out=": lambda c, x: torch.mul(x, x, out=c),
}


@pytest.mark.parametrize("writing", WRITES)
@pytest.mark.parametrize("view", CAPTURED_VIEWS)
@pytest.mark.parametrize("transform", [*TRANSFORMS, hessian])
def test_views_of_the_callers_that_are_written_to_have_no_history_afterwards(
    transform, view, writing
):
    captured = CAPTURED_VIEWS[view]()
    x = torch.tensor([[0.7], [-0.4], [1.2], [0.3]], dtype=F64)

    def f(x):
        WRITES[writing](captured, x)
        return (x * captured.sin()).sum() if transform is hessian else x * captured.sin()

    def again(x):
        captured.zero_()
        return f(x)

    for _ in range(3):
        captured.zero_()
        result = transform(f)(x)
        assert not captured.requires_grad
        assert captured.grad_fn is None
        end = captured.clone()
        expected = jacrev(again) if transform is hessian else again
        assert_close(result, central_jacobian(expected, x))
        again(x)
        assert torch.equal(captured, end)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_views_taken_before_the_call_see_the_derivative_and_have_no_history_afterwards(transform):
    buffer = zeros(4)
    first, second = buffer[1:], buffer.view(2, 2)[1]

    def f(x):
        buffer[:3].copy_(x**2)
        doubled = torch.cat([first, second]) * second.sum()
        second.mul_(x[:2])
        return doubled, second

    for _ in range(3):
        buffer.zero_()
        jac, jac_of_view = transform(f)(X)
        after = [t.clone() for t in (buffer, first, second)]
        assert_close(jac, central_jacobian(lambda x: f(x)[0].clone(), X))
        assert_close(jac_of_view, central_jacobian(lambda x: f(x)[1].clone(), X))
        buffer.zero_()
        f(X)
        for tensor, value in zip((buffer, first, second), after, strict=True):
            assert torch.equal(tensor, value)
            assert not tensor.requires_grad


@pytest.mark.parametrize("outer", [torch.func.jacfwd, jacfwd, jacrev])
def test_buffers_made_inside_are_followed_within_enclosing_transforms(outer):
    def f(x):
        buffer = x.new_zeros(3)
        buffer[0] = x[0] ** 2
        buffer[1:] = x[1:] * buffer[0]
        z = buffer * x
        buffer.mul_(2)
        return z + buffer

    expected = central_jacobian(jacfwd(f), X)
    for inner in TRANSFORMS:
        for _ in range(2):
            assert_close(outer(inner(f))(X.clone()), expected)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: jacfwd(f, randomness="same"),
        lambda f: jacobian(f, randomness="same"),
        jacrev,
        lambda f: lambda x: linearize(f, x),
        lambda f: lambda x: jvp(f, (x,), (x,)),
    ],
)
def test_side_effects_happen_once_where_saved_tensors_are_overwritten(transform):
    calls = []
    counter = torch.zeros((), dtype=torch.long)

    def f(x):
        calls.append(1)
        counter.add_(1)
        return input_saved_by_a_product(x) * torch.rand(())

    for number in range(1, 6):
        torch.manual_seed(0)
        transform(f)(X)
        assert len(calls) == int(counter) == number
        after = torch.get_rng_state()
        torch.manual_seed(0)
        torch.rand(())
        assert torch.equal(after, torch.get_rng_state())


def test_batch_norm_counts_and_averages_once():
    net, plain = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()
    x = torch.randn(4, 3, dtype=F64)
    for transform in TRANSFORMS:
        transform(net)(x)
        plain(x)
        for ours, theirs in zip(net.buffers(), plain.buffers(), strict=True):
            assert not ours.requires_grad
            assert torch.equal(ours, theirs)


def test_a_write_to_an_input_given_twice():
    def f(x, y):
        x.mul_(2.0)
        return x * y

    for transform in TRANSFORMS:
        given = X.clone()
        jac = transform(f)(given, given)
        assert_close(given, 2 * X)
        # Either argument may or may not see the other's write: as two tensors, or as one.
        assert torch.allclose(jac, torch.diag(4 * X)) or torch.allclose(jac, torch.diag(2 * X))


def test_inplace_on_a_leaf_that_requires_grad_is_refused_as_by_pytorch():
    weight = torch.ones(3, dtype=F64, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        jacfwd(lambda x: weight.mul_(x))(X)
    assert torch.equal(weight, torch.ones(3, dtype=F64))


# ----- Strides, offsets and views of constants -----


def test_copied_transpose_keeps_the_strides_of_its_target():
    def f(x):
        return zeros(3, 2).copy_(x.mT).flatten()

    x = torch.rand(2, 3, dtype=F64)
    for transform in TRANSFORMS:
        for _ in range(3):
            assert_close(transform(f)(x), central_jacobian(f, x))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_views_at_other_places_are_other_programs(transform):
    buffer = torch.arange(8.0, dtype=F64)
    x = torch.rand(5, dtype=F64)
    for start in (0, 1, 2, 3):
        for _ in range(3):
            jac = transform(lambda x, s=start: x.as_strided((2,), (1,), s) ** 2)(x)
            expected = zeros(2, 5)
            expected[0, start], expected[1, start + 1] = 2 * x[start], 2 * x[start + 1]
            assert_close(jac, expected)
            jac = transform(lambda x, s=start: x[:2] * buffer[s : s + 2])(x)
            assert_close(jac[:, :2], torch.diag(buffer[start : start + 2]))
            expected = zeros(6, 5)
            expected[start, 0] = expected[start + 1, 1] = 1.0

            def written(x, s=start):
                y = zeros(6)
                y[s : s + 2] = x[:2]
                return y

            assert_close(transform(written)(x), expected)


# ----- What modules keep -----


class Keeping(nn.Module):
    """Keeps the last hidden value, and a constant made of the first input."""

    def __init__(self):
        super().__init__()
        self.last = None
        self.ones = None

    def forward(self, x):
        if self.ones is None:
            self.ones = x.new_ones(3) * 1
        self.last = x.new_zeros(3)
        self.last[1:] = x[1:].sin()
        return self.last * 2 * self.ones


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_what_a_module_keeps_is_an_ordinary_tensor(transform):
    module = Keeping()
    expected = central_jacobian(Keeping(), X)
    for _ in range(3):
        assert_close(transform(module)(X), expected)
        assert type(module.last) is Tensor
        assert (module.last + 1).shape == (3,)
        assert_close(module.last.detach(), torch.cat([zeros(1), X[1:].sin()]))


def test_a_constant_made_within_an_inner_transform_is_used_outside():
    module = Keeping()
    inner = jacrev(lambda y: module(y).sum() ** 2)
    f = lambda x: inner(x) + module(x)  # noqa: E731
    assert_close(jacfwd(f)(X), central_jacobian(f, X))


def test_setting_data():
    def f(x):
        q = zeros(3)
        q.data = torch.ones(3, dtype=F64)
        return x * q

    for transform in TRANSFORMS:
        assert_close(transform(f)(X), torch.eye(3, dtype=F64))
