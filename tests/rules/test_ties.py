"""What operators that choose between their arguments do where these are equal: as the installed PyTorch.

PyTorch 2.14 changed what clamp, fmax and fmin do there.
"""

import itertools
import math

import pytest
import torch

import pushforward as pf

VALUES = (0.0, 1.0, 2.0, math.inf, math.nan)
IGNORING_NAN = {"fmax": torch.fmax, "fmin": torch.fmin}
CHOICES = {
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    **IGNORING_NAN,
    "clamp, lower tensor": torch.clamp,
    "clamp, upper tensor": lambda x, high: x.clamp(max=high),
    "clamp, tensors": lambda x, low, high: x.clamp(low, high),
    "clamp_min, tensor": torch.clamp_min,
    "clamp_max, tensor": torch.clamp_max,
}
BOUNDED = {
    "clamp, lower number": torch.clamp,
    "clamp, upper number": lambda x, high: x.clamp(max=high),
    "clamp, numbers": lambda x, low, high: x.clamp(low, high),
    "clamp_min, number": torch.clamp_min,
    "clamp_max, number": torch.clamp_max,
}


def draws(count):
    """All combinations of the values, one column for each argument."""
    table = torch.tensor(list(itertools.product(VALUES, repeat=count)), dtype=torch.float64)
    return table.unbind(1)


@pytest.mark.parametrize("name", CHOICES)
def test_equal_arguments_share_as_in_torch(name):
    choose, count = CHOICES[name], 3 if name.endswith("tensors") else 2
    xs = draws(count)
    if name in IGNORING_NAN:  # see below
        kept = torch.logical_not(sum(xs).isnan())
        xs = tuple(x[kept] for x in xs)
    leaves = [x.clone().requires_grad_() for x in xs]
    expected = torch.autograd.grad(choose(*leaves).sum(), leaves)
    for transform in (pf.jacfwd, pf.jacrev):
        found = transform(choose, argnums=tuple(range(count)))(*xs)
        torch.testing.assert_close(found, tuple(g.diag() for g in expected), rtol=0, atol=0)


@pytest.mark.parametrize("name", BOUNDED)
def test_slopes_on_a_number_are_those_of_torch(name):
    clamp, count = BOUNDED[name], 2 if name.endswith("numbers") else 1
    x = torch.tensor(VALUES, dtype=torch.float64)
    for bounds in itertools.product(VALUES, repeat=count):
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(clamp(leaf, *bounds).sum(), leaf)
        for transform in (pf.jacfwd, pf.jacrev):
            found = transform(clamp)(x, *bounds)
            torch.testing.assert_close(found, expected.diag(), rtol=0, atol=0)


@pytest.mark.parametrize("name", IGNORING_NAN)
def test_what_is_not_a_number_is_not_chosen(name):
    """Its slope is 0, that of the other 1. PyTorch says so, too, but for 2.14, whose backward gives 1 to both."""
    choose = IGNORING_NAN[name]
    x, y = torch.tensor([math.nan, 1.0]), torch.tensor([1.0, math.nan])
    slopes = pf.jacrev(choose, argnums=(0, 1))(x, y)
    torch.testing.assert_close(
        slopes, (torch.tensor([0.0, 1.0]).diag(), torch.tensor([1.0, 0.0]).diag())
    )
    leaves = x.clone().requires_grad_(), y.clone().requires_grad_()
    theirs = torch.autograd.grad(choose(*leaves).sum(), leaves)
    gives_both = torch.__version__.startswith("2.14")
    expected = ([1.0, 1.0], [1.0, 1.0]) if gives_both else ([0.0, 1.0], [1.0, 0.0])
    assert tuple(g.tolist() for g in theirs) == expected


@pytest.mark.parametrize("name", [n for n in CHOICES if not n.endswith("tensors")])
def test_an_infinite_tangent_that_is_not_chosen_leaves_no_nan(name):
    x, y = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 1.0])
    chosen = CHOICES[name](x, y) == x
    inf = torch.full((3,), math.inf)
    other = torch.ones(3)
    _, tangent = pf.jvp(CHOICES[name], (x, y), (torch.where(chosen, other, inf), other))
    assert bool((tangent == 1).all())
