"""Pytrees: the structures are PyTorch's own, whichever way they are found."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree

import pushforward as pf
from pushforward import trees

A, B, C = torch.rand(2), torch.rand(3), torch.rand(())
Pair = collections.namedtuple("Pair", ["a", "b"])
TREES: dict[str, Any] = {
    "tensor": A,
    "dict": {"a": A, "b": B},
    "another order": {"b": A, "a": B},
    "keys of several kinds": {1: A, "b": B},
    "true": {True: A},
    "one": {1: A},
    "types as keys": {list: A, 3: B},
    "list": [A, B, C],
    "tuple": (A, B, C),
    "empty": (),
    "nothing": {},
    "nested": {"a": (A, B), "b": [C]},
    "nested otherwise": {"a": [A, B], "b": (C,)},
    "deep": ([{"a": A, "b": {"c": (B, [C, A])}}, B], A),
    "empty ones within": (A, (), {}, [[]], B),
    "numbers within": {"a": (A, 1.0), "b": [B]},
    "keys of several kinds within": (A, {1: B, "b": C}),
    "named within": ({"a": Pair(A, B)}, C),
    "nothing but structure": ({"a": ()}, [[]]),
    "numbers": [A, 2.0, None],
    "named": Pair(A, B),
    "ordered": collections.OrderedDict(b=A, a=B),
    "by default": collections.defaultdict(list, a=A),
}


@pytest.mark.parametrize("name", TREES)
def test_structures_are_those_of_pytorch(name: str) -> None:
    tree = TREES[name]
    for other in (tree, *TREES.values(), tree):  # whatever came before
        leaves, spec = trees.flatten(other)
        expected_leaves, expected = pytree.tree_flatten(other)
        assert spec == expected
        assert all(a is b for a, b in zip(leaves, expected_leaves, strict=True))
        found = trees.unflatten([(leaf,) for leaf in leaves], spec)
        made = pytree.tree_unflatten([(leaf,) for leaf in leaves], expected)
        assert found == made
        assert type(found) is type(made)
        if isinstance(made, dict):
            assert [*map(repr, found)] == [*map(repr, made)]


def test_many_structures_are_forgotten() -> None:
    for number in range(trees.MAX_KNOWN + 10):
        tree = {f"x{number}": A}
        leaves, spec = trees.flatten(tree)
        assert trees.unflatten(leaves, spec) == tree
    assert len(trees._known) <= trees.MAX_KNOWN
    assert len(trees._names) == len(trees._known)


def test_results_have_the_structure_of_arguments_and_outputs() -> None:
    def f(tree: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"q": tree["b"] * tree["a"].sum(), "p": tree["a"].sin()}

    for _ in range(6):
        for tree in ({"a": A, "b": B}, {"b": B, "a": A}):
            found, expected = pf.jacrev(f)(tree), torch.func.jacrev(f)(tree)
            assert list(found) == list(expected)
            assert list(found["q"]) == list(expected["q"])
            torch.testing.assert_close(found, expected)
