"""Chunks: few columns or rows at a time, each written where it belongs in the Jacobian."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from pushforward.errors import ArgumentTypeError, ArgumentValueError, MissingPackageError, message
from pushforward.linear.axes import Shape
from pushforward.linear.block import seeds
from pushforward.linear.block_sum import Blocks, to_rows
from pushforward.planning.calls import PLAIN
from pushforward.tape.private_functorch import functorch_level
from pushforward.tape.private_torch import num_dispatch_modes
from pushforward.transforms.assemble import directions, from_rows, jacobian_dtype
from pushforward.transforms.record import Tape

ChunkSize = int | Literal["auto"] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Chunks:
    """What the caller said about chunks."""

    size: ChunkSize = None
    limit: int | None = None
    progress: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether there are none."""
        return self.size is None and self.limit is None and not self.progress

    @property
    def is_fixed(self) -> bool:
        """Whether nothing has to be estimated."""
        return self.size != "auto" and self.limit is None

    def check(self, name: str) -> None:
        """Refuse what is not understood."""
        size, limit = self.size, self.limit
        if size is not None and size != "auto":
            _check_int(name, "chunk_size", size, "an int, 'auto' or None", "for one pass")
        if limit is not None:
            _check_int(name, "memory_limit", limit, "an int, in bytes, or None", "for no limit")
            if isinstance(size, int):
                raise ArgumentValueError(
                    message(
                        name,
                        "memory_limit",
                        f"{limit} with chunk_size={size}",
                        "one of the two",
                        "Leave chunk_size out to have it chosen.",
                    )
                )
        if not isinstance(self.progress, bool):
            raise ArgumentTypeError(
                message(name, "progress", repr(self.progress), "a bool", "Leave it out.")
            )
        if self.progress:
            _tqdm(name)

    @contextlib.contextmanager
    def reporting(self, name: str, total: int) -> Iterator[Callable[[int], Any]]:
        """Give a function to tell how many more columns or rows are done."""
        if not self.progress:
            yield lambda _: None
            return
        with _tqdm(name)(total=total, desc=name) as bar:
            yield bar.update


_WHOLE = Chunks()


def chunks_of(size: ChunkSize, limit: int | None, progress: bool) -> Chunks:
    """Return what the caller said; nothing, nearly always, for a tenth of a microsecond."""
    if size is None and limit is None and progress is False:
        return _WHOLE
    return Chunks(size, limit, progress)


