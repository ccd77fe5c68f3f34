"""Sparse arguments of `grad`: differentiated by their values, which the function gets back as sparse tensors."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from pushforward.tape.sparse_tensors import LAYOUTS, coordinates_of, standing_for, with_real_ones


def has_sparse(args: tuple[Any, ...], positions: Sequence[int]) -> bool:
    """Tell whether there are sparse tensors among the arguments at ``positions``."""
    leaves = [leaf for position in positions for leaf in pytree.tree_leaves(args[position])]
    return any(isinstance(leaf, Tensor) and leaf.layout in LAYOUTS for leaf in leaves)


def with_values(args: tuple[Any, ...], positions: Sequence[int]) -> tuple[Any, ...]:
    """Return the arguments with values in place of sparse tensors."""
    return tuple(
        pytree.tree_map_only(Tensor, _values, arg) if place in positions else arg
        for place, arg in enumerate(args)
    )


def _values(tensor: Tensor) -> Tensor:
    return _coalesced(tensor)._values() if tensor.layout in LAYOUTS else tensor


def _coalesced(tensor: Tensor) -> Tensor:
    coo = tensor if tensor.layout is torch.sparse_coo else tensor.to_sparse_coo()
    return coo.coalesce()


def of_values(
    func: Callable[..., Any], args: tuple[Any, ...], positions: Sequence[int]
) -> Callable[..., Any]:
    """Return ``func`` as a function of the values of its sparse arguments."""

    @functools.wraps(func)
    def called(*given: Any, **kwargs: Any) -> Any:
        rebuilt = tuple(
            pytree.tree_map(_with_places, arg, old) if place in positions else arg
            for place, (arg, old) in enumerate(zip(given, args, strict=True))
        )
        return with_real_ones(func(*rebuilt, **kwargs))

    return called


def _with_places(values: Any, tensor: Any) -> Any:
    if not isinstance(tensor, Tensor) or tensor.layout not in LAYOUTS:
        return values
    places = coordinates_of(_coalesced(tensor)).with_values(values)
    return standing_for(dataclasses.replace(places, layout=tensor.layout))


def as_sparse(gradients: Any, args: Any) -> Any:
    """Return gradients with respect to values as sparse tensors, like the arguments."""
    return pytree.tree_map(_at_places, gradients, args)


def _at_places(gradient: Any, tensor: Any) -> Any:
    if not isinstance(tensor, Tensor) or tensor.layout not in LAYOUTS:
        return gradient
    places = _coalesced(tensor)._indices()
    coo = torch.sparse_coo_tensor(
        places, gradient, tensor.shape, is_coalesced=True, check_invariants=False
    )
    return coo if tensor.layout is torch.sparse_coo else coo.to_sparse(layout=tensor.layout)
