"""Recording in pieces: tangents are pushed while the function runs, so that long programs keep little alive.

After so and so many bytes of results the tape is cut: what the function may still use (all results that are alive) gets
its tangent, and starts the next piece. What was recorded before is let go of. A function that goes backward itself
needs the tape whole: it is run again.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.tape.copies import base_of, num_bytes
from pushforward.tape.depth import run_depth
from pushforward.tape.overwritten import end_cycles
from pushforward.tape.private_functorch import dual_level, functorch_level
from pushforward.tape.private_torch import (
    Node,
    is_held,
    is_one_of_several,
    keeping_version,
    num_dispatch_modes,
)
from pushforward.tape.reader import Reading
from pushforward.tape.run import Run
from pushforward.tape.scripts import Script
from pushforward.tape.trust import AskedError, Record
from pushforward.tape.watching import BACKWARD, Watcher

MAX_COLUMNS = 8  # tangents that are pushed without structure
# Bytes that nodes save: shorter programs are recorded whole, and their repeated calls are cheaper.
MIN_TAPE = 2**18
# That pieces of longer ones have at least, and of few columns at most: a product, of one, takes the longest.
MIN_PIECE, MAX_PIECE = 2**16, 2**20
# How many bytes a piece has for each that tangents may have at a cut, of which a sweep holds two. Of few it also has as
# many as the variables.
SHARE_OF_MANY, SHARE_OF_FEW = 0.3, 0.5
# The same where few tangents are carried at once, and the others wait at the cuts: of what nodes saved, of which those
# may be so many times as much, at first and later. With more at first, tapes that take less would be cut.
MIN_PIECE_IN_CHUNKS, SHARES_IN_CHUNKS = 2**16, (4 / 3, 4)
MIN_SAVED = 1 / 32  # of the bytes of results: nodes take memory themselves
MAX_LOOKS = 64  # at what a function holds, for the place of one cut

Axes = tuple[int, ...]  # before those of the inputs, along which there are several tangents


@dataclasses.dataclass(frozen=True, slots=True)
class Pushing:
    """What is pushed while the function runs, and how.

    Attributes:
        count: How many tangents each input has.
        make: Gives those of the inputs: a tensor for each, or blocks.
        axes: Those of the tensors.
        push: Takes what was read, its variables, and its first tangents, of which it empties the list; gives the last.
        freed: Tells how many bytes a cut behind variables lets go of; None: as many as the results have.
        is_in_chunks: Whether few tangents are carried at once.
        is_spent: Tells whether tangents were let go of when they had been pushed, and cannot be pushed again.
        fits: Tells, before the first cut, whether what is to be pushed fits into memory; if not, there is none.
        still_fits: Tells, at a later place, whether the tangents of the variables there do.
        most, least: How many bytes pieces had better have at most, so that they fit, and have at least.
    """

    count: int
    make: Callable[[], Sequence[Any]]
    axes: Axes
    push: Callable[[str, Reading, Sequence[Tensor], list[Any], Axes], Sequence[Any]]
    freed: Callable[[Reading, Sequence[Tensor]], int] | None = None
    is_in_chunks: bool = False
    is_spent: Callable[[Any], bool] = lambda _: False
    fits: Callable[[Reading, Sequence[Tensor]], bool] | None = None
    still_fits: Callable[[Sequence[Tensor]], bool] = lambda _: True
    most: int = sys.maxsize
    least: int = 0

    @property
    def leeway(self) -> float:
        """Which part of a piece it may be shorter or longer, to end where the function holds least."""
        return 0.5 if self.is_in_chunks else 0.25

    @property
    def way(self) -> tuple[int, bool, int]:
        """What tells, of a function that was not cut, whether it will be."""
        return self.count, self.is_in_chunks, self.most

    def needed(self, held: int, is_known: bool) -> int:
        """Return how many bytes a cut has to let go of where ``held`` bytes have tangents, or in one result.

        At first more, which shows that cuts pay (of chunks nearly what waits there): then they are `is_known` to.
        """
        waiting = self.count * held
        if self.is_in_chunks:
            return int(max(MIN_PIECE_IN_CHUNKS, waiting / SHARES_IN_CHUNKS[is_known]))
        wanted = SHARE_OF_MANY * waiting
        if self.count <= MAX_COLUMNS:
            wanted = min(SHARE_OF_FEW * waiting + held, MAX_PIECE)
        return min(int(max(wanted, self.least, MIN_PIECE if is_known else MIN_TAPE)), self.most)


class _Cut(torch.autograd.Function):
    """Where a piece starts: the node of a variable whose tangent is known."""

    @staticmethod
    def forward(ctx: Any, variable: Tensor, token: Tensor, tangent: Any) -> Tensor:
        """Make ``variable`` start anew, with a tensor of tangents or with blocks."""
        ctx.mark_dirty(variable)
        ctx.tangent = tangent
        return variable

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """End here, where a result is differentiated: nobody follows what was before; the function itself might."""
        if run_depth():
            raise RuntimeError("pushforward: a backward pass met the place where a tape was cut.")
        return None, None, None


def fits(inputs: Sequence[Tensor]) -> bool:
    """Tell whether a function of these inputs, called as things are now, may be recorded in pieces."""
    return (
        not run_depth()  # first: a recording around sees what tensors are asked
        and functorch_level() is None
        and dual_level() < 0
        and not num_dispatch_modes()
        and not any(x.requires_grad or x.is_inference() for x in inputs)
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in inputs)
    )


def may_cut(known: Record, pushing: Pushing, inputs: Sequence[Tensor], is_trusted: bool) -> bool:
    """Tell whether a function may be recorded in pieces; not if it was too short for these before, and is trusted."""
    if known.asks or known.keeps_layout or not fits(inputs):
        return False
    if not is_trusted or pushing.is_in_chunks in known.pieces:
        return True
    return sum(map(num_bytes, inputs)) > known.uncut.get(pushing.way, -1)


class PieceRun(Run):
    """A run that pushes tangents as it goes."""

    __slots__ = ("__weakref__", "_first", "_inside", "_pushing", "_record", "_token", "_was_cut")

    def __init__(
        self,
        name: str,
        inputs: Sequence[Tensor],
        randomness: str,
        known: Record,
        pushing: Pushing,
    ) -> None:
        """Prepare, as `Run`."""
        super().__init__(name, inputs, randomness, scripts=known.scripts)
        self._pushing, self._record = pushing, known
        self._first: dict[Node, Any] = {}  # the tangents of the inputs, once the tape was cut
        self._was_cut = False
        self._inside = _thread.inside = weakref.WeakSet()

    @property
    def tangents(self) -> list[Any] | None:
        """The tangents at the start of the last piece; None if there is but one."""
        return self._start_tangents() if self._was_cut else None

    def note_whole(self) -> None:
        """Note that the function was not cut."""
        self._record.uncut[self._pushing.way] = sum(map(num_bytes, self._given))

    def _start_tangents(self) -> list[Any]:
        return [self._tangent_of(node) for node in self._starts]

    def _tangent_of(self, start: Node) -> Any:
        found = self._first.get(start)
        return start.tangent if found is None else found

    def _new_watcher(self) -> Watcher:
        return _CuttingWatcher(self.name, self, self._pushing, self._record)

    def _read(self, ends: list[tuple[Node | None, int]]) -> Reading:
        if self._was_cut:
            self._starts = self._starts_of([node for node, _ in ends if node is not None])
            self._scripts = []
            if any(map(self._pushing.is_spent, self._start_tangents())):
                raise AskedError(self._watcher)  # what it kept of an earlier piece was not seen
        return super()._read(ends)

    def script(self, reading: Reading) -> Script | None:
        """Return a script for graphs like the one that was read last, None where that is a piece."""
        return None if self._was_cut else super().script(reading)

    def freed(self, variables: Sequence[Tensor]) -> int | None:
        """Return how many bytes a cut behind ``variables`` lets go of, if somebody can tell."""
        freed = self._pushing.freed
        return None if freed is None else freed(self.reading(variables), variables)

    def fits(self, variables: Sequence[Tensor]) -> bool:
        """Tell whether the tape may be cut behind ``variables``, as far as memory goes."""
        if self._was_cut or self._pushing.fits is None:
            return self._pushing.still_fits(variables)
        return self._pushing.fits(self.reading(variables), variables)

    def _cut(self, variables: list[Tensor], is_whole: bool) -> bool:
        """Cut the tape behind ``variables``; tell whether it may be cut again.

        What was recorded is let go of if the function holds nothing else of it: if that ``is_whole``.
        """
        if run_depth() != 1 or functorch_level() is not None or self._inside:
            return True  # a recording inside needs its tape whole; later, then
        if not self._was_cut:
            tangents = self._pushing.make()
            self._first = dict(zip(self._starts, tangents, strict=True))
            self._token = torch.zeros((), requires_grad=True)
        reading = self.reading(variables)
        if reading.is_followed and self.grad_mode:
            return False  # somebody will go back over it
        pushing, starts, edges = self._pushing, self._start_tangents(), reading.outputs
        cycles = self.cycles() if is_whole else []
        # What nobody else holds of the graph, the tangents at its start among it, is the reading's alone from here on.
        self._starts, self._ends = [node for node in self._starts if node in self._first], None
        for variable in variables:
            variable.detach_()
        tangents = pushing.push(self.name, reading, variables, starts, pushing.axes)
        self._was_cut = True
        del reading
        if is_whole:
            writes = self._watcher.writes
            end_cycles(cycles)
            writes.geometries.clear()
            writes.kept.clear()
            writes.originals.clear()
        for variable, (number, _), tangent in zip(variables, edges, tangents, strict=True):
            if number >= 0:
                # Its values stay, so what a recording inside has saved of it is still good.
                with keeping_version(variable):
                    _cut(variable, self._token, tangent)
        return True

    def _starts_of(self, ends: list[Node]) -> list[Node]:
        """Return the starts of pieces that ``ends`` lead back to."""
        found: list[Node] = []
        seen: set[Node] = set()
        stack = ends
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if type(node) is _CUT_NODE or node in self._first:
                found.append(node)
            else:
                stack.extend(target for target, _ in node.next_functions if target is not None)
        return found[::-1]


class _CuttingWatcher(Watcher):
    """Notes what the function makes, and has the tape cut."""

    def __init__(self, name: str, run: PieceRun, pushing: Pushing, known: Record) -> None:
        super().__init__(name, 0)
        self._run = weakref.ref(run)  # a cycle would keep the tape until garbage is collected
        self._pushing, self._record = pushing, known
        self._num_bytes = self._num_cuts = self._largest = 0  # the last: of one result
        share = known.pieces.get(pushing.is_in_chunks)
        self._is_known = share is not None
        self._share = share or 1.0  # of the results that nodes save
        # In chunks the first piece is as short as may be: before it nothing waits, after it all columns do.
        is_short = self._is_known and pushing.is_in_chunks
        first = 0 if is_short else pushing.needed(0, self._is_known)
        self._begin(max(int(first / self._share), 1))
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call, and note the results."""
        if self._num_cuts and func in BACKWARD:
            raise AskedError(self)
        if self._num_bytes >= self._watched_from:
            self._look()  # the function has let go of what it did not need for this call
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, Tensor):
            self._note(result)
        elif isinstance(result, (tuple, list)):
            for item in result:
                if isinstance(item, Tensor):
                    self._note(item)
        return result

    def _begin(self, limit: int) -> None:
        """Start a piece of ``limit`` bytes of results."""
        self._limit, self._least, self._num_looks, self._enough = limit, sys.maxsize, 0, -1
        self._watched_from = limit - int(limit * self._pushing.leeway)

    def _look(self) -> None:
        """See how much the function holds; cut where that is as little as it was before the limit."""
        is_full = self._num_bytes >= self._limit
        if not is_full:
            self._num_looks += 1
            if self._num_looks > MAX_LOOKS:
                self._watched_from = self._limit
                return
        variables, is_whole = self._variables()
        held = sum(num_bytes(v) for v in variables)
        if held <= self._enough:
            self._cut(variables, is_whole, held)
        elif not is_full:
            self._least = min(self._least, held)
        elif held <= self._least or self._num_bytes >= self._limit * (1 + self._pushing.leeway):
            self._cut(variables, is_whole, held)

    def _cut(self, variables: list[Tensor], is_whole: bool, held: int) -> None:
        run, pushing, known = self._run(), self._pushing, self._record.pieces
        assert run is not None
        if pushing.is_in_chunks or not self._is_known:
            freed = run.freed(variables)
            self._share = 1 if freed is None else max(freed / self._num_bytes, MIN_SAVED)
        counted = held if pushing.is_in_chunks else max(held, self._largest)
        needed = pushing.needed(counted, pushing.is_in_chunks in known)
        if self._num_bytes * self._share < needed:
            self._begin(min(int(needed / self._share), 2 * self._num_bytes))
            if pushing.is_in_chunks:
                self._watched_from, self._enough = self._num_bytes, held // 2
            return
        if not run.fits(variables):
            self._begin(2 * self._num_bytes)
            self._watched_from, self._enough = self._num_bytes, held - 1
            return
        self._num_bytes = 0
        self._num_cuts += 1
        self.has_acted = True  # watch it the next time too
        if run._cut(variables, is_whole):
            if not self._is_known:
                known[pushing.is_in_chunks] = self._share
                self._is_known = self._num_cuts > 1  # the first piece may be another
            least = int(pushing.needed(counted, True) / self._share)
            self._begin(max(least, MIN_PIECE_IN_CHUNKS))
        else:
            self._num_bytes = -(2**62)

    def _note(self, tensor: Tensor) -> None:
        # Views are not asked: a stale one raises, and one of the caller's would get a history.
        if not tensor.requires_grad:
            return
        if tensor._base is not None:
            self._made.append(weakref.ref(tensor))
        elif tensor.grad_fn is not None:
            self._made.append(weakref.ref(tensor))
            if tensor.layout is torch.strided:
                size = tensor.nbytes
                self._num_bytes += size
                self._largest = max(self._largest, size)
                if size > self._limit:
                    self._limit = self._watched_from = size // 2

    def _variables(self) -> tuple[list[Tensor], bool]:
        """Return what the function holds and can start anew (no views, which follow), and whether that is all."""
        found: dict[int, Tensor] = {}
        left: set[int] = set()
        held: list[weakref.ref[Tensor]] = []
        for reference in self._made:
            tensor = reference()
            if tensor is None or not is_held(tensor):
                continue
            held.append(reference)
            base = base_of(tensor)
            if tensor is not base and is_one_of_several(tensor):
                left.add(id(base))  # such views cannot follow
            elif base.requires_grad and base.grad_fn is not None:
                found[id(base)] = base
        self._made = held
        return [base for name, base in found.items() if name not in left], not left


class _Thread(threading.local):
    """The tapes, as far as they are in use, of recordings inside the run of this thread that may be cut."""

    def __init__(self) -> None:
        self.inside: weakref.WeakSet[Any] = weakref.WeakSet()


_thread = _Thread()


def keep_whole(tape: Any) -> None:
    """Let the tape around not be cut as long as ``tape``, recorded inside it, is in use."""
    _thread.inside.add(tape)


_cut: Any = _Cut.apply
_CUT_NODE: Any = _Cut._backward_cls
