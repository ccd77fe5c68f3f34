"""vjp: outputs, cotangents, pytrees, aux, cuts, composition with grad."""

import pytest
import torch
from doubles import F64, close, randn
from torch import Tensor


def test_returns_the_output_and_a_function_of_cotangents(api):
    x, v = randn(3), randn(3)
    out, pull = api.vjp(torch.sin, x)
    close(out, x.sin())
    result = pull(v)
    assert isinstance(result, tuple)
    close(result, (v * x.cos(),))


def test_the_pullback_can_be_called_again(api):
    x = randn(3)
    _, pull = api.vjp(lambda x: x**3, x)
    for _ in range(3):
        v = randn(3)
        close(pull(v), (3 * v * x**2,))


def test_outputs_that_are_the_input_add_their_cotangents_up(api):
    x = randn()
    out, pull = api.vjp(lambda x: (x, x), x)
    close(out, (x, x))
    close(pull((torch.ones_like(x), 2 * torch.ones_like(x))), (torch.tensor(3.0, dtype=F64),))


def test_several_primals_give_a_cotangent_each(api):
    x, y, v = randn(2, 3), randn(3), randn(2)
    _, pull = api.vjp(torch.matmul, x, y)
    close(pull(v), (torch.outer(v, y), x.mT @ v))


def test_an_output_without_relation_has_zero_cotangents(api):
    x, y = randn(2), randn(3)
    _, pull = api.vjp(lambda x: y, x)
    close(pull(randn(3)), (torch.zeros(2, dtype=F64),))


def test_an_input_without_relation_has_a_zero_cotangent(api):
    w, x, y = randn(), randn(), randn()
    _, pull = api.vjp(lambda w, x: (y, y, x), w, x)
    one = torch.ones((), dtype=F64)
    close(pull((one, one, one)), (torch.zeros((), dtype=F64), one))


def test_a_pytree_of_primals_gets_a_pytree_of_cotangents(api):
    x, y, z, v = randn(), randn(), randn(), randn()
    out, pull = api.vjp(lambda a: a[0] * a[1][0], (x, (y, z)))
    close(out, x * y)
    close(pull(v), ((y * v, (x * v, torch.zeros((), dtype=F64))),))


def test_a_pytree_of_outputs_takes_a_pytree_of_cotangents(api):
    x, u, v, w = randn(), randn(), randn(), randn()
    out, pull = api.vjp(lambda x: (x, (2 * x, x)), x)
    close(out, (x, (2 * x, x)))
    close(pull((u, (v, w))), (u + 2 * v + w,))


@pytest.mark.parametrize(
    "tree",
    [
        lambda a, b: [a, b],
        lambda a, b: {"a": a, "b": b},
        lambda a, b: [(b, {"a": a, "out": [a, b]})],
    ],
    ids=["list", "dict", "nested"],
)
def test_containers_of_outputs_keep_their_types(api, tree):
    x, t = randn(2, 3), randn(2, 3)
    out, pull = api.vjp(lambda x: tree(x, x.sum()), x)
    assert type(out) is type(tree(x, x))
    (result,) = pull(tree(t, t.sum()))
    assert isinstance(result, Tensor)
    assert result.shape == x.shape


def test_cotangents_of_another_structure_are_refused(api):
    x, v = randn(), randn()
    _, pull = api.vjp(lambda x: (x, (x, x)), x)
    with pytest.raises(RuntimeError, match="Expected pytree structure"):
        pull(((v, (v, v)),))
    with pytest.raises(RuntimeError, match="Expected pytree structure"):
        pull([v, (v, v)])


@pytest.mark.parametrize("output", [None, ()], ids=repr)
def test_an_empty_output_is_refused(api, output):
    with pytest.raises(RuntimeError, match="Expected f to be a function that has non-empty output"):
        api.vjp(lambda x: output, randn(2, 3))


@pytest.mark.parametrize("output", [1, True, 12.2, "abc"], ids=repr)
def test_an_output_that_is_no_tensor_is_refused(api, output):
    with pytest.raises(RuntimeError, match=r"expected f\(\*primals\) to return only tensors"):
        api.vjp(lambda x: output, randn(2, 3))


def test_aux_is_the_third_result(api):
    def f(x):
        return x.sin(), {"a": x.cos(), "b": [x.tan()]}

    x, v = randn(3), randn(3)
    out, pull, aux = api.vjp(f, x, has_aux=True)
    close((out, aux), f(x))
    close(pull(v), (v * x.cos(),))


