"""Forward mode of one call: columns pushed while the function runs, where its tape is cut, or when it has run."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.block_sum import Blocks, tensors_in
from pushforward.tape.pieces import MAX_COLUMNS, Pushing
from pushforward.tape.reader import Reading
from pushforward.transforms.assemble import (
    directions,
    from_tangents,
    jacobian_dtype,
    result_bytes,
    start,
)
from pushforward.transforms.chunks import Chunks, units
from pushforward.transforms.columns import InChunks, saved_bytes
from pushforward.transforms.limited import Limited
from pushforward.transforms.pushing import push_blocks, push_tangents, structure_of, with_structure
from pushforward.transforms.record import Tape


class Forward(contextlib.ExitStack):
    """The columns of one call, as many at a time as the caller asks for."""

    def __init__(
        self, name: str, inputs: Sequence[Tensor], chunks: Chunks, outside: Iterable[Tensor]
    ) -> None:
        """Prepare; ``outside`` are tensors that there were before the call, asked for if need be."""
        super().__init__()
        self._name, self._inputs, self._chunks = name, inputs, chunks
        self._within: InChunks | Limited | None = None
        self._outside, outside = itertools.tee(outside)
        self.pushing = self._pushing()  # what may be pushed while the function runs
        if self.pushing is None or chunks.is_whole:
            return
        if isinstance(chunks.size, int):
            self._within = self.enter_context(InChunks(name, inputs, chunks, outside))
        elif not chunks.is_fixed:
            within = Limited(name, inputs, chunks, outside, self.pushing, pushed_columns)
            self._within = self.enter_context(within)
        self.pushing = None if self._within is None else self._within.pushing()

    def _pushing(self) -> Pushing | None:
        inputs = self._inputs
        count = _count(inputs)
        if not count:
            return None
        if count > MAX_COLUMNS:
            make = functools.partial(_identities, inputs)
            return Pushing(count, make, (), push_blocks, self._freed)
        unit = functools.partial(_unit_tangents, inputs)
        return Pushing(count, unit, (count,), push_tangents, self._freed)

    def _freed(self, reading: Reading, variables: Sequence[Tensor]) -> int:
        self._outside, outside = itertools.tee(self._outside)
        return saved_bytes(reading, outside)  # those of variables are others' soon

    def rows(self, tape: Tape) -> list[list[Tensor]] | None:
        """Return the Jacobians of a function whose tape was cut; None where it was not."""
        if tape.tangents is None:
            return None
        inputs, within = self._inputs, self._within
        if isinstance(within, Limited):
            within.check(result_bytes(tape.outputs, inputs))
            within = within.in_chunks
        if within is not None:
            return within.last(tape)
        with self._chunks.reporting(self._name, _count(inputs)) as done:
            rows = _last_columns(tape, tape.tangents, inputs)
            done(_count(inputs))
        return rows


def pushed_columns(tape: Tape) -> list[list[Tensor]]:
    """Return the Jacobians of every output with respect to every input, in forward mode."""
    blocks = [(start(x, i, tape.num_batch_of(i)),) for i, x in enumerate(tape.inputs)]
    return _pushed(tape, blocks, tape.inputs)


def _pushed(tape: Tape, blocks: Sequence[Blocks], inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """Push blocks through a tape, and write the Jacobians with respect to the inputs where they started."""
    return [
        [
            from_tangents(tuple(b for b in found if b.source == i), y, x, tape.num_batch_of(i))
            for i, x in enumerate(inputs)
        ]
        for y, found in zip(tape.outputs, tape.program.push(blocks), strict=True)
    ]


def _identities(inputs: Sequence[Tensor]) -> list[Blocks]:
    return [(start(x, i),) for i, x in enumerate(inputs)]


def _last_columns(tape: Tape, tangents: list[Any], inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the Jacobians, from the tangents at the start of the last piece, of which it empties the list."""
    if isinstance(tangents[0], Tensor):
        return _columns(tape.pushed(tangents, (_count(inputs),), is_last=True), tape, inputs)
    given, structure = tensors_in(tangents), structure_of(tangents)
    tangents.clear()
    kind = ("last columns", structure, tuple([directions(x) for x in inputs]))

    def compute() -> list[list[Tensor]]:
        return _pushed(tape, with_structure([given], structure), inputs)

    return tape.swept(kind, compute, given=given, is_last=True, is_jacobian=True)


def _count(inputs: Sequence[Tensor]) -> int:
    return sum(math.prod(directions(x)) for x in inputs)


def _unit_tangents(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return, for each input, its tangents along all directions: unit ones along its own."""
    count, found, begin = _count(inputs), [], 0
    for x in inputs:
        end = begin + math.prod(directions(x))
        own = units(x, 0, end - begin)
        found.append(own.new_zeros((count, *x.shape)))
        found[-1][begin:end] = own
        begin = end
    return found


def _columns(pushed: Sequence[Tensor], tape: Tape, inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the Jacobians, from the tangents ``(count, *y.shape)`` of each output."""
    rows: list[list[Tensor]] = []
    for y, tangents in zip(tape.outputs, pushed, strict=True):
        row, begin = [], 0
        for x in inputs:
            end = begin + math.prod(directions(x))
            columns = tangents[begin:end].movedim(0, -1)
            row.append(_joined([columns], y, x))
            begin = end
        rows.append(row)
    return rows


def _joined(pieces: list[Tensor], primal: Tensor, x: Tensor) -> Tensor:
    shape = tuple(primal.shape) + directions(x)
    if not pieces:
        return torch.zeros(shape, dtype=jacobian_dtype(primal, x), device=primal.device)
    return torch.cat(pieces, dim=-1).reshape(shape).to(jacobian_dtype(primal, x))
