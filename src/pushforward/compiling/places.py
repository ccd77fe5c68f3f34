"""Places: where functions, modules and other objects keep what they refer to.

Of a class, or a module of Python, it is what code names: methods that nobody calls may refer to anything.
"""

from __future__ import annotations

import builtins
import collections
import contextvars
import enum
import functools
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from pushforward.tape.private_torch import hooks_of_all_modules

# Items of a container that are looked at one by one; longer ones count by identity and length
MAX_ITEMS = 64
MAX_BYTES = 4096  # of an array that are compared

PRIMITIVES = (int, float, complex, str, bytes, bool, type(None))
VALUES = (*PRIMITIVES, enum.Enum)
OPAQUE = (types.BuiltinFunctionType, torch.dtype, torch.device, torch.Generator)
# What every module has of its own: what is in them is looked at, and whether it trains.
_OF_ALL_MODULES = frozenset(vars(nn.Module())) - {"training"}
# Packages whose functions are not looked into: what they name does not change.
_FOREIGN = (
    "torch", "pushforward", "numpy", "scipy", "functools", "math", "builtins", "operator", "collections", "enum",
    "typing", "abc", "types", "dataclasses",
)  # fmt: skip
_SEQUENCES = (list, tuple, collections.deque)
_MAPPINGS = (dict, types.MappingProxyType)
_SETS = (set, frozenset)
# What is called though nobody names it, beside what has two underscores around its name.
_CALLED = frozenset(("forward", "backward", "setup_context", "jvp", "vjp", "vmap"))
MAKING = frozenset(("__init__", "__new__", "__post_init__"))  # called by naming the class
# For what is printed, hashed, copied or ends: no number depends on these.
_BESIDE = frozenset((
    "__repr__", "__str__", "__format__", "__dir__", "__sizeof__", "__hash__", "__copy__", "__deepcopy__", "__reduce__",
    "__reduce_ex__", "__getstate__", "__setstate__", "__delattr__", "__del__", "__init_subclass__", "__class_getitem__",
))  # fmt: skip


class Place(NamedTuple):
    """Where a value stands."""

    owner: Any  # a cell, or what has items
    key: Any  # None of a cell

    def value(self) -> Any:
        """Return what stands there now."""
        return self.owner.cell_contents if self.is_cell else self.owner[self.key]

    @property
    def is_cell(self) -> bool:
        """Whether it is a cell of a closure."""
        return type(self.owner) is types.CellType


class _Slots:
    """The slots of an object, as items."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self._found, name)
        except AttributeError as error:
            raise KeyError(name) from error


class _Contents:
    """What is in a set, in the memory of an array or in a context variable, as one item that can be compared."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def __getitem__(self, _: str) -> Any:
        if isinstance(self._found, contextvars.ContextVar):
            return self._found.get()  # raises a LookupError if there is none
        if isinstance(self._found, _SETS):
            return repr(
                sorted(repr(m) if isinstance(m, VALUES) else str(id(m)) for m in self._found)
            )
        return memoryview(self._found).tobytes()


def fixed_parts(found: Any) -> tuple[Any, ...]:
    """Return what belongs to an object from its beginning to its end."""
    if isinstance(found, types.MethodType):
        return found.__self__, found.__func__
    if isinstance(found, (functools.partial, functools.partialmethod)):
        return found.func, found.args, found.keywords
    if isinstance(found, (staticmethod, classmethod)):
        return (found.__func__,)
    if isinstance(found, property):
        return (found.fget,)
    if isinstance(found, functools.cached_property):
        return (found.func,)
    if isinstance(found, weakref.ref):
        return (found(),)
    if isinstance(found, nn.Module):
        return hooks_of_all_modules()
    return ()


def attributes(found: Any) -> tuple[str, ...]:
    """Return the attributes that make an object what it is, though they can be set."""
    if isinstance(found, types.FunctionType):
        return () if is_foreign(found) else ("__code__", "__defaults__", "__kwdefaults__")
    return () if _is_of_foreign(type(found).__module__) else ("__class__",)


def containers(found: Any) -> Iterator[Any]:
    """Return what may grow and shrink, attributes of the object among it."""
    if isinstance(found, nn.Module):
        yield from (found._parameters, found._buffers, found._modules)
        yield from _hooks(found)
    elif isinstance(found, (list, *_MAPPINGS, collections.deque)):
        yield found
    if hasattr(found, "__dict__") and not isinstance(found, types.FunctionType):
        yield vars(found)