def _check_int(name: str, what: str, value: Any, expected: str, purpose: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(
            message(name, what, repr(value), expected, f"Leave it out {purpose}.")
        )
    if value <= 0:
        raise ArgumentValueError(
            f"{name}: `{what}` should be greater than 0: got {value}, expected at least 1. Leave it out {purpose}."
        )


def _tqdm(name: str) -> Any:
    """Return what shows progress."""
    try:
        return importlib.import_module("tqdm.auto").tqdm
    except ImportError:
        raise MissingPackageError(
            message(
                name,
                "progress=True",
                "no package tqdm",
                "it installed",
                "Install it (pip install 'pushforward[progress]'), or leave progress out.",
            )
        ) from None


def in_chunks(
    tape: Tape, size: int, done: Callable[[int], Any], *, is_forward: bool
) -> list[list[Tensor]]:
    """Return the Jacobians of every output with respect to every input, ``size`` columns or rows at a time."""
    return (_pushed_columns if is_forward else _pulled_rows)(tape, size, done)


def num_seeds(tape: Tape, *, is_forward: bool) -> int:
    """Return how many columns or rows there are in all."""
    return sum(math.prod(directions(end)) for end in (tape.inputs if is_forward else tape.outputs))


def _pushed_columns(tape: Tape, size: int, done: Callable[[int], Any]) -> list[list[Tensor]]:
    rows: list[list[Tensor]] = [[] for _ in tape.outputs]
    for place, x in enumerate(tape.inputs):
        count = math.prod(directions(x))
        parts = [Parts(tape, (*y.shape, count), jacobian_dtype(y, x), y, -1) for y in tape.outputs]
        for begin in range(0, count, size):
            end = min(begin + size, count)
            pushed = _pushed_from(tape, place, units(x, begin, end))
            for part in parts:
                part.add(pushed.pop(0).movedim(0, -1), begin)
            done(end - begin)
        for row, part, y in zip(rows, parts, tape.outputs, strict=True):
            row.append(part.whole().reshape(tuple(y.shape) + directions(x)))
    return rows


def _pulled_rows(tape: Tape, size: int, done: Callable[[int], Any]) -> list[list[Tensor]]:
    rows = []
    for place, y in enumerate(tape.outputs):
        count = math.prod(directions(y))
        parts = [Parts(tape, (count, *x.shape), x.dtype, x, 0) for x in tape.inputs]
        for begin in range(0, count, size):
            end = min(begin + size, count)
            pulled = _pulled_from(tape, place, units(y, begin, end))
            for part in parts:
                part.add(pulled.pop(0), begin)
            done(end - begin)
        rows.append(
            [
                from_rows(part.whole().reshape(directions(y) + tuple(x.shape)), y, x)
                for part, x in zip(parts, tape.inputs, strict=True)
            ]
        )
    return rows


def _pushed_from(tape: Tape, place: int, tangents: Tensor) -> list[Tensor]:
    compute = functools.partial(push_from, tape, place, tangents)
    kind = ("pushed from", place)
    (row,) = tape.swept(kind, compute, given=[tangents], is_one_of_many=True)
    return row


def _pulled_from(tape: Tape, place: int, cotangents: Tensor) -> list[Tensor]:
    compute = functools.partial(pull_from, tape, place, cotangents)
    kind = ("pulled from", place)
    (row,) = tape.swept(kind, compute, given=[cotangents], is_one_of_many=True)
    return row


def push_from(tape: Tape, place: int, tangents: Tensor) -> list[list[Tensor]]:
    """Push a batch of tangents ``(count, *x.shape)`` of one input; the batch comes first in the results."""
    batch = (len(tangents),)
    blocks: list[Blocks] = [()] * len(tape.inputs)
    blocks[place] = (seeds(tangents, batch, 0),)
    pairs = zip(tape.program.push(blocks), tape.outputs, strict=True)
    return [[to_rows(b, tuple(y.shape), batch, like=y) for b, y in pairs]]


def pull_from(tape: Tape, place: int, cotangents: Tensor) -> list[list[Tensor]]:
    """Pull a batch of cotangents ``(count, *y.shape)`` of one output; the batch comes first in the results."""
    batch = (len(cotangents),)
    blocks: list[Blocks] = [()] * len(tape.outputs)
    blocks[place] = (seeds(cotangents, batch, 0),)
    pairs = zip(tape.program.pull(blocks), tape.inputs, strict=True)
    return [[to_rows(b, tuple(x.shape), batch, like=x) for b, x in pairs]]


def units(primal: Tensor, begin: int, end: int) -> Tensor:
    """Return unit tangents ``(count, *primal.shape)`` along the directions from ``begin`` to ``end`` of ``primal``."""
    shape = (end - begin, *primal.shape)
    found = torch.zeros(shape, dtype=primal.dtype, device=primal.device)
    parts = torch.view_as_real(found) if found.is_complex() else found
    parts.view(end - begin, math.prod(parts.shape[1:])).diagonal(begin).fill_(1)
    return found


class Parts:
    """A tensor in pieces along one axis: written into one array, or joined in the end where autograd sees it."""

    def __init__(
        self,
        tape: Tape,
        shape: Shape,
        dtype: torch.dtype,
        like: Tensor,
        axis: int,
        is_joined: bool = False,
    ) -> None:
        """Prepare a tensor ``like`` another; it ``is_joined`` where that is asked for, too."""
        self._axis, self._dtype, self._shape = axis, dtype, shape
        self._device = like.device
        self._pieces: list[Tensor] = []
        self._whole: Tensor | None = None  # until the first piece is done
        self._is_written = not shape[axis] or (
            not is_joined
            and not (torch.is_grad_enabled() and tape.reading.is_followed)
            and functorch_level() is None
            and not num_dispatch_modes()
            and type(like) in PLAIN
        )

    def add(self, piece: Tensor, begin: int) -> None:
        """Take the piece that starts at ``begin``."""
        if not self._is_written:
            self._pieces.append(piece)
        else:
            self._made().narrow(self._axis, begin, piece.shape[self._axis]).copy_(piece)

    def whole(self) -> Tensor:
        """Return all of it."""
        if self._is_written:
            return self._made()
        return torch.cat(self._pieces, self._axis).to(self._dtype)

    def _made(self) -> Tensor:
        if self._whole is None:
            self._whole = torch.zeros(self._shape, dtype=self._dtype, device=self._device)
        return self._whole
