"""What a function uses beside its arguments: tensors, which are inputs of its graph, and values, which are guarded.

A function reaches them by its closure, its defaults, the globals that it names, its own attributes and those of its
class and, if it is a module, its parts. They are found once. From then on a function made for the purpose compares them
with what they were and fetches the tensors, which takes a tenth of a microsecond for each.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pushforward.compiling import places
from pushforward.compiling.places import OPAQUE, PRIMITIVES, VALUES, Place
from pushforward.compiling.signature import PLAIN
from pushforward.tape.private_compiler import alike

MAX_PLACES = 2**14
MAX_DEPTH = 40  # of functions and objects within each other
_EMPTY = types.CellType()

Guard = Callable[[], "list[Tensor] | None"]


class Captured:
    """What a function has captured, as it is now."""

    def __init__(self, func: Callable[..., Any]) -> None:
        """Look for it."""
        self.tensors: list[tuple[Place, Tensor]] = []
        self.values: list[tuple[Place, Any]] = []
        self.absent: list[Place] = []  # where nothing stands
        self.states: list[tuple[Any, int | list[Any]]] = []  # of containers
        self.attributes: list[tuple[Any, str, Any]] = []  # of functions, classes and objects
        self._seen: set[int] = set()
        self._names: set[str] = set()  # that code has
        self._scopes: dict[int, Mapping[str, Any]] = {}  # by the `id` of classes and modules
        self._walk(func, 0)
        self._look_up()

    def without_changed(self) -> Captured:
        """Leave out what is not any more as it was found: the function itself writes it."""
        self.values = [(p, v) for p, v in self.values if is_same(_now(p), v)]
        self.absent = [p for p in self.absent if _now(p) is _EMPTY]
        self.states = [(c, s) for c, s in self.states if places.state(c, type(s) is list) == s]
        self.attributes = [(o, n, v) for o, n, v in self.attributes if getattr(o, n) is v]
        return self

    def _walk(self, found: Any, depth: int) -> None:
        """Look into what is there for good: nobody can put another thing in its place."""
        if id(found) in self._seen or depth > MAX_DEPTH or len(self.values) > MAX_PLACES:
            return
        self._seen.add(id(found))
        for scope in places.scopes(found):
            self._note_scope(scope)
        self.attributes += [
            (found, name, getattr(found, name)) for name in places.attributes(found)
        ]
        if isinstance(found, type):
            self._names |= places.MAKING
        if isinstance(found, (type, types.ModuleType)):
            return
        if isinstance(found, types.FunctionType) and not places.is_foreign(found):
            self._names.update(places.names(found.__code__))
        for part in places.fixed_parts(found):
            self._walk(part, depth + 1)
        for place in places.places(found):
            self._note(place, depth)
        self.states += [(c, places.state(c, c is found)) for c in places.containers(found)]

    def _note_scope(self, scope: Any) -> None:
        """Note what has names; of a class, that it gets no new ones, which would hide those of its bases."""
        if id(scope) not in self._scopes:
            self._scopes[id(scope)] = vars(scope)
            if isinstance(scope, type):
                self.states.append((vars(scope), len(vars(scope))))
                self.attributes.append((scope, "__mro__", scope.__mro__))

    def _note(self, place: Place, depth: int) -> None:
        """Note what stands at a place, and look into it."""
        try:
            value = place.value()
        except (ValueError, LookupError):  # an empty cell, a name of Python's own
            self.absent.append(place)
            return
        if type(value) in PLAIN:
            self.tensors.append((place, value))
            return
        if not isinstance(place.owner, tuple):
            self.values.append((place, value))
        if not issubclass(type(value), (*PRIMITIVES, *OPAQUE, Tensor)):
            self._walk(value, depth + 1)

    def _look_up(self) -> None:
        """Look at what code names of classes and modules, until that names nothing else."""
        seen: set[tuple[int, str]] = set()
        while True:
            new = [
                (number, name)
                for number, scope in self._scopes.items()
                for name, value in scope.items()
                if (name in self._names or places.is_called(name, value))
                and (number, name) not in seen
            ]
            if not new:
                return
            seen.update(new)
            for number, name in new:
                self._note(Place(self._scopes[number], name), 0)

    def guard(self, wanted: list[Tensor]) -> Guard:
        """Return a function that gives the tensors where ``wanted`` stood, None if anything else changed."""
        scope: dict[str, Any] = {"is_same": is_same, "stands": stands}
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
            owner, key = constant(place.owner), place.key
            if place.is_cell:
                return f"{owner}.cell_contents"
            return f"{owner}[{repr(key) if type(key) in (int, str, bool) else constant(key)}]"

        sized = [(c, n) for c, n in self.states if type(n) is int]
        scope["empty"] = [c for c, n in sized if not n]
        if scope["empty"]:
            lines.append("    if any(empty): return")
        lines += [f"    if len({constant(c)}) != {n}: return" for c, n in sized if n]
        lines += [
            f"    if [*{constant(container)}] != {constant(keys)}: return"
            for container, keys in self.states
            if isinstance(keys, list)
        ]
        for place, value in self.values:
            lines += [
                f"    x = {fetched(place)}",
                f"    if x is not {constant(value)} and not is_same(x, {constant(value)}): return",
            ]
        lines += [
            f"    if {constant(owner)}.{attribute} is not {constant(value)}: return"
            for owner, attribute, value in self.attributes
        ]
        for place in self.absent:
            owner = constant(place.owner)
            is_dict = type(place.owner) is dict
            is_there = f"{place.key!r} in {owner}" if is_dict else f"stands({constant(place)})"
            lines.append(f"    if {is_there}: return")
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


def stands(place: Place) -> bool:
    """Tell whether there is anything at a place."""
    return _now(place) is not _EMPTY


def is_same(new: Any, old: Any) -> bool:
    """Tell whether a value is as good as the old one: numbers and names by what they are, all else by identity."""
    if new is old:
        return True
    if type(new) is not type(old) or not isinstance(new, VALUES):
        return False
    return new == old and (not isinstance(new, (float, complex)) or repr(new) == repr(old))