def state(container: Any, is_ordered: bool) -> int | list[Any]:
    """Return what tells whether a container has other items: how many there are; keys, if their order counts."""
    is_small = isinstance(container, _MAPPINGS) and 0 < len(container) <= MAX_ITEMS
    if is_ordered and is_small and all(isinstance(key, VALUES) for key in container):
        return [*container]
    return len(container)


def places(found: Any) -> Iterator[Place]:
    """Return where an object keeps what it refers to."""
    if isinstance(found, types.FunctionType):
        yield from _places_of_function(found)
        return
    if isinstance(found, nn.Module):
        yield from _places_of_module(found)
        return
    if isinstance(found, (*_SEQUENCES, *_MAPPINGS)):
        yield from _items(found)
    elif isinstance(found, (*_SETS, contextvars.ContextVar)) or _is_small_array(found):
        yield Place(_Contents(found), "contents")
    if not isinstance(found, types.MethodType):
        yield from _attributes(vars(found) if hasattr(found, "__dict__") else {})
        slots = _slots(type(found))
        owner = _Slots(found)
        yield from (Place(owner, name) for name in slots)


def scopes(found: Any) -> Iterator[Any]:
    """Return what has names: the classes of an object, a class and those that it derives from, or a module."""
    if isinstance(found, types.ModuleType):
        if not _is_of_foreign(found.__name__):
            yield found
        return
    kinds = (found, type(found)) if isinstance(found, type) else (type(found),)
    for each in (each for kind in kinds for each in kind.__mro__):
        if not _is_of_foreign(each.__module__):
            yield each


def is_called(name: str, value: Any) -> bool:
    """Tell whether the member of a class is called, maybe, though nobody names it."""
    is_special = name.startswith("__") and name not in MAKING and name not in _BESIDE
    return name in _CALLED or (is_special and isinstance(value, types.FunctionType))


def names(code: types.CodeType) -> Iterator[str]:
    """Return the names that code has, of globals and of attributes, also as strings, and of functions within."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names(constant)
        elif type(constant) is str and constant.isidentifier():
            yield constant


def is_foreign(found: types.FunctionType) -> bool:
    """Tell by the module where a function was defined: what wraps another often says that it was made in that one's."""
    return _is_of_foreign(found.__globals__.get("__name__"))


def _is_of_foreign(module: Any) -> bool:
    return str(module).partition(".")[0] in _FOREIGN


def _places_of_function(func: types.FunctionType) -> Iterator[Place]:
    for cell in func.__closure__ or ():
        yield Place(cell, None)
    yield from _items(func.__defaults__ or ())
    yield from _items(func.__kwdefaults__ or {})
    if not is_foreign(func):
        yield from _attributes(vars(func))
        for name in dict.fromkeys(names(func.__code__)):
            # A global may come before one of Python's own.
            if name in func.__globals__ or hasattr(builtins, name):
                yield Place(func.__globals__, name)


def _places_of_module(module: nn.Module) -> Iterator[Place]:
    for parts in (module._parameters, module._buffers, module._modules):
        yield from _attributes(parts)
    for hooks in _hooks(module):
        yield from _items(hooks)
    yield from _attributes(vars(module), [n for n in vars(module) if n not in _OF_ALL_MODULES])


def _hooks(module: nn.Module) -> tuple[dict[int, Any], ...]:
    return (
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
    )  # fmt: skip


def _attributes(values: dict[str, Any], names: Iterable[Any] = ()) -> Iterator[Place]:
    for name in list(names or values):
        if isinstance(name, str):
            yield Place(values, name)


def _items(found: Any) -> Iterator[Place]:
    if isinstance(found, _MAPPINGS):
        yield from (Place(found, key) for key in list(found))
    elif len(found) <= MAX_ITEMS:
        yield from (Place(found, key) for key in range(len(found)))


def _slots(kind: type) -> Iterator[str]:
    for each in kind.__mro__:
        if not _is_of_foreign(each.__module__):
            for name, value in vars(each).items():
                if isinstance(value, types.MemberDescriptorType):
                    yield name


def _is_small_array(found: Any) -> bool:
    try:
        view = memoryview(found)
    except TypeError:  # it has no memory to look at
        return False
    return view.nbytes <= MAX_BYTES
