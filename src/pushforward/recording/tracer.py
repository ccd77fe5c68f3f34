"""Tracer: a tensor that stands for a primal value while a function is recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.map import AbstractLinearMap

_make_wrapper = torch.Tensor._make_wrapper_subclass
default_dtype = torch.get_default_dtype

# Functions that go to their rule at once; recording/fast_path.py fills this. A handler returns NotImplemented
# where it does not apply.
FAST: dict[Any, Callable[[Any, tuple[Any, ...]], Any]] = {}


class Tracer(torch.Tensor):
    """A wrapper around a concrete primal value; every operator on it is seen by its recorder."""

    __slots__ = ("_payload", "_primal", "_recorder")  # faster than a dict; the rest is rarely set

    _primal: Tensor
    _payload: Any  # what the recorder keeps of the tangent; None: no derivative
    _recorder: Any
    _alias: Alias | None = None
    _writes: int = 0
    _is_buffer: bool = False  # made empty, to be written to

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Go to the rule at once where there is a fast path, else let the recorder take the call apart."""
        if not kwargs:
            handler = FAST.get(func)
            if handler is not None:
                result = handler(func, args)
                if result is not NotImplemented:
                    return result
        return top_recorder((args, kwargs)).on_function(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Receive one ATen operator."""
        return top_recorder((args, kwargs)).on_primitive(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        """Show the primal."""
        return f"Tracer({current(self)!r})"

    def __format__(self, spec: str) -> str:
        """Format the primal."""
        return format(current(self), spec)


class Alias:
    """How a tracer is a view of another: its linear map from the base, and how to make its primal again."""

    __slots__ = ("base", "is_cut", "maps", "seen", "views")

    def __init__(
        self,
        base: Tracer,
        views: tuple[Callable[[Tensor], Tensor], ...],
        maps: tuple[Callable[[], AbstractLinearMap], ...],
        is_cut: bool,
    ) -> None:
        """Start out up to date with ``base``."""
        self.base = base
        self.views = views
        self.maps = maps
        self.is_cut = is_cut  # detached: shares the primal, not the derivative
        self.seen = base._writes


def make_tracer(primal: Tensor, payload: Any, recorder: Any) -> Tracer:
    """Return a tracer with the primal's shape, strides, dtype and device."""
    like = primal if type(primal) is Tensor else innermost(primal)
    if like.is_contiguous():
        if like.is_cpu and like.dtype is default_dtype():
            tracer = _make_wrapper(Tracer, like.shape)  # half a microsecond less than spelt out
        else:
            tracer = _make_wrapper(Tracer, like.shape, dtype=like.dtype, device=like.device)
    else:
        tracer = _make_wrapper(
            Tracer,
            like.shape,
            strides=like.stride(),
            dtype=like.dtype,
            device=like.device,
        )
    tracer._primal = primal
    tracer._payload = payload
    tracer._recorder = recorder
    return tracer


def make_view_tracer(primal: Tensor, payload: Any, recorder: Any, viewed: Tracer) -> Tracer:
    """Return the tracer of a view: its strides and offset tell C++ code where in ``viewed`` it lies."""
    with torch._C.DisableTorchFunction():
        offset = viewed.storage_offset() + primal.storage_offset() - viewed._primal.storage_offset()
        tracer = _make_wrapper(
            Tracer,
            primal.shape,
            strides=primal.stride(),
            storage_offset=offset,
            dtype=primal.dtype,
            device=primal.device,
        )
    tracer._primal = primal
    tracer._payload = payload
    tracer._recorder = recorder
    return tracer


def innermost(tensor: Tensor) -> Tensor:
    """Return the plain tensor below nested tracers, whose shape, strides, dtype and device are theirs."""
    while type(tensor) is Tracer:
        tensor = tensor._primal
    return tensor


def _read_below(name: str) -> Any:
    """Return what reads an attribute from the plain tensor below nested tracers."""

    def read(tracer: Tracer) -> Any:
        alias = tracer._alias
        return getattr(innermost(tracer._primal if alias is None else current(tracer)), name)

    return read


def _ask_below(name: str) -> Any:
    """Return the method that asks the plain tensor below nested tracers."""

    def ask(tracer: Tracer, *args: Any, **kwargs: Any) -> Any:
        alias = tracer._alias
        below = innermost(tracer._primal if alias is None else current(tracer))
        return getattr(below, name)(*args, **kwargs)

    return ask


# In place of PyTorch's own, which go through __torch_function__: 0.2 microseconds instead of 1.2.
for _name in ("shape", "dtype", "device", "ndim", "layout", "is_nested", "is_cpu"):
    setattr(Tracer, _name, property(_read_below(_name)))
for _name in ("dim", "numel", "is_complex", "is_floating_point", "is_contiguous"):
    setattr(Tracer, _name, _ask_below(_name))


def current(tracer: Tracer) -> Tensor:
    """Return the primal, brought up to date if the tracer is a view that was written through elsewhere."""
    if tracer._alias is not None:
        tracer._recorder.refresh(tracer)
    return tracer._primal


def find_tracers(tree: Any, found: list[Tracer]) -> list[Tracer]:
    """Collect the tracers in nested tuples, lists and dicts of arguments."""
    if isinstance(tree, Tracer):
        found.append(tree)
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            find_tracers(item, found)
    elif isinstance(tree, dict):
        for item in tree.values():
            find_tracers(item, found)
    return found


def top_recorder(tree: Any) -> Any:
    """Return the recorder of the innermost transform among the tracers in ``tree``."""
    best = None
    for tracer in find_tracers(tree, []):
        if best is None or tracer._recorder.level > best.level:
            best = tracer._recorder
    return best


def map_tensors(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply ``function`` to every tensor in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple):
        items = [map_tensors(item, function) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else _rebuilt(tree, items)
    if isinstance(tree, list):
        return [map_tensors(item, function) for item in tree]
    if isinstance(tree, dict):
        return {key: map_tensors(item, function) for key, item in tree.items()}
    return tree


def _rebuilt(tree: tuple[Any, ...], items: list[Any]) -> Any:
    if type(tree) is tuple or not hasattr(type(tree), "n_fields"):
        return tuple(items)
    structseq: Any = type(tree)  # torch.return_types.*
    return structseq(items)
