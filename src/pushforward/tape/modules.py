"""What a function reaches: modules with buffers, which may write to them as soon as they train, and tensors."""

from __future__ import annotations

import collections
import functools
import itertools
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

MAX_DEPTH = 6  # of functions and objects within each other
MAX_OBJECTS = 256  # that are looked at

_CONTAINERS = (list, tuple, set, frozenset)
_OPAQUE = (types.ModuleType, type, str, bytes, int, float, complex, type(None))
_EMPTY = types.CellType()


class Modes:
    """Which of a function's modules trained, and which did not."""

    __slots__ = ("_modes",)

    def __init__(self, modules: list[nn.Module]) -> None:
        """Note the modes of ``modules``."""
        self._modes = [(weakref.ref(m), m.training) for m in modules]

    def are_same(self) -> bool:
        """Tell whether all are as they were."""
        for ref, training in self._modes:
            module = ref()
            if module is None or module.training is not training:
                return False
        return True


def modes_of(func: Callable[..., Any]) -> Modes | None:
    """Return the modes of the modules with buffers that ``func`` finds by its closure, its globals, and attributes."""
    modules = [m for m in _reached(func) if isinstance(m, nn.Module) and m._buffers]
    return Modes(modules) if modules else None


def tensors_of(func: Callable[..., Any]) -> Iterator[torch.Tensor]:
    """Return the tensors that ``func`` finds there, those of modules among them."""
    for found in _reached(func):
        if isinstance(found, torch.Tensor):
            yield found
        else:
            yield from (t for t in found._buffers.values() if t is not None)
            yield from (t for t in vars(found).values() if isinstance(t, torch.Tensor))


def parameters_of(func: Callable[..., Any]) -> Iterator[torch.Tensor]:
    """Return the parameters of modules that ``func`` finds there."""
    for found in _reached(func):
        if isinstance(found, nn.Module):
            yield from (p for p in found._parameters.values() if p is not None)


def _reached(func: Callable[..., Any]) -> Iterator[Any]:
    """Return modules and tensors, the nearest first, as not all can be looked at."""
    waiting: collections.deque[tuple[Any, int]] = collections.deque([(func, 0)])
    seen: set[int] = set()
    while waiting and len(seen) < MAX_OBJECTS:
        found, depth = waiting.popleft()
        if _is(found, _OPAQUE) or id(found) in seen:
            continue
        seen.add(id(found))
        if _is(found, nn.Module):
            yield from found.modules()
        elif _is(found, torch.Tensor):
            yield found
        elif depth < MAX_DEPTH:
            parts = itertools.islice(_parts(found), MAX_OBJECTS)
            waiting.extend((part, depth + 1) for part in parts)


def _parts(found: Any) -> Iterable[Any]:
    """Return what an object refers to."""
    if _is(found, _CONTAINERS):
        return tuple(found)
    if _is(found, dict):
        return tuple(found.values())
    if _is(found, types.MethodType):
        return found.__self__, found.__func__
    if _is(found, types.FunctionType):
        cells = (c.cell_contents for c in found.__closure__ or () if c != _EMPTY)
        names = _names(found.__code__)
        globals_ = (found.__globals__[n] for n in names if n in found.__globals__)
        return (
            *cells,
            *globals_,
            *(found.__defaults__ or ()),
            *(found.__kwdefaults__ or {}).values(),
        )
    if _is(found, functools.partial):
        return found.func, found.args, found.keywords
    try:
        return tuple(object.__getattribute__(found, "__dict__").values())
    except AttributeError:
        return ()


def _is(found: Any, kinds: Any) -> bool:
    """Do as ``isinstance``, which objects that stand for others answer by code of their own."""
    return issubclass(type(found), kinds)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):  # of a function within
            yield from _names(constant)
