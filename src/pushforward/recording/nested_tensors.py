"""Jagged nested tensors inside a recorded function: PyTorch's own class around traced values."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nested._internal.nested_tensor import NestedTensor

aten = torch.ops.aten

_MODULE = "torch.nested._internal.ops"


def from_jagged(recorder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Put traced values into a nested tensor, as PyTorch does with plain ones."""
    names = [argument.name for argument in aten._nested_view_from_jagged.default._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    extrema = {name: given.get(name) for name in ("min_seqlen", "max_seqlen")}
    return NestedTensor(
        given["self"],
        recorder.unwrap(given["offsets"]),
        lengths=recorder.unwrap(given.get("lengths")),
        _ragged_idx=given.get("ragged_idx", 1),
        _metadata_cache={k: recorder.unwrap(v) for k, v in extrema.items() if v is not None},
    )


def is_reading_values() -> bool:
    """Tell whether a nested tensor is being asked for its values: it detaches them, above autograd's view of it."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(8):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") == _MODULE:
            return frame.f_code.co_name == "values_default"
        frame = frame.f_back
    return False
