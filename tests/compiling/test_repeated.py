"""Calls that look as the one before are recognized; whatever makes a difference is seen."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from pushforward import compile, grad, jacfwd
from pushforward.compiling.repeated import arranger, recognizer
from pushforward.trees import flatten

X = torch.tensor([0.5, -1.0, 2.0])


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


def searches(monkeypatch, compiled):
    """Count the calls for which a program is searched."""
    found = []
    searched = compiled.compiled._searched
    monkeypatch.setattr(compiled.compiled, "_searched", lambda *a: found.append(a) or searched(*a))
    return found


def test_a_call_like_the_one_before_is_not_searched_for(monkeypatch):
    compiled = compile(jacfwd(lambda x, *, scale: x * scale["by"][0]), backend="eager")
    found = searches(monkeypatch, compiled)
    for step in range(4):
        scale = {"by": (torch.tensor(float(step)), 2)}
        torch.testing.assert_close(compiled(X, scale=scale), torch.eye(3) * step)
    assert len(found) == 1


TREES = [
    ((X,), {}),
    ((X, (X, [X])), {}),
    ((X,), {"a": X, "b": {"c": (X,), "d": 1.5}}),
    ((X, "name", 2, 0.0, None, torch.float32), {}),
    ((), {"flag": True}),
    (([], {}, ()), {}),
    ((X.clone().requires_grad_(),), {}),
    ((nn.Parameter(X),), {}),
]
CHANGES = [
    ((X[:2],), {}),
    ((X[::2],), {}),
    ((X.double(),), {}),
    ((X.clone().requires_grad_(),), {}),
    ((X.detach(),), {}),
    ((X, [X, [X]]), {}),
    ((X, (X, (X,))), {}),
    ((X, (X,)), {}),
    ((X,), {"a": X}),
    ((X,), {"b": {"c": (X,), "d": 1.5}, "a": X}),
    ((X,), {"a": X, "b": {"c": (X,), "d": 1}}),
    ((X,), {"a": X, "b": {"d": 1.5, "c": (X,)}}),
    ((X, "name", 2, -0.0, None, torch.float32), {}),
    ((X, "name", True, 0.0, None, torch.float32), {}),
    ((X, "name", 2, 0.0, None, torch.float64), {}),
    ((), {"flag": 1}),
    (([], {}, [()]), {}),
    (([], (), ()), {}),
]


@pytest.mark.parametrize("known", TREES)
def test_what_differs_is_not_recognized(known):
    recognized = recognizer(*known)
    assert all(a is b for a, b in zip(recognized(*known), flatten_tensors(known), strict=True))
    for other in [*TREES, *CHANGES]:
        if other is not known:
            is_alike = flatten(other)[1] == flatten(known)[1] and all(
                looks(a) == looks(b)
                for a, b in zip(flatten(other)[0], flatten(known)[0], strict=True)
            )
            assert (recognized(*other) is not None) == is_alike, other


def flatten_tensors(tree):
    return [leaf for leaf in flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def looks(leaf):
    if isinstance(leaf, torch.Tensor):
        return type(leaf), leaf.shape, leaf.stride(), leaf.dtype, leaf.requires_grad
    return type(leaf), repr(leaf)


def test_containers_of_other_classes_are_searched_for_each_time(monkeypatch):
    assert recognizer((Pair(X, X),), {}) is None
    compiled = compile(grad(lambda p: (p.first * p.second).sum()), backend="eager")
    found = searches(monkeypatch, compiled)
    for _ in range(3):
        assert torch.equal(compiled(Pair(X, X + 1)).first, X + 1)
    assert len(found) == 3


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_autograd_follows_again_and_no_more(backend):
    compiled = compile(grad(lambda x: (x**3).sum()), backend=backend)
    followed = X.clone().requires_grad_()
    for _ in range(2):
        assert not compiled(X).requires_grad
        (second,) = torch.autograd.grad(compiled(followed).sum(), followed)
        torch.testing.assert_close(second, 6 * X)
        with torch.no_grad():
            assert not compiled(followed).requires_grad


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_parameters_that_begin_to_require_grad_are_followed(backend):
    layer = nn.Linear(3, 1).requires_grad_(False)
    compiled = compile(grad(lambda x: layer(x).sin().sum()), backend=backend)
    for is_trained in (False, False, True, True, False):
        layer.requires_grad_(is_trained)
        found = compiled(X)
        torch.testing.assert_close(found, layer(X).cos() * layer.weight[0])
        assert found.requires_grad == is_trained


def test_the_default_dtype_is_asked_each_time():
    compiled = compile(jacfwd(lambda x: x.sin() * torch.ones(3)), backend="eager")
    x = X.double()
    assert compiled(X).dtype == compiled(X).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert compiled(X).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert compiled(X).dtype == torch.float32
    assert compiled(x).dtype == torch.float64


def test_what_is_written_to_is_written_at_each_call():
    count = torch.zeros(())

    def counted(x):
        count.add_(1)
        return x.sin()

    compiled = compile(jacfwd(counted), backend="eager")
    for number in range(4):
        compiled(X)
        assert count.item() == number + 1


@pytest.mark.parametrize(
    "tree",
    [
        X,
        (X,),
        [X, (X, {"a": X, 3: [X]})],
        {"x": X, "kept": "aux", "none": None},
        Pair(X, X),
        (Pair(X, X), [X]),
        (),
        {},
    ],
)
def test_results_are_arranged_as_the_first_one_in_containers_of_their_own(tree):
    leaves, spec = flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    doubled = (lambda y: y * 2) if len(places) > 2 else None
    arranged = arranger(leaves, spec, {i: None if i else doubled for i in places})
    new = [torch.full((2,), float(i)) for i in places]
    found = arranged(new)
    found_leaves, found_spec = flatten(found)
    assert found_spec == spec
    for i, leaf in enumerate(found_leaves):
        if i in places:
            factor = 2 if doubled and not i else 1
            assert torch.equal(leaf, new[places.index(i)] * factor)
        else:
            assert leaf == leaves[i]
    assert isinstance(tree, torch.Tensor) or not tree or arranged(new) is not found
