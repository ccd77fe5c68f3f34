"""Unsaved: stands for an argument or output that autograd did not save. It has a shape and a dtype, and no elements."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.tape.private_torch import make_wrapper


class UnsavedError(Exception):
    """A rule asked for elements that autograd did not save."""


class Unsaved(Tensor):
    """A tensor without elements: rules may ask for its metadata, and for new tensors like it."""

    sizes: tuple[int, ...]  # its shape: asking for that takes four times as long

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Answer what does not depend on elements."""
        if func.overloadpacket not in _MAKERS:
            raise UnsavedError(str(func))
        like = args[0]
        plain = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        return func(plain, *args[1:], **(kwargs or {}))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Show the shape."""
        return f"Unsaved({tuple(self.shape)}, {self.dtype})"


def unsaved(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Unsaved:
    """Return a stand-in; it has nothing that could be changed, so that equal ones are one."""
    try:
        return _one_of(shape, dtype, device)
    except TypeError:  # symbolic sizes do not hash
        return _made(shape, dtype, device)


def _made(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Unsaved:
    made: Unsaved = make_wrapper(Unsaved, shape, dtype=dtype, device=device)
    made.sizes = shape
    return made


_one_of = functools.lru_cache(maxsize=1024)(_made)


def unsaved_like(metadata: Any) -> Unsaved:
    """Return a stand-in for what a node's metadata describe."""
    return unsaved(tuple(metadata.shape), metadata.dtype, metadata.device)


class Unknown:
    """Stands for an argument that is no tensor and was not saved."""

    def __init__(self, name: str) -> None:
        """Remember the argument's name."""
        self._name = name

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise UnsavedError(self._name)

    __bool__ = __eq__ = __len__ = __iter__ = __getitem__ = __int__ = __float__ = __index__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __mod__ = __call__ = __contains__ = __getattr__ = _refuse
    __hash__ = None  # type: ignore[assignment]


_MAKERS = {
    getattr(torch.ops.aten, name)
    for name in (
        "new_zeros", "new_ones", "new_empty", "new_full", "zeros_like", "ones_like", "empty_like", "full_like",
    )
}  # fmt: skip
