"""vjp and linearize under vmap: what they return is called inside, in other transforms inside, and after the end."""

import pytest
import torch
from doubles import F64, randn
from oracles import assert_close
from torch import Tensor

import pushforward as pf
from pushforward.errors import UnsupportedError

SIZE = 4


MATRIX = randn(2, 3)


def function(x: Tensor) -> Tensor:
    y = torch.tanh(MATRIX @ x)
    return torch.outer(y, x).cumsum(0) * x.sum()


def jacobians(points: Tensor) -> Tensor:
    """The Jacobians ``(batch, *out, in)``, one by one, from central differences' peer."""
    return torch.stack([torch.autograd.functional.jacobian(function, x) for x in points])


def pulled_by_hand(points: Tensor, cotangents: Tensor) -> Tensor:
    return torch.einsum("nabi,nab->ni", jacobians(points), cotangents)


def pushed_by_hand(points: Tensor, tangents: Tensor) -> Tensor:
    return torch.einsum("nabi,ni->nab", jacobians(points), tangents)


def pull(x: Tensor, cotangent: Tensor) -> Tensor:
    return pf.vjp(function, x)[1](cotangent)[0]


def push(x: Tensor, tangent: Tensor) -> Tensor:
    return pf.linearize(function, x)[1](tangent)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("repeat", [1, 4], ids=["once", "replayed"])
def test_batched_directions_wherever_their_axis(axis, repeat):
    x, w, v = randn(SIZE, 3), randn(SIZE, 2, 3), randn(SIZE, 3)
    for _ in range(repeat):
        pulled = torch.vmap(pull, in_dims=(axis, axis), out_dims=axis)(
            x.movedim(0, axis), w.movedim(0, axis)
        )
        assert_close(pulled.movedim(axis, 0), pulled_by_hand(x, w))
        pushed = torch.vmap(push, in_dims=(0, axis))(x, v.movedim(0, axis))
        assert_close(pushed, pushed_by_hand(x, v))


@pytest.mark.parametrize("repeat", [1, 4], ids=["once", "replayed"])
def test_directions_that_are_the_same_for_all(repeat):
    x, w, v = randn(SIZE, 3), randn(2, 3), randn(3)
    for _ in range(repeat):
        assert_close(torch.vmap(pull, (0, None))(x, w), pulled_by_hand(x, w.expand(SIZE, 2, 3)))
        assert_close(torch.vmap(push, (0, None))(x, v), pushed_by_hand(x, v.expand(SIZE, 3)))


def test_primals_that_are_the_same_for_all():
    x, w, v = randn(3), randn(SIZE, 2, 3), randn(SIZE, 3)
    points = x.expand(SIZE, 3)
    assert_close(torch.vmap(pull, (None, 0))(x, w), pulled_by_hand(points, w))
    assert_close(torch.vmap(push, (None, 0))(x, v), pushed_by_hand(points, v))


def test_batches_of_directions_in_the_batch():
    x, w, v = randn(SIZE, 3), randn(SIZE, 5, 2, 3), randn(SIZE, 5, 3)
    pulled = torch.vmap(lambda x, w: pf.vjp(function, x)[1].batched(w)[0])(x, w)
    assert_close(pulled, torch.stack([pulled_by_hand(x, w[:, i]) for i in range(5)], 1))
    pushed = torch.vmap(lambda x, v: pf.linearize(function, x)[1].batched(v))(x, v)
    assert_close(pushed, torch.stack([pushed_by_hand(x, v[:, i]) for i in range(5)], 1))


