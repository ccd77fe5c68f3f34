"""Reading the graph that a run has left: by a script where one fits, and with what was overwritten since."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from pushforward.errors import UnsupportedError
from pushforward.tape import distributed_tensors, hooks
from pushforward.tape.aliases import aliases
from pushforward.tape.batch import Batch
from pushforward.tape.copies import forget_history
from pushforward.tape.depth import thread
from pushforward.tape.node_types import calling_back
from pushforward.tape.overwritten import Restored, gives_history, restored
from pushforward.tape.private_functorch import unwrap_for_grad, without_functorch
from pushforward.tape.private_torch import Node, expected_version, in_backward_pass, is_refusal
from pushforward.tape.reader import (
    Reading,
    ends_of,
    has_zeros_without_memory,
    map_saved,
    nodes_between,
    read,
)
from pushforward.tape.recomputation import RecomputingError, in_pass_of_its_own, read_at_once
from pushforward.tape.scripts import End, Script, script_of
from pushforward.tape.trust import UNTOLD, AskedError, Record, Unwatched, written_by
from pushforward.tape.watching import Watcher

T = TypeVar("T")


class GraphReader:
    """What a run knows of its graph."""

    __slots__ = (
        "_end", "_ends", "_level", "_oldest", "_scripts", "_starts", "_watcher", "batch", "inputs", "is_outermost",
        "is_watched",
    )  # fmt: skip

    batch: Batch | None
    inputs: Sequence[Tensor]
    is_outermost: bool
    is_watched: bool
    name: str  # of the transform, for messages
    _end: int  # sequence number
    _ends: list[End] | None  # of the graph that was read last
    _level: int | None  # of the run among the transforms of ``torch.func``
    _oldest: int  # sequence number
    _scripts: list[Script]
    _starts: list[Node]  # of the inputs
    _watcher: Watcher

    @property
    def has_inner(self) -> bool:
        """Whether other runs began while this one went on."""
        raise NotImplementedError

    @property
    def has_ties(self) -> bool:
        """Whether a slope was shared that would not be with a batch taken apart."""
        return bool(self._watcher.has_ties)

    @property
    def writes(self) -> bool:
        """Whether in-place operators were called."""
        return bool(self._watcher.has_written)

    @property
    def has_cells(self) -> bool:
        """Whether cells of recurrent networks were called as they are."""
        return bool(self._watcher.has_cells)

    def num_beside(self, reading: Reading) -> int:
        """Return how many nodes were made that are not in the graph, `UNTOLD` where it is not the function alone."""
        if self.has_inner or not self._oldest:
            return UNTOLD
        return self._end - self._oldest - len(reading.nodes)

    def note_written(self, func: Callable[..., Any], known: Record, reading: Reading) -> None:
        """Learn of what the function, and those recorded inside it, gave a history, though nobody watched."""
        if not self.is_watched and self._oldest:
            num_beside = self.num_beside(reading)
            thread.leave_written(known.written(func, reading, num_beside, self._oldest))
        if not (self.is_outermost and thread.written):
            return
        written = thread.take_written()
        if not self.is_watched:  # else it was seen
            self._watcher = Watcher(self.name, 0)
            self._watcher.writes.written = {id(t): t for t in written}
            reading.tensors = map_saved(self._apart, reading.tensors)

    def forget(self, written: Iterable[Tensor]) -> None:
        """Take the history from what was written to, when nobody is left who may read it."""
        if self.is_outermost:
            forget_history(written)
        else:  # a run around may go without a watcher
            thread.leave_written(written)

    def forget_unread(self, func: Callable[..., Any], is_again: bool) -> None:
        """Take the history from what the function wrote to, though nobody watched, before it failed or is run again."""
        found = [] if self.is_watched or not self._oldest else written_by(func, self._oldest)
        if is_again:
            forget_history(found)
        else:
            self.forget(found)
        if self.is_outermost:
            forget_history(thread.take_written())

    def reading(self, outputs: Sequence[Any]) -> Reading:
        """Read the graph that leads to ``outputs``."""
        with torch._C.DisableTorchFunction():  # modes around this run would see each attribute
            if self.batch is None:
                return self._read(ends_of(outputs))
            with without_functorch():
                return self._read(ends_of(outputs))

    def _read(self, ends: list[End]) -> Reading:
        among = (self._starts, ends, self._oldest)
        if self._scripts:
            scripted = self._by_script(ends)
            if scripted is not None:
                return scripted
        self._ends = ends
        writes = self._watcher.writes
        old: Restored | None = None
        if gives_history(writes.kept):
            old = restored(nodes_between(*among), writes.kept, writes.originals)
        try:
            found = self._found(*among, writes.geometries) if not old else None
        except RuntimeError as error:
            if not self.is_watched:
                raise Unwatched from error
            if not writes.kept or (expected_version(error) is None and not is_refusal(error)):
                raise
            old = restored(nodes_between(*among), writes.kept, writes.originals)
            found = None
        if found is None:
            self._watcher.has_acted = True
            self._ends = None
            found = read(*among, writes.geometries, old)
        if self.is_outermost and writes.written:
            found.tensors = map_saved(self._apart, found.tensors)
        self._bring_down(found)
        if found.sign() and self.is_watched:
            # Calls known by heart do not look for such zeros
            self._watcher.has_acted = True
        if found.joined:
            found.ask()
        watcher = self._watcher
        if watcher.nodes and RemovableHandle.next_id != watcher.num_hooks:
            if self.batch is not None:
                raise AskedError(watcher)  # hooks expect members of the batch
            hooks.note_nodes(found, watcher.nodes)
        if watcher.hooks:
            hooks.note(found, watcher.hooks)
        if calling_back and not calling_back.isdisjoint(found.types):
            found.calls_back = True
        distributed_tensors.note(found, self.inputs)
        return found

    def _by_script(self, ends: list[End]) -> Reading | None:
        """Read the graph by a script, if one fits."""
        watcher, is_watched = self._watcher, self.is_watched
        if is_watched and (watcher.hooks or watcher.nodes or in_backward_pass()):
            return None
        among = (self._starts, ends, self._oldest, watcher.writes.geometries)
        is_in_level = self._level is not None
        for place, script in enumerate(self._scripts):
            if script.is_in_level is not is_in_level:
                continue
            try:
                found = script.read(*among, self._read_once if is_watched else None)
            except RuntimeError as error:
                if is_watched:
                    return None  # what was overwritten has to be restored
                raise Unwatched from error
            if found is None:
                continue
            if has_zeros_without_memory(found.tensors):
                return None  # which are to get memory
            if self.is_outermost and watcher.writes.written:
                found.tensors = map_saved(self._apart, found.tensors)
            self._bring_down(found)
            if is_in_level and aliases(found.all_saved()) != found.aliases:
                continue
            if place:  # in one step, as other threads read the list, too
                self._scripts[:] = [script, *(s for s in self._scripts if s is not script)]
            return found
        return None

    def _bring_down(self, found: Reading) -> None:
        """Take what nodes saved to the caller's level, and note whether anything of the caller's is followed."""
        level = self._level
        if level is not None:
            found.tensors = map_saved(lambda t: unwrap_for_grad(t, level), found.tensors)
            found.is_followed = True
            found.followed = tuple(t.requires_grad for t in found.all_saved())
        elif not found.is_followed:
            for x in self.inputs:
                if x.requires_grad:
                    found.is_followed = True

    def script(self, reading: Reading) -> Script | None:
        """Return a script for graphs like the one that was read last, None where there can be none."""
        if self._ends is None:
            return None
        return script_of(reading, self._starts, self._ends, self._oldest, self._level is not None)

    def _found(self, *arguments: Any) -> Reading:
        if in_backward_pass():
            return in_pass_of_its_own(functools.partial(read, *arguments))
        if not self.is_watched:
            return read(*arguments)
        return self._read_once(functools.partial(read, *arguments))

    def _read_once(self, reading: Callable[[], T]) -> T:
        try:
            return read_at_once(reading)
        except RecomputingError:
            self._watcher.has_acted = True
        try:
            if self._level is None:
                return in_pass_of_its_own(functools.partial(self._watching, reading))
            cause = None
        except RuntimeError as error:
            if self.batch is None:
                raise
            cause = error
        raise UnsupportedError(
            f"{self.name}: torch.utils.checkpoint below a transform of torch.func: got values that are computed again "
            "out of its sight, expected saved ones. Use pushforward's transform outside, or leave the checkpoint out."
        ) from cause

    def _watching(self, reading: Callable[[], T]) -> T:
        """Return ``reading()``; what it computes again is done as it was done in the run."""
        with torch._C._EnableTorchFunction(), self._watcher:
            return reading()

    def _apart(self, tensor: Tensor) -> Tensor:
        """Return a tensor whose history stays when the one that the function wrote to is detached."""
        return tensor.view_as(tensor) if id(tensor) in self._watcher.writes.written else tensor
