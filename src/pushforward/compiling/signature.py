"""Signatures: what a graph depends on of the arguments, beside the elements of their tensors."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Size, Tensor, nn

from pushforward.errors import ArgumentTypeError, message
from pushforward.trees import LEAF, flatten, unflatten

PLAIN = {Tensor, nn.Parameter, nn.Buffer}


class ForeignError(Exception):
    """An argument is a tensor of a class of its own, a sparse one, or one that is negated when it is read."""


def signature(tree: Any, tensors: list[Tensor]) -> Hashable:
    """Return the signature of an argument, and collect its tensors.

    Raises:
        ForeignError: There is a tensor of a class of its own, a sparse one, or one that is negated when it is read.
        ArgumentTypeError: There is something else that does not hash.
    """
    kind = type(tree)
    if kind in PLAIN:
        # Of one that is negated, the memory holds other numbers, which is all that a kernel sees.
        if tree.layout is not torch.strided or tree.is_neg():
            raise ForeignError
        tensors.append(tree)
        return (tree.shape, tree.stride(), tree.dtype, tree.device)
    if kind is tuple or kind is list:
        return (kind, *[signature(item, tensors) for item in tree])
    if kind is dict:
        return (kind, tuple(tree), *[signature(item, tensors) for item in tree.values()])
    if isinstance(tree, Tensor):
        raise ForeignError
    leaves, spec = flatten(tree)
    if spec is not LEAF and spec != LEAF:
        return (spec, *[signature(leaf, tensors) for leaf in leaves])
    if kind is float or kind is complex:
        return (kind, repr(tree))
    try:
        hash(tree)
    except TypeError:
        raise ArgumentTypeError(
            message(
                "compile",
                "an argument",
                f"{kind.__name__}, which does not hash",
                "tensors, numbers and other values that do, in any pytree",
                "Pass its parts, or put it into the function's closure.",
            )
        ) from None
    return (kind, tree)


def replaced(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """Return an argument with other tensors, in the order of `signature`."""
    kind = type(tree)
    if kind in PLAIN:
        return next(tensors)
    if kind is tuple or kind is list:
        return kind([replaced(item, tensors) for item in tree])
    if kind is dict:
        return {name: replaced(item, tensors) for name, item in tree.items()}
    leaves, spec = flatten(tree)
    if spec is LEAF or spec == LEAF:
        return tree
    return unflatten([replaced(leaf, tensors) for leaf in leaves], spec)


def without_sizes(found: Hashable) -> Hashable:
    """Return a signature with the numbers of axes in place of their lengths and strides."""
    if type(found) is not tuple:
        return found
    if found and type(found[0]) is Size:
        return (len(found[0]), *found[2:])
    return tuple(map(without_sizes, found))
