"""What depends on structure alone: worked out once for a plan, and out of sight of everybody's modes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from pushforward.linear.tables import is_table
from pushforward.tape.private_torch import bare

_T = TypeVar("_T")

# How an index follows from a position t: step · t, or table[t].
Line = int | Tensor


class ChangedError(Exception):
    """The index tensors of a program are not those that its plan was made for."""


class DependentError(Exception):
    """Structure depends on the elements of index tensors, and must not."""


@dataclasses.dataclass(slots=True)
class Answers:
    """The answers to all questions about structure that the sweeps of a plan ask, in the order of asking."""

    answers: list[Any] = dataclasses.field(default_factory=list)
    indices: list[Tensor] = dataclasses.field(default_factory=list)  # copies of what they depend on
    is_done: bool = False

    def check(self, met: Sequence[Tensor]) -> None:
        """Raise unless the index tensors ``met`` in a sweep are what the answers depend on."""
        if not met:
            return
        with bare():
            for index, known in zip(met, self.indices, strict=True):
                if not torch.equal(index, known):
                    raise ChangedError


class Symbolic:
    """One sweep's questions about structure.

    The first sweep of a plan answers them by computing. Later sweeps ask the same, as long as the program has the
    same signature and index tensors with the same elements, and get the answers that were kept.
    """

    def __init__(self, kept: Answers, *, may_depend: bool = True) -> None:
        """Start a sweep, which may meet index tensors, or may not."""
        self._may_depend = may_depend
        self.met: list[Tensor] = []  # index tensors
        self._kept = kept
        self._next = 0
        self._tables: dict[tuple[int, int, int], list[Tensor]] = {}

    def end(self) -> None:
        """Finish a sweep."""
        self._kept.is_done = True

    def once(self, answer: Callable[[], _T]) -> _T:
        """Return ``answer()`` as the first sweep computed it; nobody may write to tensors in it."""
        kept = self._kept
        if kept.is_done:
            found: _T = kept.answers[self._next]
            self._next += 1
            return found
        with bare():
            found = answer()
        kept.answers.append(found)
        return found

    def line(self, answer: Callable[[], Tensor]) -> tuple[int, Line]:
        """Return the table ``answer()`` as (offset, step) if it is a progression, else as (0, table)."""
        return self.once(lambda: self.as_line(answer()))

    def index(self, index: Tensor) -> Tensor:
        """Return a copy of an index tensor, on which answers to come depend; raise if it is not what it was."""
        if is_table(index):
            return index
        if not self._may_depend:
            raise DependentError
        kept, number = self._kept, len(self.met)
        self.met.append(index)
        with bare():
            if not kept.is_done:
                kept.indices.append(index.detach().clone())
            elif not torch.equal(index, kept.indices[number]):
                raise ChangedError
        return kept.indices[number]

    def as_line(self, table: Tensor) -> tuple[int, Line]:
        """Return a table as `line` does; to be called within `once`.

        Of tables with equal elements there is one, so that they can be compared by identity.
        """
        table = table.reshape(-1)
        count = len(table)
        if not count:
            return 0, 0
        first = int(table[0])
        step = int(table[1]) - first if count > 1 else 0
        if int(table[-1]) == first + step * (count - 1) and bool(
            (table == torch.arange(count, device=table.device) * step + first).all()
        ):
            return first, step
        known = self._tables.setdefault((count, first, int(table.sum())), [])
        for other in known:
            if torch.equal(other, table):
                return 0, other
        known.append(table)
        return 0, table
