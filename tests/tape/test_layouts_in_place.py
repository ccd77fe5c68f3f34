"""Views that are laid out anew in place: of captured tensors that were written to, and of several outputs."""

import pytest
import torch

from pushforward import UnsupportedError, clear_plans, jacfwd, jacrev, jvp, linearize

F64 = torch.float64
LAYOUTS = {
    "t_": lambda v: v.t_(),
    "transpose_": lambda v: v.transpose_(0, 1),
    "swapaxes_": lambda v: torch.Tensor.swapaxes_(v, 0, -1),
    "unsqueeze_": lambda v: v.unsqueeze_(1),
    "squeeze_": lambda v: v.unsqueeze_(0).squeeze_(0),
    "as_strided_": lambda v: v.as_strided_((3, 2), (1, 3)),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("is_made_inside", [True, False])
@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_views_of_what_was_written_to_are_laid_out_as_in_the_plain_call(
    transform, is_made_inside, layout
):
    x = torch.linspace(0.5, 1.5, 6, dtype=F64)

    def made():
        base = torch.arange(6, dtype=F64)
        view = base.view(2, 3)

        def f(x):
            mine = base.view(2, 3) if is_made_inside else view
            base.mul_(x)
            layout(mine)
            read = mine * 1
            mine.mul_(2)
            return read, mine.sin(), base * 1

        return f

    def alike(x):  # nothing is written here
        base = torch.arange(6, dtype=F64) * x
        read = layout((base * 1).view(2, 3))
        return read, (2 * read).sin(), base * 2

    value = made()(x)
    expected = torch.autograd.functional.jacobian(alike, x)
    for _ in range(3):
        for y, jac in zip(value, transform(made())(x), strict=True):
            assert jac.shape == (*y.shape, 6)
        torch.testing.assert_close(transform(made())(x), expected)
    output, tangent = jvp(made(), (x,), (x,))
    torch.testing.assert_close(output, value)
    torch.testing.assert_close(tangent, tuple(jac @ x for jac in expected))
    torch.testing.assert_close(linearize(made(), x)[1](x), tangent)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("parts", [lambda x: x.unbind(-1), lambda x: x.split([1, 1], -1)])
def test_one_of_several_outputs_cannot_be_laid_out_in_place_as_with_autograd(parts, layout):
    """Another view would be laid out than the one that the function has."""

    def f(x):
        view = parts(x.expand(6, 2))[0].reshape(2, 3)
        layout(view)
        return view * 1

    x = torch.ones(2, dtype=F64)
    for transform in (torch.func.jacrev, jacrev, jacfwd):
        with pytest.raises(RuntimeError, match="a function that returns multiple views"):
            transform(f)(x)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_an_input_that_is_laid_out_by_another_name_raises_and_stays_as_it_is(transform, layout):
    """Its shape says which shape results have."""

    def f(x, y):
        layout(y)
        return x * 1

    for _ in range(4):
        x = torch.ones(2, 3, dtype=F64)
        expected = torch.autograd.functional.jacobian(lambda x: x * 1, x)
        torch.testing.assert_close(transform(f)(x, torch.ones(2, 3)), expected)
        with pytest.raises(UnsupportedError, match=r"has as another argument.*Pass x.clone"):
            transform(f)(x, x)
        assert x.shape == (2, 3)


def test_a_captured_tensor_is_laid_out_once_also_where_the_function_has_to_be_run_twice():
    """It does something new after some calls, which has to be seen."""
    captured, state = torch.ones(2, 3), {"writes": False}

    def f(x):
        y = x * 1
        if state["writes"]:
            captured.t_()
            y[0].mul_(2)
        return y

    x = torch.ones(2, dtype=F64)
    for _ in range(3):
        jacrev(f)(x)
    state["writes"] = True
    with pytest.raises(UnsupportedError, match="had to be run twice"):
        jacrev(f)(x)
    assert captured.shape == (3, 2)
    torch.testing.assert_close(jacrev(f)(x), torch.diag(torch.tensor([2.0, 1.0], dtype=F64)))
    assert captured.shape == (2, 3)


NESTED = {
    "jacfwd": lambda f: torch.func.jacfwd(f, argnums=(0, 1)),
    "jacrev": lambda f: torch.func.jacrev(f, argnums=0),
    "vmap": lambda f: torch.func.vmap(f),
    "vmap of jacrev": lambda f: torch.func.vmap(torch.func.jacrev(f, argnums=0)),
}


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "as_strided_"])
@pytest.mark.parametrize("outer", NESTED)
@pytest.mark.parametrize("ours", [jacfwd, jacrev])
def test_arguments_that_are_not_differentiated_are_laid_out_below_torch_func(ours, outer, layout):
    def f(x, other):
        read = other * 1
        LAYOUTS[layout](other)
        return (other.sin() * x.sum()).sum(-1), read

    x = torch.linspace(0.5, 1.5, 6, dtype=F64).reshape(2, 3)
    other = torch.linspace(-1, 1, 6, dtype=F64).reshape(2, 3)
    if "vmap" in outer:
        x, other = torch.stack([x, 2 * x]), torch.stack([other, other * other])
    theirs = torch.func.jacfwd if ours is jacfwd else torch.func.jacrev
    left = other.clone()
    expected = NESTED[outer](theirs(f))(x, left)
    for _ in range(3):
        given = other.clone()
        torch.testing.assert_close(NESTED[outer](ours(f))(x, given), expected)
        assert given.shape == left.shape


