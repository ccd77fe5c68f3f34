"""Which functions need no watching: those that, while watched, did nothing that autograd's graph does not tell.

Watching costs a microsecond for each call of PyTorch, and five for each function of ``torch.nn.functional``. So a
function that was watched twice and was quiet is trusted: it runs as it is, as long as it leaves graphs with signatures
that it left before. Another graph ends the trust; what goes wrong without a watcher is noticed (`Unwatched`), and the
function is run again with one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

WATCHED_FIRST = 2  # calls
MAX_FUNCTIONS = 2048
MAX_SIGNATURES = 64  # for each function


class Unwatched(Exception):  # noqa: N818  a signal between modules of this package, no error
    """A function that was not watched did what has to be seen."""


@dataclasses.dataclass(slots=True)
class _Record:
    quiet: int = 0  # calls since the last that was not
    signatures: set[int] = dataclasses.field(default_factory=set)  # by hash


_records: dict[Any, _Record] = {}


def _key(func: Callable[..., Any]) -> Any:
    """Return what functions that are made anew for each call have in common."""
    return getattr(func, "__code__", None) or type(func)


def is_trusted(func: Callable[..., Any]) -> bool:
    """Tell whether ``func`` may run without a watcher."""
    record = _records.get(_key(func))
    return record is not None and record.quiet >= WATCHED_FIRST


def learn(func: Callable[..., Any], signature: int, is_quiet: bool, was_watched: bool) -> None:
    """Note what a run left: the hash of its signature, and whether it did nothing that has to be seen."""
    key = _key(func)
    record = _records.get(key)
    if record is None:
        if len(_records) >= MAX_FUNCTIONS:
            _records.clear()
        record = _records[key] = _Record()
    if not is_quiet or (not was_watched and signature not in record.signatures):
        record.quiet = 0
    elif was_watched:
        record.quiet += 1
        if len(record.signatures) >= MAX_SIGNATURES:
            record.signatures.clear()
        record.signatures.add(signature)


def distrust(func: Callable[..., Any]) -> None:
    """Watch ``func`` again."""
    _records.pop(_key(func), None)


def clear() -> None:
    """Forget all."""
    _records.clear()
