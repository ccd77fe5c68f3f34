"""Recording in pieces: tangents are pushed while the function runs, so that long programs keep little alive.

After so and so many bytes of results the tape is cut: what the function may still use (all results that are alive) gets
its tangent, and starts the next piece. What was recorded before is let go of. A function that goes backward itself
needs the tape whole: it is run again.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

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
from pushforward.tape.trust import AskedError
from pushforward.tape.watching import BACKWARD, Watcher

MAX_COLUMNS = (
    8  # tangents that are pushed at once: more are worth their structure, which a cut loses
)
MIN_PIECE = 2**20  # bytes of results: shorter programs are recorded whole

Axes = tuple[int, ...]  # before those of the inputs, along which there are several tangents
# Gives tangents of the inputs; None if they are too many.
MakeTangents = Callable[[], tuple[Sequence[Tensor], Axes] | None]
# Takes what was read, the variables at its end, and the tangents at its start; gives those of the variables.
Push = Callable[[Reading, Sequence[Tensor], Sequence[Tensor], Axes], Sequence[Tensor]]


class _Cut(torch.autograd.Function):
    """Where a piece starts: the node of a variable whose tangent is known."""

    @staticmethod
    def forward(ctx: Any, variable: Tensor, token: Tensor, tangent: Tensor) -> Tensor:
        """Make ``variable`` start anew."""
        ctx.mark_dirty(variable)
        ctx.tangent = tangent
        return variable

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """Refuse: nothing goes back over a cut."""
        raise RuntimeError("pushforward: a backward pass met the place where a tape was cut.")


def fits(inputs: Sequence[Tensor]) -> bool:
    """Tell whether a function of these inputs, called as things are now, may be recorded in pieces."""
    return (
        functorch_level() is None
        and dual_level() < 0
        and not num_dispatch_modes()
        and not any(x.requires_grad or x.is_inference() for x in inputs)
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in inputs)
        and not run_depth()
    )


class PieceRun(Run):
    """A run that pushes tangents as it goes."""

    __slots__ = ("__weakref__", "_axes", "_first", "_make_tangents", "_push", "_token", "_was_cut")

    def __init__(
        self,
        name: str,
        inputs: Sequence[Tensor],
        randomness: str,
        scripts: list[Script],
        make_tangents: MakeTangents,
        push: Push,
    ) -> None:
        """Prepare, as `Run`; ``make_tangents`` gives those of the inputs, ``push`` takes some through a piece."""
        super().__init__(name, inputs, randomness, scripts=scripts)
        self._push, self._make_tangents = push, make_tangents
        self._first: dict[Node, Tensor] = {}  # the tangents of the inputs, once the tape was cut
        self._was_cut = False

    @property
    def tangents(self) -> list[Tensor] | None:
        """The tangents at the start of the last piece; None if there is but one."""
        return self._start_tangents() if self._was_cut else None

    def _start_tangents(self) -> list[Tensor]:
        return [self._tangent_of(node) for node in self._starts]

    def _tangent_of(self, start: Node) -> Tensor:
        found = self._first.get(start)
        tangent: Tensor = start.tangent if found is None else found
        return tangent

    def _new_watcher(self) -> Watcher:
        return _CuttingWatcher(self.name, self)

    def _read(self, ends: list[tuple[Node | None, int]]) -> Reading:
        if self._was_cut:
            self._starts = self._starts_of([node for node, _ in ends if node is not None])
            self._scripts = []
        return super()._read(ends)

    def script(self, reading: Reading) -> Script | None:
        """Return a script for graphs like the one that was read last, None where that is a piece."""
        return None if self._was_cut else super().script(reading)

    def _cut(self, variables: list[Tensor], is_whole: bool) -> bool:
        """Cut the tape behind ``variables``; tell whether it may be cut again.

        What was recorded is let go of if the function holds nothing else of it: if that ``is_whole``.
        """
        if run_depth() != 1 or functorch_level() is not None or _thread.tapes:
            return True  # a recording inside needs its tape whole; later, then
        if not self._was_cut:
            made = self._make_tangents()
            if made is None:
                return False
            tangents, self._axes = made
            self._first = dict(zip(self._starts, tangents, strict=True))
            self._token = torch.zeros((), requires_grad=True)
        reading = self.reading(variables)
        if reading.is_followed and self.grad_mode:
            return False  # somebody will go back over it
        tangents = self._push(reading, variables, self._start_tangents(), self._axes)
        self._was_cut = True
        edges = reading.outputs
        del reading
        if is_whole:
            writes = self._watcher.writes
            end_cycles(self.cycles())
            writes.geometries.clear()
            writes.kept.clear()
            writes.originals.clear()
        for variable in variables:
            variable.detach_()
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

    def __init__(self, name: str, run: PieceRun) -> None:
        super().__init__(name, 0)
        self._run = weakref.ref(run)  # a cycle would keep the tape until garbage is collected
        self._limit = MIN_PIECE
        self._num_bytes = 0
        self._was_cut = False
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call, and note the results."""
        if self._was_cut and func in BACKWARD:
            raise AskedError(self)
        if self._num_bytes >= self._limit:  # the function has let go of what it did not need for it
            self._cut()
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, Tensor):
            self._note(result)
        elif isinstance(result, (tuple, list)):
            for item in result:
                if isinstance(item, Tensor):
                    self._note(item)
        return result

    def _cut(self) -> None:
        self._num_bytes = 0
        self._was_cut = self.has_acted = True  # watch it the next time too
        variables, is_whole = self._variables()
        run = self._run()
        assert run is not None
        if not run._cut(variables, is_whole):
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
                if size > self._limit:
                    self._limit = size // 2

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
            base = tensor if tensor._base is None else tensor._base
            if tensor is not base and is_one_of_several(tensor):
                left.add(id(base))  # such views cannot follow
            elif base.requires_grad and base.grad_fn is not None:
                found[id(base)] = base
        self._made = held
        return [base for name, base in found.items() if name not in left], not left


class _Thread(threading.local):
    """The tapes of recordings inside a run that are in use in this thread."""

    def __init__(self) -> None:
        self.tapes: weakref.WeakSet[Any] = weakref.WeakSet()


_thread = _Thread()


def keep_whole(tape: Any) -> None:
    """Let no tape around be cut as long as ``tape``, recorded inside it, is in use."""
    _thread.tapes.add(tape)


_cut: Any = _Cut.apply
_CUT_NODE: Any = _Cut._backward_cls
