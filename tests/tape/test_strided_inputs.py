"""Inputs that are parts of other tensors: what is a copy of them in the plain call is one in the recorded call."""

import pytest
import torch

from pushforward import jacfwd, jacobian, jacrev, jvp, linearize

F64 = torch.float64
COPIES = {
    "contiguous": lambda x: x.contiguous(),
    "ravel": lambda x: x.ravel(),
    "reshape": lambda x: x.reshape(-1),
    "flatten": lambda x: x.flatten(),
}
PARTS = {
    "column": (lambda w: w[:, 0], (3, 2)),
    "every other": (lambda w: w[::2], (6,)),
    "block": (lambda w: w[1:, 1:], (3, 3)),
    "transposed block": (lambda w: w[1:, 1:].t(), (3, 3)),
    "transposed": (lambda w: w.t(), (2, 3)),
    "whole": (lambda w: w, (3,)),
}
EXPANDED = {  # no memory of their own for each element
    "expanded": (lambda w: w[:, None].expand(3, 2), (3,)),
    "expanded part": (lambda w: w[1:, :1].expand(2, 3), (3, 2)),
}


def along(transform, f, x):
    if transform is jvp:
        return jvp(f, (x,), (torch.ones_like(x),))[1]
    return linearize(f, x)[1](torch.ones_like(x)) if transform is linearize else transform(f)(x)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("part", PARTS | EXPANDED)
@pytest.mark.parametrize("transform", [jacfwd, jacrev, jacobian, jvp, linearize])
def test_writes_to_what_is_a_copy_in_the_plain_call_do_not_reach_the_input(transform, part, copied):
    take, shape = (PARTS | EXPANDED)[part]

    def f(x):
        copied(x).mul_(2)
        return x * x * x

    x = take(torch.ones(shape))
    factor = 1 if copied(x).data_ptr() != x.data_ptr() else 8
    for number in range(4):
        whole = torch.linspace(-1, 2 + number, torch.Size(shape).numel(), dtype=F64).reshape(shape)
        end = whole.clone()
        expected = torch.autograd.functional.jacobian(lambda x: factor * x**3, take(whole))
        if transform in (jvp, linearize):
            expected = expected.flatten(expected.dim() // 2).sum(-1)
        torch.testing.assert_close(along(transform, f, take(whole)), expected)
        f(take(end))
        assert torch.equal(whole, end)


@pytest.mark.parametrize("part", PARTS | EXPANDED)
def test_strides_inside_are_those_of_the_callers_tensor(part):
    take, shape = (PARTS | EXPANDED)[part]
    seen = []

    def f(x):
        seen.append((x.stride(), x.is_contiguous()))
        return x.sin()

    x = take(torch.ones(shape, dtype=F64))
    for _ in range(4):
        jacrev(f)(x)
    assert set(seen) == {(x.stride(), x.is_contiguous())}


@pytest.mark.parametrize("part", PARTS)
def test_parts_that_are_laid_out_anew_and_written_to_end_as_in_the_plain_call(part):
    take, shape = PARTS[part]

    def f(x):
        x.unsqueeze_(0).mul_(x + 2)
        return x * x

    for _ in range(4):
        whole = torch.linspace(-1, 2, torch.Size(shape).numel(), dtype=F64).reshape(shape)
        end = whole.clone()
        x = take(whole)
        jacfwd(f)(x)
        f(take(end))
        assert torch.equal(whole, end.reshape(shape))
        assert x.shape == take(torch.ones(shape)).shape


@pytest.mark.parametrize("part", PARTS)
def test_what_was_overwritten_in_parts_is_had_back(part):
    take, shape = PARTS[part]

    def f(x):
        y = x.sin() * x
        x.mul_(2)
        z = x.exp()
        x[1:].mul_(x[:1])
        return y + z + x.cos()

    def alike(x):
        y, x = x.sin() * x, 2 * x
        return y + x.exp() + torch.cat([x[:1], x[1:] * x[:1]]).cos()

    for transform in (jacfwd, jacrev):
        for _ in range(3):
            whole = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=F64).reshape(shape)
            expected = torch.autograd.functional.jacobian(alike, take(whole.clone()))
            torch.testing.assert_close(transform(f)(take(whole)), expected)


@pytest.mark.parametrize("part", EXPANDED)
@pytest.mark.parametrize("write", [lambda x: x.mul_(2), lambda x: x[..., :1].mul_(2)])
def test_writes_to_elements_that_share_memory_raise_and_leave_it_as_it_was(part, write):
    take, shape = EXPANDED[part]

    def f(x):
        y = x.sin()
        write(x)
        return x * y

    whole = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=F64).reshape(shape)
    before = whole.clone()
    for transform in (jacfwd, jacrev, jacobian):
        for _ in range(3):
            with pytest.raises(RuntimeError, match="single memory location"):
                transform(f)(take(whole))
            assert torch.equal(whole, before)


@pytest.mark.parametrize("part", EXPANDED)
def test_elements_that_share_memory_have_derivatives_of_their_own(part):
    take, shape = EXPANDED[part]

    def f(x):
        y = x.contiguous()
        y.mul_(x[..., :1])
        z = x.t().clone() if x.ndim == 2 else x.clone()
        z[:1].sub_(y.sum())
        return y.flatten().sin(), z.exp() * x.mean(), x[..., 1:] * x[..., :-1]

    whole = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=F64).reshape(shape)
    expected = torch.autograd.functional.jacobian(f, take(whole))
    for transform in (jacfwd, jacrev, jacobian):
        for _ in range(3):
            torch.testing.assert_close(transform(f)(take(whole)), expected)


@pytest.mark.parametrize("part", EXPANDED)
@pytest.mark.parametrize("transform", [jacfwd, jacrev, jacobian])
def test_expanded_inputs_may_be_laid_out_anew(transform, part):
    take, shape = EXPANDED[part]

    def f(x):
        x.unsqueeze_(0).transpose_(0, 1)
        return x.sin() * x.sum()

    whole = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=F64).reshape(shape)
    expected = torch.autograd.functional.jacobian(lambda x: f(x.clone()), take(whole))
    for _ in range(3):
        x = take(whole)
        torch.testing.assert_close(transform(f)(x), expected)
        assert x.shape == take(whole).shape
