"""Shadows: tensors that have a shape and no numbers, and so take no memory; and how operators are called on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pushforward.tape.private_torch import OperatorMode, has_dynamo
from pushforward.tape.unsaved import Unsaved
from pushforward.trees import map_tensors

MIN_BYTES = 2**14  # of a result that is left without numbers
# What a call returns, or starts from, for its kernels to be found on shadows before it runs: where it is as much, that
# takes less time than it saves. PyTorch imports its compiler for the first shadow, if nobody has, which takes a second.
MIN_FORESEEN_BYTES, MIN_FORESEEN_BYTES_AT_FIRST = 2**24, 2**27
SHADOWS = torch.device("meta")

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def pays(size: int) -> bool:
    """Tell whether kernels are to be found on shadows for a call of so many bytes."""
    return size >= (MIN_FORESEEN_BYTES if has_dynamo() else MIN_FORESEEN_BYTES_AT_FIRST)


def on_shadows(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """Return arguments without numbers, on the device of shadows: maps that take shadows hold real tensors."""
    args, kwargs = map_tensors(_shadow, (args, kwargs))
    return args, kwargs if kwargs.get("device") is None else {**kwargs, "device": SHADOWS}


def has_shadows(tree: Any) -> bool:
    """Tell whether any tensor is a shadow."""
    return any(isinstance(t, Tensor) and t.is_meta for t in tree_leaves(tree))


def _shadow(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=SHADOWS)


class Shadowing(OperatorMode):
    """Leaves large results without numbers, and all that is computed from these.

    Operators that need numbers raise, as PyTorch has it. Integers, of which indices are made, are computed: they take
    little beside what they point at, and what is computed may follow from them.
    """

    def __init__(self, device: torch.device) -> None:
        """Take the device on which the computation is."""
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Args = (),
        kwargs: Kwargs | None = None,
    ) -> Any:
        """Call on shadows, and where the result is small, on real tensors too."""
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        has_to = any(t.is_meta for t in tensors)
        if (func.is_view and not has_to) or any(isinstance(t, Unsaved) for t in tensors):
            return func(*args, **kwargs)  # those refuse what asks for elements
        if func._schema.is_mutable and isinstance(args[0], Tensor) and not args[0].is_meta:
            return args[0] if has_to else func(*args, **kwargs)
        given, named = on_shadows(args, kwargs)
        result = func(*given, **named)
        if has_to or any(map(_is_large, tree_leaves(result))):
            return result
        if kwargs.get("device") == SHADOWS:  # that of a tensor after which it is made
            kwargs = {**kwargs, "device": self._device}
        return func(*args, **kwargs)


def _is_large(result: Any) -> bool:
    is_number = isinstance(result, Tensor) and (
        result.is_floating_point() or result.is_complex() or result.dtype is torch.bool
    )
    return is_number and result.nbytes >= MIN_BYTES
