"""Comparison of results, and of what calls leave behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten


def compare(
    actual: Any, expected: Any, tolerance: float, with_dtype: bool
) -> tuple[str, str] | None:
    """Return the kind of a difference, and the two."""
    ours, spec = tree_flatten(actual)
    theirs, expected_spec = tree_flatten(expected)
    if spec != expected_spec:
        return "structure", f"{spec} instead of {expected_spec}"
    finite = [float(y.detach().abs().max()) for y in theirs if isinstance(y, Tensor) and y.numel()]
    scale = max([1.0, *finite])
    for a, b in zip(ours, theirs, strict=True):
        if not isinstance(b, Tensor):
            continue
        a, b = a.detach(), b.detach()
        if a.shape != b.shape:
            return "shape", f"{tuple(a.shape)} instead of {tuple(b.shape)}{_both(a, b)}"
        if with_dtype and a.dtype != b.dtype:
            return "dtype", f"{a.dtype} instead of {b.dtype}"
        if a.numel() and not bool(((a - b).abs() <= tolerance * scale).all()):
            return "wrong number", _both(a, b)
    return None


def _both(a: Tensor, b: Tensor) -> str:
    return f"\nours      {a}\nreference {b}"


def compare_ends(actual: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Return what of that which calls leave behind differs."""
    for name, value in expected.items():
        mine = actual[name]
        if name == "random":
            if not torch.equal(mine, value):
                return "the generator's end"
        elif not _agrees(mine, value):
            return "the end of inputs" if name == "inputs" else f"the end of {name[0]}"
    return None


def _agrees(a: Any, b: Any) -> bool:
    if isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-7, equal_nan=True)
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(_agrees(a[k], b[k]) for k in b)
    if isinstance(b, list):
        return len(a) == len(b) and all(map(_agrees, a, b))
    return bool(a == b)
