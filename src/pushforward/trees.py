"""Pytrees: flattening with the path of every leaf, so that a message can name it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

TreeSpec = pytree.TreeSpec

# The structure of a lone leaf, by far the most frequent one.
LEAF: TreeSpec = pytree.tree_flatten(0)[1]


def flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Return the leaves of a pytree and its structure."""
    if isinstance(tree, Tensor):
        return [tree], LEAF
    return pytree.tree_flatten(tree)


def unflatten(leaves: Sequence[Any], spec: TreeSpec) -> Any:
    """Put leaves back into a structure."""
    if spec is LEAF:
        return leaves[0]
    return pytree.tree_unflatten(leaves, spec)


def paths(tree: Any) -> list[str]:
    """Return for every leaf how to reach it: ``['a'][0]``; the empty string for a lone leaf."""
    return [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Return ``tree`` with tensors replaced."""
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) in (tuple, list):
        return type(tree)(map_tensors(function, item) for item in tree)
    if type(tree) is dict:
        return {name: map_tensors(function, value) for name, value in tree.items()}
    return tree
