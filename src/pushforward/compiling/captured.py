"""What a function uses beside its arguments: tensors, which are inputs of its graph, and values, which are guarded.

A function reaches them by its closure, its defaults, the globals that it names, its own attributes and, if it is a
module, its parts. They are found once. From then on a function made for the purpose compares them with what they were
and fetches the tensors, which takes a tenth of a microsecond for each.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pushforward.compiling.signature import PLAIN
from pushforward.tape.private_compiler import alike

MAX_PLACES = 2**14
MAX_DEPTH = 40  # of functions and objects within each other
MAX_ITEMS = (
    64  # of a container that are looked at one by one; longer ones count by identity and length
)

_VALUES = (int, float, complex, str, bytes, bool, type(None), enum.Enum)
_OPAQUE = (
    types.ModuleType, type, types.BuiltinFunctionType, torch.dtype, torch.device, torch.Generator,
)  # fmt: skip
# Packages whose functions are not looked into: what they name does not change.
_FOREIGN = ("torch", "pushforward", "numpy", "scipy", "functools", "math", "builtins", "operator")
_EMPTY = types.CellType()

Guard = Callable[[], "list[Tensor] | None"]


class Place(NamedTuple):
    """Where a value stands."""

    owner: Any  # a cell, dictionary or list
    key: Any  # None of a cell

    def value(self) -> Any:
        """Return what stands there now."""
        return self.owner.cell_contents if self.key is None else self.owner[self.key]


class Captured:
    """What a function has captured, as it is now."""

    def __init__(self, func: Callable[..., Any]) -> None:
        """Look for it."""
        self.tensors: list[tuple[Place, Tensor]] = []
        self.values: list[tuple[Place, Any]] = []
        self.lengths: list[tuple[Any, int]] = []  # of containers
        self.functions: list[tuple[types.FunctionType, Any, Any]] = []  # with code and defaults
        self._seen: set[int] = set()
        self._walk(func, 0)

    def without_changed(self) -> Captured:
        """Leave out what is not any more as it was found: the function itself writes it."""
        self.values = [(p, v) for p, v in self.values if is_same(_now(p), v)]
        self.lengths = [(c, n) for c, n in self.lengths if len(c) == n]
        return self

    def _walk(self, found: Any, depth: int) -> None:
        """Look into what is there for good: nobody can put another thing in its place."""
        if id(found) in self._seen or depth > MAX_DEPTH or len(self.values) > MAX_PLACES:
            return
        self._seen.add(id(found))
        if isinstance(found, types.FunctionType) and not _is_foreign(found):
            self.functions.append((found, found.__code__, found.__defaults__))
        for part in _fixed_parts(found):
            self._walk(part, depth + 1)
        for place in _places(found):
            try:
                value = place.value()
            except (ValueError, KeyError, IndexError):  # an empty cell, a name of Python's own
                continue
            if type(value) in PLAIN:
                self.tensors.append((place, value))
                continue
            if type(place.owner) is not tuple:
                self.values.append((place, value))
            if not issubclass(type(value), (*_VALUES, *_OPAQUE, Tensor)):
                self._walk(value, depth + 1)
        self.lengths += [(c, len(c)) for c in _containers(found)]

    def guard(self, wanted: list[Tensor]) -> Guard:
        """Return a function that gives the tensors where ``wanted`` stood, None if anything else changed."""
        scope: dict[str, Any] = {"is_same": is_same}
        lines = ["def guard():", "  try:"]

        def name(value: Any) -> str:
            return names.setdefault(id(value), f"c{len(names)}")

        names: dict[int, str] = {}
        kept: list[Any] = []  # ids are names only as long as their objects live

        def constant(value: Any) -> str:
            kept.append(value)
            scope[name(value)] = value
            return name(value)

        def fetched(place: Place) -> str:
            owner = constant(place.owner)
            return f"{owner}.cell_contents" if place.key is None else f"{owner}[{place.key!r}]"

        for place, value in self.values:
            lines += [
                f"    x = {fetched(place)}",
                f"    if x is not {constant(value)} and not is_same(x, {constant(value)}): return",
            ]
        for func, code, defaults in self.functions:
            lines += [
                f"    x = {constant(func)}",
                f"    if x.__code__ is not {constant(code)}: return",
                f"    if x.__defaults__ is not {constant(defaults)}: return",
            ]
        lines += [
            f"    if {f'len({constant(c)}) != {n}' if n else constant(c)}: return"
            for c, n in self.lengths
        ]
        lines += [f"    x{i} = {fetched(place)}" for i, (place, _) in enumerate(self.tensors)]
        tensors = [tensor for _, tensor in self.tensors]
        lines += [f"    {line}" for line in compared(tensors, scope)]
        found = {id(t): f"x{i}" for i, t in enumerate(tensors)}
        result = ", ".join(found.get(id(t)) or constant(t) for t in wanted)
        lines += [f"    return [{result}]", "  except (ValueError, LookupError): return"]
        exec("\n".join(lines), scope)  # the source is ours alone
        guard: Guard = scope["guard"]
        return guard


def compared(tensors: Sequence[Tensor], scope: dict[str, Any]) -> list[str]:
    """Return lines of a function that returns None if its variables ``x0, x1, ...`` do not look as these tensors.

    One tensor that stands at several places has to stay one, and two have to stay two.
    """
    firsts: dict[int, str] = {}
    lines = []
    for number, tensor in enumerate(tensors):
        first = firsts.setdefault(id(tensor), f"x{number}")
        if first != f"x{number}":
            lines.append(f"if x{number} is not {first}: return")
    if firsts:
        scope["are_alike"] = alike(list({id(t): t for t in tensors}.values()))
        lines.append(f"if not are_alike({', '.join(firsts.values())}): return")
    return lines


def _now(place: Place) -> Any:
    try:
        return place.value()
    except (ValueError, LookupError):
        return _EMPTY


def is_same(new: Any, old: Any) -> bool:
    """Tell whether a value is as good as the old one: numbers and names by what they are, all else by identity."""
    if new is old:
        return True
    if type(new) is not type(old) or not isinstance(new, _VALUES):
        return False
    return new == old and (not isinstance(new, (float, complex)) or repr(new) == repr(old))


def _fixed_parts(found: Any) -> tuple[Any, ...]:
    """Return what belongs to an object from its beginning to its end."""
    if isinstance(found, types.MethodType):
        return found.__self__, found.__func__
    if isinstance(found, functools.partial):
        return found.func, found.args, found.keywords
    return ()


def _containers(found: Any) -> tuple[Any, ...]:
    """Return what may grow and shrink."""
    if isinstance(found, nn.Module):
        return found._forward_hooks, found._forward_pre_hooks
    return (found,) if type(found) in (list, dict, set) else ()


def _places(found: Any) -> Iterator[Place]:
    """Return where an object keeps what it refers to."""
    kind = type(found)
    if issubclass(kind, types.FunctionType):
        yield from _places_of_function(found)
    elif kind in (list, tuple, dict):
        yield from _items(found)
    elif issubclass(kind, nn.Module):
        yield from _places_of_module(found)
    elif not issubclass(kind, (set, frozenset, types.MethodType, functools.partial)):
        yield from _attributes(vars(found) if hasattr(found, "__dict__") else {})
        yield from _globals_of(_method(kind, "__call__"))


def _places_of_function(func: types.FunctionType) -> Iterator[Place]:
    for cell in func.__closure__ or ():
        yield Place(cell, None)
    yield from _items(func.__defaults__ or ())
    yield from _items(func.__kwdefaults__ or {})
    yield from _globals_of(func)


def _globals_of(func: Any) -> Iterator[Place]:
    """Return the globals that a function names, and functions within it."""
    if not isinstance(func, types.FunctionType) or _is_foreign(func):
        return
    for name in dict.fromkeys(_names(func.__code__)):
        if name in func.__globals__:
            yield Place(func.__globals__, name)


def _method(kind: type, name: str) -> Any:
    return getattr(kind, name, None)


def _is_foreign(found: types.FunctionType) -> bool:
    """Tell by the module where a function was defined: what wraps another often says that it was made in that one's."""
    return str(found.__globals__.get("__name__")).partition(".")[0] in _FOREIGN


def _places_of_module(module: nn.Module) -> Iterator[Place]:
    for parts in (module._parameters, module._buffers, module._modules):
        yield from _attributes(parts)
    own = {name: None for name in vars(module) if not name.startswith("_")}
    yield from _attributes(vars(module), own)
    yield from _globals_of(type(module).forward)


def _attributes(values: dict[str, Any], names: Iterable[Any] = ()) -> Iterator[Place]:
    for name in list(names or values):
        if isinstance(name, str):
            yield Place(values, name)


def _items(found: Any) -> Iterator[Place]:
    if len(found) > MAX_ITEMS and type(found) is not dict:
        return
    keys = found if isinstance(found, Mapping) else range(len(found))
    for key in list(keys):
        if type(key) in (int, str, bool):
            yield Place(found, key)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):  # of a function within
            yield from _names(constant)
