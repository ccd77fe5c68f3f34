"""Pytrees: flattening with the path of every leaf, so that a message can name it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.utils._pytree as pytree

TreeSpec = pytree.TreeSpec


def flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Return the leaves of a pytree and its structure."""
    return pytree.tree_flatten(tree)


def unflatten(leaves: Sequence[Any], spec: TreeSpec) -> Any:
    """Put leaves back into a structure."""
    return pytree.tree_unflatten(leaves, spec)


def paths(tree: Any) -> list[str]:
    """Return for every leaf how to reach it: ``['a'][0]``; the empty string for a lone leaf."""
    return [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]