@pytest.mark.parametrize("is_direction_batched", [True, False])
def test_a_second_vmap_inside(is_direction_batched):
    """The directions have the inner batch, and the outer one or not."""
    x = randn(SIZE, 3)
    shape = (SIZE, 5) if is_direction_batched else (5,)
    w, v = randn(*shape, 2, 3), randn(*shape, 3)
    axis = 0 if is_direction_batched else None

    def pull_many(x: Tensor, w: Tensor) -> Tensor:
        pullback = pf.vjp(function, x)[1]
        return torch.vmap(lambda w: pullback(w)[0])(w)

    def push_many(x: Tensor, v: Tensor) -> Tensor:
        return torch.vmap(pf.linearize(function, x)[1], in_dims=0)(v)

    w, v = w.expand(SIZE, 5, 2, 3), v.expand(SIZE, 5, 3)
    given = (w, v) if is_direction_batched else (w[0], v[0])
    for _ in range(3):
        pulled = torch.vmap(pull_many, (0, axis))(x, given[0])
        assert_close(pulled, torch.stack([pulled_by_hand(x, w[:, i]) for i in range(5)], 1))
        pushed = torch.vmap(push_many, (0, axis))(x, given[1])
        assert_close(pushed, torch.stack([pushed_by_hand(x, v[:, i]) for i in range(5)], 1))


def test_three_vmaps_and_batches_at_the_end_of_each():
    x, w = randn(SIZE, 3), randn(SIZE, 5, 6, 2, 3)

    def pull_many(x: Tensor, w: Tensor) -> Tensor:
        pullback = pf.vjp(function, x)[1]
        inner = torch.vmap(lambda w: pullback(w)[0], in_dims=-1, out_dims=-1)
        return torch.vmap(inner, in_dims=-1, out_dims=1)(w)

    found = torch.vmap(pull_many)(x, w.permute(0, 3, 4, 2, 1))  # (batch, 2, 3, 6, 5)
    assert found.shape == (SIZE, 3, 5, 6)
    for i in range(5):
        for j in range(6):
            assert_close(found[:, :, i, j], pulled_by_hand(x, w[:, i, j]))


@pytest.mark.parametrize("library", [torch.func, pf], ids=["torch.func", "pushforward"])
@pytest.mark.parametrize("transform", ["jacfwd", "jacrev", "hessian"])
def test_transforms_of_the_pullback_inside(library, transform):
    """The pullback of the squares of a cotangent: its derivative is 2 J' diag(w)."""
    x, w = randn(SIZE, 3), randn(SIZE, 2, 3)

    def derivative(x: Tensor, w: Tensor) -> Tensor:
        pullback = pf.vjp(function, x)[1]
        return getattr(library, transform)(lambda w: pullback(w**2)[0])(w)

    jacs = jacobians(x).movedim(-1, 1)  # (batch, 3, 2, 3)
    if transform == "hessian":
        eye = torch.eye(6, dtype=F64).reshape(2, 3, 2, 3)
        expected = 2 * torch.einsum("niab,abcd->niabcd", jacs, eye)
    else:
        expected = 2 * jacs * w[:, None]
    for _ in range(3):
        assert_close(torch.vmap(derivative)(x, w), expected)


@pytest.mark.parametrize("library", [torch.func, pf], ids=["torch.func", "pushforward"])
def test_transforms_of_the_linear_function_inside(library):
    x, v = randn(SIZE, 3), randn(SIZE, 3)

    def gradient(x: Tensor, v: Tensor) -> Tensor:
        linear = pf.linearize(function, x)[1]
        return library.grad(lambda v: linear(v).square().sum())(v)

    jacs = jacobians(x).reshape(SIZE, 6, 3)
    expected = 2 * torch.einsum("nai,naj,nj->ni", jacs, jacs, v)
    for _ in range(3):
        assert_close(torch.vmap(gradient)(x, v), expected)


