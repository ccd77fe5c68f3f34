"""Pytrees: flattening with the path of every leaf, so that a message can name it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

TreeSpec = pytree.TreeSpec

# The structure of a lone leaf, by far the most frequent one.
LEAF: TreeSpec = pytree.tree_flatten(0)[1]


MAX_KNOWN = 1024  # structures

# What tells a structure of dictionaries, tuples and lists of tensors: for each container its class, its keys or length,
# and what tells the structures in it.
_Name = tuple[type, Any, tuple["_Name | None", ...] | None]

# The structure by its name, and by `id` how it is made: PyTorch's functions take a microsecond for each leaf.
_known: dict[_Name, TreeSpec] = {}
_names: dict[int, tuple[TreeSpec, _Name]] = {}


def flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Return the leaves of a pytree and its structure."""
    if isinstance(tree, Tensor):
        return [tree], LEAF
    leaves: list[Any] = []
    name = _named(tree, leaves)
    if name is None:
        return pytree.tree_flatten(tree)
    spec = _known.get(name)
    if spec is None:
        if len(_known) >= MAX_KNOWN:
            _names.clear()
            _known.clear()
        spec = _known[name] = pytree.tree_flatten(tree)[1]
        _names[id(spec)] = (spec, name)
    return leaves, spec


def _named(tree: Any, leaves: list[Any]) -> _Name | None:
    """Return what tells a structure, and add the leaves; None of one that has something else than tensors."""
    kind = type(tree)
    if kind is dict:
        what: Any = tuple(tree)
        items = tree.values()
        if not are_of(str, what):
            return None
    elif kind is tuple or kind is list:
        what, items = len(tree), tree
    else:
        return None
    if are_of(Tensor, items):
        leaves += items
        return kind, what, None
    inside: list[_Name | None] = []
    for item in items:
        if isinstance(item, Tensor):
            leaves.append(item)
            inside.append(None)
            continue
        name = _named(item, leaves)
        if name is None:
            return None
        inside.append(name)
    return kind, what, tuple(inside)


def are_of(kind: type, items: Iterable[Any]) -> bool:
    """Tell whether all are instances of a class."""
    for item in items:  # noqa: SIM110 (a third of the time)
        if not isinstance(item, kind):
            return False
    return True


def unflatten(leaves: Sequence[Any], spec: TreeSpec) -> Any:
    """Put leaves back into a structure."""
    if spec is LEAF:
        return leaves[0]
    found = _names.get(id(spec))
    if found is None or found[0] is not spec or len(leaves) != spec.num_leaves:
        return pytree.tree_unflatten(leaves, spec)
    return _made(found[1], iter(leaves))


def _made(name: _Name, leaves: Iterator[Any]) -> Any:
    kind, what, inside = name
    if inside is None:
        count = what if kind is not dict else len(what)
        items = [*itertools.islice(leaves, count)]
    else:
        items = [next(leaves) if each is None else _made(each, leaves) for each in inside]
    return kind(items) if kind is not dict else dict(zip(what, items, strict=True))


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
