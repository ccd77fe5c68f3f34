"""compile: what stands in the place of a captured tensor may be another at each call, and at each pass back."""

from types import SimpleNamespace

import pytest
import torch
import torch.func as tf

import pushforward as pf
from pushforward.errors import UnsupportedError

# PyTorch looks at gradients where it makes fake tensors, and hides what this warns of.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

f64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def gradients(derivative, x, tensors):
    """Return gradients of a derivative, and gradients of these."""
    first = torch.autograd.grad(derivative(x).square().sum(), tensors, create_graph=True)
    second = sum(g.sin().sum() for g in first)
    return first, torch.autograd.grad(second, tensors, retain_graph=True)


@pytest.mark.parametrize("is_followed", [False, True])
def test_passes_back_reach_what_stands_there_now(is_followed):
    held = SimpleNamespace(w=randn(3, 3).requires_grad_())

    def f(x):
        return (held.w @ x).tanh() * x

    compiled, plain = pf.compile(pf.jacrev(f), backend="eager"), tf.jacrev(f)
    x = randn(3, seed=1)
    with torch.set_grad_enabled(is_followed):
        compiled(x)
        compiled(x)
    for seed in range(3):
        held.w = randn(3, 3, seed=seed).requires_grad_()
        torch.testing.assert_close(gradients(compiled, x, [held.w]), gradients(plain, x, [held.w]))
    assert len(compiled.compiled.programs()) == 1


def test_a_tensor_made_anew_at_each_call_is_followed_to_what_it_is_made_of():
    held, source = SimpleNamespace(w=randn(3, 3)), randn(3, 3, seed=1).requires_grad_()

    def f(x):
        return (held.w @ x).sin()

    compiled = pf.compile(pf.jacfwd(f), backend="eager")
    x = randn(3, seed=2)
    for scale in (1.0, 2.0, 3.0):
        held.w = source * scale
        found = gradients(compiled, x, [source])
        torch.testing.assert_close(found, gradients(tf.jacfwd(f), x, [source]))


def test_captured_tensors_made_of_each_other_are_followed_once():
    u = randn(3).requires_grad_()
    held = SimpleNamespace(u=u, v=u.flip(0) * 2, parts=(u * 3).unbind())

    def f(x):
        return held.u * held.v * x.sin() * held.parts[1] + held.parts[2] * x

    compiled = pf.compile(pf.jacrev(f), backend="eager")
    x = randn(3, seed=1)
    for _ in range(2):
        found = gradients(compiled, x, [u])
        torch.testing.assert_close(found, gradients(tf.jacrev(f), x, [u]))
    assert not u.grad_fn
    (after,) = torch.autograd.grad(held.v.sum() + held.parts[1], u)  # their own history is whole
    torch.testing.assert_close(after, torch.tensor([2.0, 5.0, 2.0], dtype=f64))


def test_a_first_pass_back_after_the_function_changed_raises():
    held = SimpleNamespace(w=randn(3).requires_grad_(), is_square=True)

    def f(x):
        return held.w * (x**2 if held.is_square else x.sin())

    compiled = pf.compile(pf.jacfwd(f), backend="eager")
    x = randn(3, seed=1)
    squares = compiled(x)
    held.is_square = False
    compiled(x)
    with pytest.raises(UnsupportedError, match="captured other values since"):
        squares.sum().backward()
    held.is_square = True
    squares = compiled(x)
    squares.sum().backward(retain_graph=True)
    held.is_square = False
    squares.sum().backward()
    torch.testing.assert_close(held.w.grad, 4 * x)


def test_other_sizes_meet_what_stands_there_now():
    held = SimpleNamespace(u=torch.tensor(2.0, dtype=f64))
    compiled = pf.compile(pf.jacfwd(lambda x: held.u * x * x), backend="eager", dynamic=True)
    for size, factor in ((3, 2.0), (4, 2.0), (5, 10.0), (6, 10.0), (4, 7.0), (8, 7.0)):
        held.u = torch.tensor(factor, dtype=f64)
        x = randn(size)
        torch.testing.assert_close(compiled(x), (2 * factor * x).diag())


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_first_calls_in_inference_mode(backend):
    w = randn(3, 3)
    compiled = pf.compile(pf.jacrev(lambda x: (held.w @ x).tanh() * 1.5), backend=backend)
    held, x = SimpleNamespace(w=w), randn(3, seed=1)
    expected = tf.jacrev(lambda x: (w @ x).tanh() * 1.5)(x)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(compiled(x + 0), expected)
        held.w = w + 0
        torch.testing.assert_close(compiled(x), expected)
    held.w = w
    found = compiled(x)
    torch.testing.assert_close(found, expected)
    assert not found.is_inference()


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_captured_tensors_and_cotangents_that_are_negated_when_read(backend):
    held, x = SimpleNamespace(w=randn(3, 3)), randn(3, seed=1)

    def f(x):
        return (held.w @ x).tanh() * x

    compiled = pf.compile(pf.jacrev(f), backend=backend)
    for seed in range(4):
        other = randn(3, 3, seed=seed).requires_grad_(seed > 1)
        held.w = torch._neg_view(other) if seed % 2 else other
        found, expected = compiled(x), tf.jacrev(f)(x)
        torch.testing.assert_close(found, expected)
        if other.requires_grad:
            for cotangent in (randn(3, 3, seed=5), torch._neg_view(randn(3, 3, seed=6))):
                torch.testing.assert_close(
                    torch.autograd.grad(found, other, cotangent, retain_graph=True),
                    torch.autograd.grad(expected, other, cotangent, retain_graph=True),
                )


class Layer(torch.nn.Module):
    """Two parameters, a factor, and what it writes down of each call."""

    def __init__(self, counts, keeps):
        super().__init__()
        self.weight = torch.nn.Parameter(randn(3, 3))
        self.bias = torch.nn.Parameter(randn(3, seed=1))
        self.factor, self.times, self.counts, self.keeps = 2.0, 1, counts, keeps
        self.number, self.last = 0, torch.zeros(3)

    def forward(self, x):
        if self.counts:
            self.number += 1
        if self.keeps:
            self.last = x.detach().clone()
        for _ in range(self.times):
            x = (self.weight @ x + self.bias).tanh() * self.factor
        return x


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("keeps", [False, True])
def test_attributes_of_modules_that_change_and_change_back(counts, keeps):
    layer = torch.nn.Sequential(Layer(counts, keeps), Layer(False, False)).double()
    first = layer[0]
    compiled, plain = pf.compile(pf.jacfwd(layer), backend="eager"), tf.jacrev(layer)
    x, old = randn(3, seed=2), first.weight

    def check():
        for _ in range(2):
            torch.testing.assert_close(compiled(x), plain(x))

    check()
    changes = [
        lambda: setattr(first, "factor", 3.0),
        lambda: setattr(first, "factor", 2.0),
        lambda: setattr(first, "weight", torch.nn.Parameter(randn(3, 3, seed=3))),
        lambda: setattr(first, "weight", old),
        lambda: setattr(first, "times", 2),
        lambda: setattr(first, "times", True),
        lambda: setattr(first, "other", 1),
        lambda: delattr(first, "other"),
        lambda: first.register_parameter("bias", torch.nn.Parameter(randn(3, seed=4))),
        lambda: first.weight.data.mul_(2),
        lambda: setattr(first.weight, "data", randn(3, 3, seed=5)),
        lambda: setattr(first, "forward", lambda x: x.sin() * first.bias),
        lambda: delattr(first, "forward"),
    ]
    for change in changes:
        change()
        check()