@pytest.mark.parametrize("output", [lambda x: [x, x], lambda x: (x, x, x)])
def test_has_aux_wants_a_pair(api, output):
    with pytest.raises(RuntimeError, match="output of function f should be a tuple"):
        api.vjp(output, randn(3), has_aux=True)


# ---- History ----


def square(x):
    return x**2


def one():
    return torch.ones((), dtype=F64)


def test_no_grad_around_everything_leaves_no_history(api):
    x = torch.tensor(2.0, dtype=F64, requires_grad=True)
    with torch.no_grad():
        out, pull = api.vjp(square, x)
        (result,) = pull(one())
    close(result, 2 * x.detach())
    assert not result.requires_grad
    assert not out.requires_grad


def test_no_grad_around_the_pullback_leaves_the_output_its_history(api):
    x = torch.tensor(3.14, dtype=F64, requires_grad=True)
    out, pull = api.vjp(square, x)
    with torch.no_grad():
        (result,) = pull(one())
    close(result, 2 * x.detach())
    assert not result.requires_grad
    assert out.requires_grad
    close(torch.autograd.grad(out, x)[0], 2 * x.detach())


def test_no_grad_around_the_recording_leaves_the_output_without_history(api):
    x = torch.tensor(3.14, dtype=F64, requires_grad=True)
    with torch.no_grad():
        out, pull = api.vjp(square, x)
    (result,) = pull(one())
    close(result.detach(), 2 * x.detach())
    assert not out.requires_grad


def test_autograd_reaches_primal_cotangent_and_captured_parameter(api):
    x, v, w = (randn(3).requires_grad_() for _ in range(3))
    _, pull = api.vjp(lambda x: (w * x).sin(), x)
    (result,) = pull(v)
    grads = torch.autograd.grad(result.sum(), (x, v, w))
    closed = v * w * (w * x).cos()
    for actual, expected in zip(grads, torch.autograd.grad(closed.sum(), (x, v, w)), strict=True):
        close(actual, expected)


# ---- Composition ----


def test_grad_of_the_pullback_with_respect_to_the_cotangent(api):
    x, y = randn(), randn()
    _, pull = api.vjp(torch.sin, x)
    close(api.grad(lambda y: pull(y)[0])(y), x.cos())


def test_vjp_of_grad(api):
    x, y = randn(), randn()
    out, pull = api.vjp(api.grad(torch.sin), x)
    close(out, x.cos())
    close(pull(y), (-y * x.sin(),))


def test_grad_of_vjp_of_grad(api):
    x, y = randn(), randn()
    _, pull = api.vjp(api.grad(lambda x: -torch.cos(x)), x)
    close(api.grad(lambda y: pull(y)[0])(y), x.cos())


def test_grad_through_a_vjp_made_inside(api):
    x = randn(3)

    def f(x):
        _, pull = api.vjp(torch.sin, x)
        return pull(x)[0].sum()

    close(api.grad(f)(x), x.cos() - x * x.sin())


def test_vjp_of_a_pullback(api):
    x, v = randn(3), randn(3)
    _, pull = api.vjp(torch.sin, x)
    out, again = api.vjp(lambda v: pull(v)[0], v)
    close(out, v * x.cos())
    close(again(v), (v * x.cos(),))


def test_vmap_of_vjp_and_of_a_pullback(api):
    x, xs = randn(3), randn(5, 3)
    _, pull = api.vjp(torch.sin, x)
    close(api.vmap(lambda v: pull(v)[0])(xs), xs * x.cos())
    close(api.vmap(lambda x: api.vjp(torch.sin, x)[1](x)[0])(x), x * x.cos())


def test_vjp_of_vmap(api):
    x, v = randn(3), randn(3)
    out, pull = api.vjp(api.vmap(torch.sin), x)
    close(out, x.sin())
    close(pull(v), (v * x.cos(),))


def test_vmap_over_primals_of_a_batched_operator(api):
    x, v = randn(3, 5), randn(5)

    def f(x, v):
        return api.vjp(lambda x: torch.log_softmax(x, dim=-1), x)[1](v)[0]

    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(leaf.log_softmax(-1), leaf, v.expand(3, 5))[0]
    close(api.vmap(f, (0, None))(x, v), expected)
