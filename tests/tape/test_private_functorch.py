"""What we expect of the private names of ``torch.func`` in `tape.private_functorch`: a new PyTorch breaks here."""

import pytest
import torch
from torch.autograd import forward_ad

from pushforward.tape import private_functorch as private


def test_levels_are_counted_from_one():
    assert private.functorch_level() is None
    assert private.functorch_stack() is None
    seen = []

    def f(x):
        stack = private.functorch_stack()
        seen.append((private.functorch_level(), [i.level() for i in stack]))
        return x.sum()

    torch.func.grad(lambda x: f(x) + torch.func.grad(f)(x).sum())(torch.ones(2))
    assert seen == [(1, [1]), (2, [1, 2])]


def test_a_level_of_ones_own_wraps_records_and_unwraps():
    x = torch.ones(2)
    level = private.push_grad_level()
    try:
        inner = private.start_requiring_grad(private.wrap_for_grad(x, level))
        y = inner.sin()
        assert private.is_wrapped(y)
        assert private.level_of(y) == level == private.functorch_level()
        assert y.grad_fn.name() == "SinBackward0"
        saved = private.unwrap_for_grad(y.grad_fn._saved_self, level)
        assert not private.is_wrapped(saved)
        assert torch.equal(private.unwrap_for_grad(y, level), x.sin())
        assert torch.equal(private.unwrapped(y), x.sin())
    finally:
        private.pop_levels_above(0)
    assert private.functorch_level() is None
    assert private.outlives_level(y)
    assert private.level_of(y) == private._DEAD_LEVEL
    assert not private.outlives_level(x)
    assert private.level_of(x) < 0


def test_transforms_forbid_to_set_requires_grad_until_that_is_allowed():
    allowed = torch._C._functorch.get_inplace_requires_grad_allowed
    assert not allowed()
    private.allow_requiring_grad(True)
    assert allowed()
    private.allow_requiring_grad(False)


def test_requires_grad_can_be_set_where_transforms_forbid_it():
    def f(x):
        y = x.detach()
        with pytest.raises(RuntimeError, match="requires_grad_"):
            y.requires_grad_()
        assert private.start_requiring_grad(y) is y
        assert y.requires_grad
        with pytest.raises(RuntimeError, match="requires_grad_"):
            x.detach().requires_grad_()
        return x.sum()

    torch.func.grad(f)(torch.ones(2))


def test_batches_are_taken_apart_and_made():
    xs = torch.rand(3, 4, 2)

    def f(x):
        (interpreter,) = private.functorch_stack()
        level = interpreter.level()
        assert private.vmap_settings(interpreter) == (4, randomness != "error")
        assert private.batch_axis(x) == private.batch_axis_at(x, level) == 1
        assert private.batch_axis_at(x, level + 1) is None
        assert private.batch_axis_at(xs, level) is None
        assert private.batch_axis(xs) is None
        with private.without_functorch():
            physical = private.unwrapped(x)
            assert torch.equal(physical, xs)
            assert not private.is_wrapped(physical * 2)
            with private.with_functorch():
                assert private.is_wrapped(x * 2)
        made = private.add_batch_axis(physical, 1, level)
        return made + x

    for randomness in ("error", "same", "different"):
        found = torch.func.vmap(f, in_dims=1, randomness=randomness)(xs)
        assert torch.equal(found, 2 * xs.movedim(1, 0))
    torch.func.grad(lambda x: _no_vmap(x))(torch.ones(2))


def _no_vmap(x):
    assert private.vmap_settings(private.functorch_stack()[0]) is None
    return x.sum()


def test_functionalized_tensors_are_known():
    seen = []
    torch.func.functionalize(lambda x: seen.append(private.is_functionalized(x)) or x)(
        torch.ones(2)
    )
    assert seen == [True]
    assert not private.is_functionalized(torch.ones(2))


def test_levels_of_dual_numbers():
    assert private.dual_level() < 0
    with private.dual_numbers() as level:
        assert level is None
        assert private.dual_level() >= 0
        assert (
            forward_ad.unpack_dual(forward_ad.make_dual(torch.ones(2), torch.ones(2)).sin()).tangent
            is not None
        )
    assert private.dual_level() < 0

    def f(x):
        outer = private.functorch_level()
        with private.dual_numbers() as level:
            assert level == outer + 1
            dual = forward_ad.make_dual(x, x)
            tangent = forward_ad.unpack_dual(dual.sin()).tangent
            tangent = private.unwrap_for_grad(tangent, level)
        assert private.functorch_level() == outer
        return tangent

    x = torch.rand(3, 2)
    torch.testing.assert_close(torch.func.vmap(f)(x), x.cos() * x)
    torch.func.jvp(lambda x: x if private.dual_level() >= 0 else None, (x,), (x,))


def test_what_wrappers_hold_is_replaced_in_wrappers_of_the_same_levels():
    """So that ``.data`` has no derivative at any level, and is a view of the same memory."""
    x = torch.arange(3.0)

    def f(x):
        y = private.with_inner(x, torch.Tensor.data.__get__)
        assert private.level_of(y) == private.level_of(x)
        assert y.shape == x.shape
        y.add_(1)
        return (x * y).sum()

    found = torch.func.vmap(torch.func.grad(lambda x: torch.func.grad(f)(x).sum()))(x)
    assert torch.equal(found, torch.zeros(3))
    assert torch.equal(x, torch.arange(3.0) + 1)


def test_wrappers_are_found_from_the_outside_and_stay_the_same_objects():
    seen = []

    def f(x):
        found = private.wrappers(x)
        inner = private.unwrapped(found[-1])
        seen.append((len(found), found[0] is x, private.is_wrapped(inner), inner.shape))
        assert all(a is b for a, b in zip(found, private.wrappers(x), strict=True))
        before = inner._version
        x.add_(1)
        assert inner._version > before  # a batch does not count
        return x.sum()

    torch.func.vmap(lambda x: torch.func.jvp(f, (x,), (x,))[0])(torch.zeros(2, 3))
    assert seen == [(2, True, False, (2, 3))]
    assert private.wrappers(torch.ones(2)) == []
