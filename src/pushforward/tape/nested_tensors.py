"""Jagged nested tensors of values that depend on the inputs: what is done to one is recorded as done to its values.

Autograd's nodes of nested tensors have no second derivatives. So operators on them pass autograd by, and it is on again
where PyTorch's class carries them out on the values.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pushforward.tape.metadata import METADATA
from pushforward.tape.private_torch import (
    JaggedTensor,
    below_autograd,
    dispatch_keys,
    is_done_on_values,
    jagged_function,
    jagged_parts,
    with_dispatch_keys,
)

_thread = threading.local()


class OpenJagged(JaggedTensor):  # type: ignore[misc]
    """PyTorch's class, around values that autograd follows."""

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Carry out an operator."""
        kwargs = kwargs or {}
        if func in _READING_VALUES:
            return args[0]._values
        if func == _REQUIRES_GRAD:
            return args[0]._values.requires_grad
        if func in METADATA:
            return super().__torch_function__(func, types, args, kwargs)
        try:
            return jagged_function(func, *args, **kwargs)
        except NotImplementedError:
            pass
        before = getattr(_thread, "keys", None)
        _thread.keys = dispatch_keys()
        try:
            with torch._C.DisableTorchFunctionSubclass(), below_autograd():
                return func(*args, **kwargs)
        finally:
            _thread.keys = before

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Carry out an operator on the values, with autograd as it was."""
        keys = getattr(_thread, "keys", None)
        if keys is None:
            return super().__torch_dispatch__(func, types, args, kwargs)
        kwargs = kwargs or {}
        is_last = is_done_on_values(func, *args, **kwargs)
        with (
            with_dispatch_keys(keys),
            torch._C.DisableTorchFunctionSubclass(),
            _Padding() if is_last else contextlib.nullcontext(),
        ):
            result = super().__torch_dispatch__(func, types, args, kwargs)
        return pytree.tree_map_only(JaggedTensor, _opened, result)

    def values(self) -> Tensor:
        """Return the values."""
        values: Tensor = self._values
        return values


class _Padding(TorchFunctionMode):
    """Replaces what takes no values that are followed."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call, or replace."""
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


def _padded(
    values: Tensor,
    offsets: Sequence[Tensor],
    max_lengths: Sequence[int],
    padding_value: float = 0.0,
) -> Tensor:
    """Return rows of one length, ``(rows, length, *rest)``, of ``(all lengths, *rest)``."""
    (ends,), (size,) = offsets, max_lengths
    steps = torch.arange(size, device=values.device)
    is_there = (steps < ends.diff().unsqueeze(1)).reshape(-1, size, *[1] * (values.dim() - 1))
    last = max(values.shape[0] - 1, 0)
    places = (ends[:-1].unsqueeze(1) + steps).clamp(max=last)
    if not values.shape[0]:
        return values.new_full((*places.shape, *values.shape[1:]), padding_value)
    return torch.where(is_there, values[places], padding_value)


def _unpadded(dense: Tensor, offsets: Sequence[Tensor], total_L: int | None = None) -> Tensor:
    """Return the inverse."""
    (ends,) = offsets
    steps = torch.arange(dense.shape[1], device=dense.device)
    return dense[steps < ends.diff().unsqueeze(1)]


def _broadcast(*tensors: Any) -> list[Any]:
    """Return nested tensors of one shape as they are: ``torch.where`` of PyTorch 2.15 asks for it."""
    if any(t.shape != tensors[0].shape for t in tensors):
        raise RuntimeError(
            f"broadcast_tensors: got nested tensors of shapes {[t.shape for t in tensors]}, expected equal ones. "
            "Build them from the same offsets."
        )
    return list(tensors)


_aten = torch.ops.aten
_REPLACED: dict[Any, Any] = {
    torch.broadcast_tensors: _broadcast,
    _aten._jagged_to_padded_dense_forward: _padded,
    _aten._jagged_to_padded_dense_forward.default: _padded,
    _aten._padded_dense_to_jagged_forward: _unpadded,
    _aten._padded_dense_to_jagged_forward.default: _unpadded,
}


def _opened(nested: Any) -> Any:
    return nested if isinstance(nested, OpenJagged) else OpenJagged(**jagged_parts(nested))


def open_jagged(
    values: Tensor,
    offsets: Tensor,
    dummy: Tensor,
    lengths: Tensor | None = None,
    ragged_idx: int = 1,
    min_seqlen: Tensor | None = None,
    max_seqlen: Tensor | None = None,
) -> Any:
    """Put values into a nested tensor, as ``torch._nested_view_from_jagged`` does with constants."""
    extrema = {"min_seqlen": min_seqlen, "max_seqlen": max_seqlen}
    known = {name: value for name, value in extrema.items() if value is not None}
    return OpenJagged(
        values, offsets, lengths=lengths, _ragged_idx=ragged_idx, _metadata_cache=known
    )


_REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_READING_VALUES = {Tensor.values, torch._nested_get_values, OpenJagged.values, JaggedTensor.values}
JAGGED_MAKERS = {torch._nested_view_from_jagged: open_jagged}
