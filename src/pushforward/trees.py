"""Pytrees: flattening with the path of every leaf, so that a message can name it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

TreeSpec = pytree.TreeSpec

# The structure of a lone leaf, by far the most frequent one.
LEAF: TreeSpec = pytree.tree_flatten(0)[1]


MAX_KNOWN = 1024  # structures of one level

# The structure of dictionaries, tuples and lists of tensors, by their keys or length, and by `id` how they are made:
# PyTorch's functions take a microsecond for each leaf.
_known: dict[Any, TreeSpec] = {}
_makers: dict[int, tuple[TreeSpec, Any, tuple[Any, ...] | None]] = {}


def flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Return the leaves of a pytree and its structure."""
    if isinstance(tree, Tensor):
        return [tree], LEAF
    kind = type(tree)
    if kind is dict or kind is tuple or kind is list:
        keys = None if kind is not dict else tuple(tree)
        leaves = [*(tree if keys is None else tree.values())]
        if are_of(Tensor, leaves) and (keys is None or are_of(str, keys)):
            return leaves, _structure(tree, kind, keys)
    return pytree.tree_flatten(tree)


def are_of(kind: type, items: Sequence[Any]) -> bool:
    """Tell whether all are instances of a class."""
    for item in items:  # noqa: SIM110 (a third of the time)
        if not isinstance(item, kind):
            return False
    return True


def _structure(tree: Any, kind: type, keys: tuple[Any, ...] | None) -> TreeSpec:
    name = (kind, len(tree) if keys is None else keys)
    spec = _known.get(name)
    if spec is None:
        if len(_known) >= MAX_KNOWN:
            _makers.clear()
            _known.clear()
        spec = _known[name] = pytree.tree_flatten(tree)[1]
        _makers[id(spec)] = (spec, kind, keys)
    return spec


def unflatten(leaves: Sequence[Any], spec: TreeSpec) -> Any:
    """Put leaves back into a structure."""
    if spec is LEAF:
        return leaves[0]
    maker = _makers.get(id(spec))
    if maker is not None and maker[0] is spec:
        _, kind, keys = maker
        return kind(leaves) if keys is None else dict(zip(keys, leaves, strict=True))
    return pytree.tree_unflatten(leaves, spec)


def paths(tree: Any) -> list[str]:
    """Return for every leaf how to reach it: ``['a'][0]``; the empty string for a lone leaf."""
    return [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]


def is_differentiable(leaf: Any) -> bool:
    """Tell whether a leaf is a floating or complex tensor."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Return ``tree`` with tensors replaced."""
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) in (tuple, list):
        return type(tree)(map_tensors(function, item) for item in tree)
    if type(tree) is dict:
        return {name: map_tensors(function, value) for name, value in tree.items()}
    return tree
