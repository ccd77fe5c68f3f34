"""Which functions need no watching: those that, while watched, did nothing that autograd's graph does not tell.

Watching costs a microsecond for each call of PyTorch, and five for each function of ``torch.nn.functional``. So a
function that was watched twice and was quiet is trusted: it runs as it is, as long as it leaves graphs of the kinds of
nodes that it left before. Another graph, or what goes wrong without a watcher, ends the trust (`Unwatched`), and the
function is run again with one.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any

WATCHED_FIRST = 2  # calls
MAX_FUNCTIONS = 2048
MAX_GRAPHS = 64  # for each function
MAX_CLOSURES = 4  # within each other

_EMPTY = types.CellType()


class Unwatched(Exception):  # noqa: N818  a signal between modules of this package, no error
    """A function that was not watched did what has to be seen."""


class AskedError(BaseException):
    """A function asked autograd of a batch that was taken apart. No `Exception`, which the function might handle."""


@dataclasses.dataclass(slots=True)
class _Record:
    asks: bool = False  # autograd, so that batches have to be left whole
    quiet: int = 0  # calls since the last that was not
    graphs: set[int] = dataclasses.field(default_factory=set)  # by the hash of their kinds of nodes


_records: dict[Any, _Record] = {}


def _key(func: Callable[..., Any], depth: int = 0) -> Any:
    """Return what functions that are made anew for each call have in common: their code, and what they call by closure.

    Objects that are called, such as modules, count one by one.
    """
    code = getattr(func, "__code__", None)
    if code is None:
        return type(func), id(func)
    closure = getattr(func, "__closure__", None)
    if not closure or depth > MAX_CLOSURES:
        return code
    called = [
        _key(cell.cell_contents, depth + 1)
        for cell in closure
        if cell != _EMPTY and callable(cell.cell_contents)
    ]
    return (code, *called) if called else code


def is_trusted(func: Callable[..., Any]) -> bool:
    """Tell whether ``func`` may run without a watcher."""
    record = _records.get(_key(func))
    return record is not None and record.quiet >= WATCHED_FIRST


def knows(func: Callable[..., Any], kinds: int) -> bool:
    """Tell whether ``func`` left a graph of these kinds of nodes before, while it was watched."""
    record = _records.get(_key(func))
    return record is not None and kinds in record.graphs


def learn(func: Callable[..., Any], kinds: int, is_quiet: bool, was_watched: bool) -> None:
    """Note what a run left: the hash of its kinds of nodes, and whether it did nothing that has to be seen."""
    key = _key(func)
    record = _records.get(key)
    if record is None:
        if len(_records) >= MAX_FUNCTIONS:
            _records.clear()
        record = _records[key] = _Record()
    if not is_quiet:
        record.quiet = 0
    elif was_watched:
        record.quiet += 1
        if len(record.graphs) >= MAX_GRAPHS:
            record.graphs.clear()
        record.graphs.add(kinds)


def may_take_apart(func: Callable[..., Any]) -> bool:
    """Tell whether a batch of ``vmap`` may become an axis while ``func`` runs."""
    record = _records.get(_key(func))
    return record is None or not record.asks


def keep_whole(func: Callable[..., Any]) -> None:
    """Leave batches whole from now on."""
    _records[_key(func)] = _Record(asks=True)


def distrust(func: Callable[..., Any]) -> None:
    """Watch ``func`` again."""
    record = _records.get(_key(func))
    if record is not None:
        record.quiet = 0


def clear() -> None:
    """Forget all."""
    _records.clear()
