"""Columns within a limit of memory: how many go at once is chosen where the tape is cut first."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.planning.memory import Need
from pushforward.tape.copies import num_bytes
from pushforward.tape.pieces import Axes, Pushing
from pushforward.tape.reader import Reading
from pushforward.transforms.chunks import Chunks
from pushforward.transforms.columns import InChunks, is_spent
from pushforward.transforms.memory import Whole, chosen_size, need_of, refuse
from pushforward.transforms.record import Tape

# Of the limit, of which what nodes of a piece saved takes one: maps of it take as much again.
PARTS = 8


class Limited(contextlib.ExitStack):
    """The columns of one call, pushed while its function runs: all at once, or a chunk at a time."""

    def __init__(
        self,
        name: str,
        inputs: Sequence[Tensor],
        chunks: Chunks,
        outside: Iterable[Tensor],
        at_once: Pushing,
        whole: Whole,
    ) -> None:
        """Prepare; ``at_once`` pushes all columns as ``whole`` does. The rest is as in `InChunks`."""
        super().__init__()
        self._name, self._inputs, self._chunks, self._outside = name, inputs, chunks, outside
        self._at_once, self._whole = at_once, whole
        self._need: Need | None = None
        self.in_chunks: InChunks | None = None  # None: all at once

    def pushing(self) -> Pushing:
        """Return what is pushed."""
        return dataclasses.replace(
            self._at_once,
            make=self._make,
            push=self._push,
            is_spent=is_spent,
            fits=self._fits,
            still_fits=self._still_fits,
            most=(self._chunks.limit or sys.maxsize) // PARTS,
        )

    def _fits(self, reading: Reading, variables: Sequence[Tensor]) -> bool:
        """Choose how many columns to push at once; tell whether there are any."""
        tape = Tape.around(self._name, reading, self._inputs, variables)
        tape.randomness = "error"  # at worst: the state of the generator counts
        self._outside = list(self._outside)
        with torch.no_grad():
            kind = (self._name, "first piece")
            self._need = need_of(tape, self._outside, kind, self._whole, is_forward=True)
        size = chosen_size(self._need, self._chunks.limit, self._inputs[0].device)
        if size:
            chunks = dataclasses.replace(self._chunks, size=size, limit=None)
            parts = InChunks(self._name, self._inputs, chunks, self._outside)
            self.in_chunks = self.enter_context(parts)
        return size != 0

    def _still_fits(self, variables: Sequence[Tensor]) -> bool:
        """Tell whether the columns of all variables may wait, if some do: there may be more than at the first cut."""
        limit, need, within = self._chunks.limit, self._need, self.in_chunks
        if limit is None or need is None or within is None:
            return True
        waiting = within.count * sum(map(num_bytes, variables))
        return need.peak(within.size) + waiting - need.result <= limit

    def _make(self) -> Sequence[Any]:
        return self._at_once.make() if self.in_chunks is None else self.in_chunks.units()

    def _push(
        self,
        name: str,
        reading: Reading,
        variables: Sequence[Tensor],
        starts: list[Any],
        axes: Axes,
    ) -> Sequence[Any]:
        push = self._at_once.push if self.in_chunks is None else self.in_chunks.push_piece
        return push(name, reading, variables, starts, axes)

    def check(self, result: int) -> None:
        """Refuse a Jacobian of so many bytes, if it is larger than what waits at a cut, and more than the limit."""
        limit, need = self._chunks.limit, self._need
        if limit is not None and need is not None and result > need.result:
            whole = need.whole + result - need.result
            need = dataclasses.replace(need, result=result, whole=whole)
            if need.largest_chunk(limit) == 0:
                refuse(self._name, need, limit)
