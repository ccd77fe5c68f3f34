"""Columns in chunks through a tape that is cut: at the cuts all wait, through each piece they go few at a time."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pushforward.linear.block import seeds
from pushforward.linear.block_sum import Blocks, tensors_in, to_rows
from pushforward.planning.memory import storage_bytes
from pushforward.tape.pieces import Axes, Pushing
from pushforward.tape.reader import Reading
from pushforward.transforms.assemble import directions, jacobian_dtype, result_bytes
from pushforward.transforms.chunks import Chunks, Parts, units
from pushforward.transforms.pushing import Structure, pushed_through, structure_of, with_structure
from pushforward.transforms.record import Tape


class Columns:
    """The tangents of one variable, in chunks, each of which is taken once and let go of."""

    __slots__ = ("_chunks", "is_spent")

    def __init__(self) -> None:
        """Start with none."""
        self._chunks: list[Blocks] = []
        self.is_spent = False

    def add(self, blocks: Blocks) -> None:
        """Add a chunk."""
        self._chunks.append(blocks)

    def take(self, number: int) -> Blocks:
        """Return a chunk, which is not kept."""
        self.is_spent = True
        found, self._chunks[number] = self._chunks[number], ()
        return found

    @property
    def nbytes(self) -> int:
        """How many bytes are kept."""
        return sum(t.nbytes for t in tensors_in(self._chunks))


class Units(Columns):
    """The unit tangents of one input, made as they are taken."""

    __slots__ = ("_place", "_ranges", "_x")

    def __init__(self, x: Tensor, place: int, ranges: Sequence[tuple[int, int, int]]) -> None:
        """Take the input, and of each chunk the place of its input, and the directions along that."""
        super().__init__()
        self._x, self._place, self._ranges = x, place, ranges

    def take(self, number: int) -> Blocks:
        """Return a chunk."""
        place, begin, end = self._ranges[number]
        if place != self._place:
            return ()
        return (seeds(units(self._x, begin, end), (end - begin,), 0),)


def is_spent(tangents: object) -> bool:
    """Tell whether tangents are columns that were taken."""
    return isinstance(tangents, Columns) and tangents.is_spent


def saved_bytes(reading: Reading, others: Iterable[Tensor]) -> int:
    """Return how many bytes of what nodes saved are not in ``others``."""
    return storage_bytes(reading.all_saved(), but=others)


class InChunks(contextlib.ExitStack):
    """The columns of one call, pushed while its function runs. Shows progress until it is left."""

    def __init__(
        self, name: str, inputs: Sequence[Tensor], chunks: Chunks, outside: Iterable[Tensor]
    ) -> None:
        """Prepare; ``outside`` are tensors that there were before the call, asked for if need be."""
        super().__init__()
        assert isinstance(chunks.size, int)
        self.size = chunks.size
        self._name, self._inputs, self._chunks, self._outside = name, inputs, chunks, outside
        self._counts = [math.prod(directions(x)) for x in inputs]
        self._ranges = [
            (place, begin, min(begin + chunks.size, count))
            for place, count in enumerate(self._counts)
            for begin in range(0, count, chunks.size)
        ]
        self._done: Callable[[int], object] | None = None

    @property
    def count(self) -> int:
        """How many columns there are."""
        return sum(self._counts)

    def pushing(self) -> Pushing | None:
        """Return what is pushed."""
        if not self._ranges:
            return None
        return Pushing(self.count, self.units, (), self.push_piece, self._freed, True, is_spent)

    def units(self) -> list[Units]:
        """Return the tangents of the inputs."""
        return [Units(x, place, self._ranges) for place, x in enumerate(self._inputs)]

    def _freed(self, reading: Reading, variables: Sequence[Tensor]) -> int:
        self._outside = list(self._outside)
        return saved_bytes(reading, [*self._outside, *variables])

    def _each(self) -> Iterable[tuple[int, bool]]:
        """Return the numbers of the chunks, and which is the last; show progress meanwhile."""
        total = self.count
        if self._done is None:
            self._done = self.enter_context(self._chunks.reporting(self._name, total))
        else:
            self._done(-total)  # the next piece
        for number, (_, begin, end) in enumerate(self._ranges):
            yield number, number == len(self._ranges) - 1
            self._done(end - begin)

    def push_piece(
        self,
        name: str,
        reading: Reading,
        variables: Sequence[Tensor],
        starts: list[Columns],
        axes: Axes,
    ) -> list[Columns]:
        """Push all columns through a piece."""
        tape = Tape.around(name, reading, (), variables)
        found = [Columns() for _ in variables]
        with torch.no_grad():
            for number, is_last in self._each():
                blocks = [columns.take(number) for columns in starts]
                pushed = pushed_through(tape, blocks, is_last=is_last, is_one_of_many=True)
                for columns in reversed(found):
                    columns.add(pushed.pop())
        return found

    def last(self, tape: Tape) -> list[list[Tensor]]:
        """Return the Jacobians, from the columns at the start of the last piece."""
        starts = tape.tangents or []
        dtypes = [[jacobian_dtype(y, x) for x in self._inputs] for y in tape.outputs]
        # Where more waits than the result takes, that grows as fast as what waits shrinks.
        is_joined = sum(columns.nbytes for columns in starts) >= result_bytes(
            tape.outputs, self._inputs
        )
        parts = [
            [
                Parts(tape, (*y.shape, count), dtype, y, -1, is_joined)
                for dtype, count in zip(row, self._counts, strict=True)
            ]
            for y, row in zip(tape.outputs, dtypes, strict=True)
        ]
        for number, is_last in self._each():
            place, begin, end = self._ranges[number]
            blocks = [columns.take(number) for columns in starts]
            given, structure = tensors_in(blocks), structure_of(blocks)
            blocks.clear()
            batch = (end - begin,)
            (pushed,) = tape.swept(
                ("last chunk", batch, structure),
                functools.partial(_rows, tape, given, structure, batch),
                given=given,
                is_one_of_many=True,
                is_last=is_last,
                lets_go=True,
            )
            for row in parts:
                row[place].add(pushed.pop(0).movedim(0, -1), begin)
        return [
            [
                part.whole().reshape(tuple(y.shape) + directions(x))
                for part, x in zip(row, self._inputs, strict=True)
            ]
            for row, y in zip(parts, tape.outputs, strict=True)
        ]


def _rows(
    tape: Tape, given: list[Tensor], structure: Structure, batch: tuple[int]
) -> list[list[Tensor]]:
    pairs = zip(tape.program.push(with_structure([given], structure)), tape.outputs, strict=True)
    return [[to_rows(b, tuple(y.shape), batch, like=y) for b, y in pairs]]