@pytest.mark.parametrize("ours", [jacfwd, jacrev])
def test_arguments_that_are_not_differentiated_are_written_below_torch_func(ours):
    def f(x, other):
        read = other.sin()
        other.mul_(x)
        return other * x, read * x

    x = torch.linspace(0.5, 1.5, 3, dtype=F64)
    other = torch.linspace(-1, 1, 3, dtype=F64)
    theirs = torch.func.jacfwd if ours is jacfwd else torch.func.jacrev

    def outer(transform):
        def g(x, other):
            other = other * 1
            return transform(f)(x, other), other * 1

        return torch.func.jacfwd(g, argnums=(0, 1))

    expected = outer(theirs)(x, other)
    for _ in range(3):
        torch.testing.assert_close(outer(ours)(x, other), expected)


@pytest.mark.parametrize("write", [lambda v: v.unsqueeze_(0), lambda v: v.add_(1)])
@pytest.mark.parametrize("ours", [jacfwd, jacrev])
def test_arguments_are_not_laid_out_or_written_twice_where_a_batch_has_to_be_left_whole(
    ours, write
):
    def f(x, other):
        write(other)
        return torch.func.grad(lambda t: (t.sin() * t).sum())(x) * other

    x = torch.linspace(-1, 1, 6, dtype=F64).reshape(2, 3)
    theirs = torch.func.jacfwd if ours is jacfwd else torch.func.jacrev
    for times in (1, 2):
        clear_plans()
        derivative, expected = f, f
        for _ in range(times):
            derivative, expected = ours(derivative), theirs(expected)
        expected = torch.func.vmap(expected)(x, 2 * x)
        while True:
            try:
                found = torch.func.vmap(derivative)(x, 2 * x)
                break
            except UnsupportedError as error:
                assert "had to be run twice" in str(error)  # noqa: PT017 (it may be raised or not)
        for _ in range(3):
            torch.testing.assert_close(found, expected)
            found = torch.func.vmap(derivative)(x, 2 * x)


def _saved_as_output(x):
    y = x.sqrt()
    y.unsqueeze_(0)
    return y * x


def _saved_as_input(x):
    y = x.view(2, 2) * 1.0
    z = y.sin()
    y.t_()
    w = y.cos() * z
    y.mul_(2)
    y.t_()
    return z * y + w


def _base_saved_and_view_laid_out(x):
    y = x.clone()
    part, total = y[1:], y.sin().sum()
    part.unsqueeze_(0)
    part.mul_(total)
    return y * total


# With what each does without writing.
SAVED = [
    (_saved_as_output, lambda x: x.sqrt()[None] * x),
    (
        _saved_as_input,
        lambda x: 2 * (x * x.sin()).view(2, 2) + x.view(2, 2).t().cos() * x.sin().view(2, 2),
    ),
    (
        _base_saved_and_view_laid_out,
        lambda x: torch.cat([x[:1], x[1:] * x.sin().sum()]) * x.sin().sum(),
    ),
]


@pytest.mark.parametrize(("func", "alike"), SAVED)
def test_what_nodes_saved_may_be_laid_out_anew_as_forward_mode_allows(func, alike):
    x = torch.linspace(0.5, 1.5, 4, dtype=F64)
    for _ in range(3):
        expected = torch.func.jacrev(alike)(x)
        torch.testing.assert_close(jacfwd(func)(x), expected)
        torch.testing.assert_close(jacrev(func)(x), expected)
        torch.testing.assert_close(linearize(func, x)[1](x), expected @ x)
        second = torch.func.jacrev(torch.func.jacrev(alike))(x)
        torch.testing.assert_close(jacfwd(jacrev(func))(x), second)
        batch = torch.stack([x, 2 * x])
        batched = torch.func.vmap(torch.func.jacrev(alike))(batch)
        torch.testing.assert_close(torch.func.vmap(jacrev(func))(batch), batched)
        x = x + 0.1