@pytest.mark.parametrize("outer", [torch.func.jacfwd, torch.func.jacrev, pf.jacfwd, pf.jacrev])
@pytest.mark.parametrize("inner", [pull, push], ids=["vjp", "linearize"])
def test_transforms_around_both_under_vmap(outer, inner):
    """By the point: second derivatives."""
    x = randn(SIZE, 3)
    given = randn(SIZE, 2, 3) if inner is pull else randn(SIZE, 3)
    expected = torch.stack(
        [
            torch.autograd.functional.jacobian(
                lambda x, given=d: (
                    torch.autograd.functional.vjp(function, x, given, create_graph=True)[1]
                    if inner is pull
                    else torch.autograd.functional.jvp(function, x, given, create_graph=True)[1]
                ),
                p,
            )
            for p, d in zip(x, given, strict=True)
        ]
    )
    assert_close(torch.vmap(outer(inner))(x, given), expected)
    assert_close(torch.vmap(lambda x, d: outer(lambda x: inner(x, d))(x))(x, given), expected)


@pytest.mark.parametrize("inner", [pull, push], ids=["vjp", "linearize"])
def test_autograd_flows_to_points_directions_and_captured(inner):
    x, weight = randn(SIZE, 3).requires_grad_(), randn(3).requires_grad_()
    given = (randn(SIZE, 2, 3) if inner is pull else randn(SIZE, 3)).requires_grad_()

    def loss(derivative) -> Tensor:
        return derivative.square().sum()

    def ours(x: Tensor, d: Tensor) -> Tensor:
        if inner is pull:
            return pf.vjp(lambda x: function(x * weight), x)[1](d)[0]
        return pf.linearize(lambda x: function(x * weight), x)[1](d)

    def theirs(x: Tensor, d: Tensor) -> Tensor:
        if inner is pull:
            return torch.func.vjp(lambda x: function(x * weight), x)[1](d)[0]
        return torch.func.jvp(lambda x: function(x * weight), (x,), (d,))[1]

    for _ in range(3):
        found = torch.autograd.grad(loss(torch.vmap(ours)(x, given)), (x, given, weight))
        expected = torch.autograd.grad(loss(torch.vmap(theirs)(x, given)), (x, given, weight))
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b)


def test_autograd_flows_through_a_second_vmap_inside():
    x, w = randn(SIZE, 3).requires_grad_(), randn(SIZE, 5, 2, 3).requires_grad_()

    def pull_many(library):
        def inside(x: Tensor, w: Tensor) -> Tensor:
            pullback = library.vjp(function, x)[1]
            return torch.vmap(lambda w: pullback(w)[0])(w)

        return torch.vmap(inside)(x, w).square().sum()

    found = torch.autograd.grad(pull_many(pf), (x, w))
    expected = torch.autograd.grad(pull_many(torch.func), (x, w))
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("name", ["vjp", "linearize"])
def test_a_call_after_the_vmap_has_ended_raises(name):
    kept = []

    def keep(x: Tensor) -> Tensor:
        output, derivative = getattr(pf, name)(torch.sin, x)
        kept.append(derivative)
        return output

    torch.vmap(keep)(randn(SIZE, 3))
    expected = f"{name}: .* got a call after that vmap has ended, expected one inside it"
    with pytest.raises(UnsupportedError, match=expected):
        kept[0](randn(3))
    with pytest.raises(UnsupportedError, match=expected):
        kept[0].batched(randn(SIZE, 3))
    with pytest.raises(UnsupportedError, match=expected):
        torch.vmap(kept[0])(randn(SIZE + 1, 3))
    with pytest.raises(UnsupportedError, match=expected):
        torch.func.grad(lambda x: kept[0](x)[0].sum())(randn(3))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_random_numbers_are_those_of_the_one_evaluation(randomness):
    x, w = randn(SIZE, 3), randn(SIZE, 3)

    def noisy(x: Tensor) -> Tensor:
        return x.square() * torch.randn(3, dtype=F64)

    def both(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, pullback = pf.vjp(noisy, x)
        return output, pullback(w)[0], pullback(w)[0]

    for _ in range(3):
        output, pulled, again = torch.vmap(both, randomness=randomness)(x, w)
        noise = output / x.square()
        assert torch.allclose(noise[0], noise[1]) == (randomness == "same")
        assert_close(pulled, 2 * x * noise * w)
        assert_close(again, pulled)


def test_randomness_error_is_that_of_vmap():
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(lambda x: pf.vjp(lambda x: x * torch.rand_like(x), x)[1](x)[0])(randn(SIZE, 3))


def test_results_share_no_memory_with_the_directions():
    x, v = randn(SIZE, 3), randn(SIZE, 3)
    for transform in (
        lambda x, v: pf.vjp(lambda x: x, x)[1](v)[0],
        lambda x, v: pf.linearize(lambda x: x, x)[1](v),
        lambda x, v: pf.jvp(lambda x: x.view(3), (x,), (v,))[1],
    ):
        for _ in range(3):
            found = torch.vmap(transform)(x, v)
            assert torch.equal(found, v)
            found.zero_()
            assert v.any()


def test_several_outputs_inputs_and_aux():
    x, y = randn(SIZE, 3), randn(SIZE, 2)
    v, w = randn(SIZE, 3, 2), randn(SIZE)

    def f(x: Tensor, y: Tensor):
        return {"outer": torch.outer(x, y).sin(), "dot": x.sum() * y.prod()}, x.sum()

    def derivative(library):
        def inside(x: Tensor, y: Tensor, v: Tensor, w: Tensor):
            _, pullback, aux = library.vjp(f, x, y, has_aux=True)
            return pullback({"outer": v, "dot": w}), aux

        return torch.vmap(inside)(x, y, v, w)

    (found, aux), (expected, expected_aux) = derivative(pf), derivative(torch.func)
    assert_close(aux, expected_aux)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


def test_functions_that_ask_autograd_are_left_whole():
    """Their batches are not taken apart, and what is returned works all the same."""
    x, w = randn(SIZE, 3), randn(SIZE, 3)

    def force(x: Tensor) -> Tensor:
        leaf = x * 1
        return torch.autograd.grad((leaf**3).sum(), leaf, create_graph=True)[0]

    for _ in range(3):
        assert_close(torch.vmap(lambda x, w: pf.vjp(force, x)[1](w)[0])(x, w), 6 * x * w)


def test_complex_numbers_and_mixed_dtypes():
    z, w = torch.randn(SIZE, 3, dtype=torch.complex128), randn(SIZE, 3)

    def modulus(z: Tensor) -> Tensor:
        return (z * z.conj()).real

    found = torch.vmap(lambda z, w: pf.vjp(modulus, z)[1](w.float())[0])(z, w)
    assert_close(found, 2 * z * w.float())


def test_a_write_to_what_was_saved_is_refused():
    x = randn(SIZE, 3)
    scale = randn(3)

    def inside(x: Tensor) -> Tensor:
        pullback = pf.vjp(lambda x: x * scale, x)[1]
        scale.add_(1)
        return pullback(x)[0]

    with pytest.raises(RuntimeError, match="written to"):
        torch.vmap(inside)(x)


@pytest.mark.parametrize("first", ["plain", "vmap", "asking"])
def test_kernels_of_plain_and_taken_apart_tapes_of_the_same_shape_are_not_mixed_up(first):
    """A batch of four numbers that is taken apart looks like four numbers."""
    x = randn(SIZE)

    def cube(x: Tensor) -> Tensor:
        return x * x * x

    def asked(x: Tensor) -> Tensor:
        assert x.requires_grad
        torch.autograd.grad(x.sum(), x)
        return cube(x)

    calls = {
        "plain": lambda: (pf.jacfwd(cube)(x), torch.diag(3 * x**2)),
        "vmap": lambda: (torch.vmap(pf.jacfwd(cube))(x), 3 * x**2),
        "asking": lambda: (
            torch.vmap(pf.jacfwd(asked))(x.expand(SIZE, SIZE)),
            torch.diag(3 * x**2).expand(SIZE, SIZE, SIZE),
        ),
    }
    for name in [first, *calls]:
        for _ in range(4):
            found, expected = calls[name]()
            assert_close(found, expected)
