"""Running the caller's function under autograd, and leaving the thread as it was found."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from pushforward.errors import RandomnessError, UnsupportedError
from pushforward.linear.differentiated import has_duals
from pushforward.tape.batch import Batch, current_batch
from pushforward.tape.batch_watching import BatchWatcher
from pushforward.tape.copies import detached, tracked_copy, write_back
from pushforward.tape.depth import check_depth, thread
from pushforward.tape.graph_reader import GraphReader
from pushforward.tape.interrupts import finish_contexts, function_modes, put_modes_back
from pushforward.tape.layouts import lay_out, with_surroundings
from pushforward.tape.modules import tensors_of
from pushforward.tape.overwritten import Cycle, cycles, end_cycles
from pushforward.tape.private_functorch import (
    batch_axis_at,
    functorch_level,
    level_of,
    push_grad_level,
    unwrap_for_grad,
    without_functorch,
    wrap_for_grad,
)
from pushforward.tape.private_torch import (
    InferenceMode,
    NoSavingHooks,
    compiled_functions_run_eagerly,
    has_dynamo,
    next_sequence_number,
    sequence_number,
    set_grad_enabled,
)
from pushforward.tape.randomness import generator_state, has_drawn, put_back
from pushforward.tape.reader import Reading, oldest_of, reaches_others
from pushforward.tape.scripts import End, Script
from pushforward.tape.sparse_tensors import with_real_ones
from pushforward.tape.trust import AskedError, RefusedError, Unwatched, is_refusal
from pushforward.tape.watching import Watcher
from pushforward.trees import map_tensors


class Run(GraphReader):
    """One run of a function, from the inputs it is called with to the graph that it left.

    Use it in a ``with`` statement: inside it the function is called on ``tracked``, and its outputs are read.
    """

    __slots__ = (
        "_count", "_depth", "_given", "_hiding", "_hooks", "_inference", "_is_eager", "_is_hidden", "_keeps_layout",
        "_may_repeat", "_modes", "_outer_level", "_random_state", "_randomness", "_recorded", "_versions", "grad_mode",
        "is_inference", "name", "shared", "tracked",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        inputs: Sequence[Tensor],
        randomness: str,
        takes_apart: bool = False,
        is_watched: bool = True,
        scripts: list[Script] | None = None,
        keeps_layout: bool = False,
        repeats: bool = False,
        may_share: bool = False,
    ) -> None:
        """Prepare.

        Args:
            name: The transform, for messages.
            inputs: The caller's tensors.
            randomness: ``'error'`` refuses what draws from the default generator.
            takes_apart: Whether a batch of ``torch.func.vmap`` that all ``inputs`` have may become an axis.
            is_watched: Whether a `Watcher` sees what the function calls.
            scripts: For graphs that the function left before; the one that fits comes first.
            keeps_layout: Whether copies lie in memory as the inputs do, among copies of what lies around those.
            repeats: Whether inputs without the batch get it, too, so that it can become an axis.
            may_share: Whether it becomes one though some inputs do not have it, and stay as they are.

        Raises:
            Unwatched: The function has to be watched, and was not; all is as before, but what it did outside PyTorch.
        """
        self.is_watched, self._scripts, self._keeps_layout = is_watched, scripts or [], keeps_layout
        self.batch: Batch | None = None
        self.shared: frozenset[int] = frozenset()  # the places of inputs without the batch
        if takes_apart:
            self.batch, self.shared = current_batch(inputs, repeats, may_share)
        self.name, self.inputs, self._randomness = name, inputs, randomness
        self._given = inputs
        self._may_repeat = takes_apart and not repeats and (not self.batch or bool(self.shared))
        self.grad_mode = torch.is_grad_enabled()
        self.is_inference = torch.is_inference_mode_enabled()
        self._depth, self._outer_level, self._modes = (
            thread.depth, functorch_level(), function_modes(),
        )  # fmt: skip
        self.is_outermost = not self._depth
        self._level: int | None = None
        self._is_eager, self._is_hidden, self._oldest = False, False, 0
        self._hooks: NoSavingHooks | None = None
        self._inference: Any = None
        self._hiding: Any = None
        self._watcher: Any = None
        self._ends: list[End] | None = None

    def __enter__(self) -> Run:
        """Start to record."""
        try:
            self._start()
        except BaseException as error:
            self.leave(error)
            raise
        return self

    def _start(self) -> None:
        if self._modes:
            self._hide()
        self._hooks = NoSavingHooks().__enter__()  # what is saved here is read at once
        has_state = self._randomness == "error" or not self.is_watched
        if self.batch is not None:
            has_state = self.batch.can_draw  # if not, ``vmap`` refuses
        self._random_state = generator_state(self.inputs) if has_state else None
        thread.depth = self._depth + 1
        self._count = thread.count = thread.count + 1
        if self.is_inference:
            self._inference = InferenceMode(False)
            self._inference.__enter__()
        set_grad_enabled(True)
        if self.batch is None and self._outer_level is not None:
            self._level = push_grad_level()
        if has_dynamo():
            self._is_eager = True
            compiled_functions_run_eagerly.begin(id(self))
        tracked = self._tracked()
        self._recorded = tracked
        self._starts = [x.grad_fn for x in tracked]
        self._versions = [x._version for x in tracked]
        self._oldest = oldest_of(tracked, self._starts)
        self._watcher = self._new_watcher() if self.is_watched else _NOBODY
        if self.is_watched:
            self._watcher.oldest = self._oldest
            copies = self.tracked if self.batch is None else tracked
            self._watcher.inputs = list(zip(copies, self.inputs, strict=True))

    def _hide(self) -> None:
        """Keep modes of recordings around this one from seeing, and counting, what this one does by itself."""
        plain = (Tensor, torch.nn.Parameter)
        self._is_hidden = all(type(x) in plain for x in self.inputs)
        if self._is_hidden:
            self._hiding = torch._C.DisableTorchFunction()
            self._hiding.__enter__()

    def _new_watcher(self) -> Watcher:
        if self.batch is None:
            return Watcher(self.name, self._level or 0)
        has_repeated = not self.shared and bool(self.batch.shared(self._given))
        return BatchWatcher(self.name, 0, has_repeated)

    def _tracked(self) -> list[Tensor]:
        """Make the copies that the function is called on; return them as autograd sees them."""
        if self.batch is None:
            self.tracked = self._copies()
            return self.tracked
        self.inputs = self.batch.physical_but(self.shared, self.inputs)
        with without_functorch():
            tracked = self._copies()
        self.tracked = self.batch.wrapped_but(self.shared, tracked)
        return tracked

    def _copies(self) -> list[Tensor]:
        copies = [tracked_copy(x, self._level) for x in self.inputs]
        if self._keeps_layout:
            for copy, x in zip(copies, self.inputs, strict=True):
                lay_out(copy, x)
        return copies

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function; modes around this run see what it does, but nothing of the run itself."""
        if self._level is not None and self._level == functorch_level():
            # As `torch.func` does: what is laid out anew is to be of this level.
            args, kwargs = map_tensors(self._in_level, (args, kwargs))
        if self._is_hidden:
            with torch._C._EnableTorchFunction():
                result = self._called(func, args, kwargs)
        else:
            result = self._called(func, args, kwargs)
        check_depth(self.name, self._depth)
        return result

    def _in_level(self, x: Tensor) -> Tensor:
        """Return a tensor among the arguments as one of the run's own level."""
        level: int = self._level or 0
        if level_of(x) >= level:
            return x
        wrapped: Tensor = wrap_for_grad(x, level)
        self._watcher.writes.reach(wrapped)
        return wrapped

    def _called(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.is_watched:
            try:
                with self._watcher:
                    result = func(*args, **kwargs)
            except RuntimeError as error:
                if self._may_repeat and is_refusal(error):
                    raise RefusedError(self._watcher) from error
                raise
            self._end = next_sequence_number()
            return with_real_ones(result) if self._watcher.has_sparse else result
        num_hooks = RemovableHandle.next_id
        try:
            result = func(*args, **kwargs)
        except RuntimeError as error:
            raise Unwatched from error  # with a watcher it works, or fails again
        if RemovableHandle.next_id != num_hooks:
            raise Unwatched
        self._end = next_sequence_number()
        return result

    def begin_again(self, func: Callable[..., Any]) -> None:
        """Learn that the function has run before, and did not get far enough to be read."""
        self._watcher.writes.run_again(tensors_of(func))

    def check_writes(self) -> None:
        """Refuse a second run that repeated writes to the caller's tensors, and undo those.

        Raises:
            UnsupportedError: There were some.
        """
        if self._watcher.writes.take_back():
            raise UnsupportedError(
                f"{self.name}: the function did at this call what it had not done before (a backward pass, a hook, or "
                "overwriting what a derivative needs), and had to be run twice: got a write to a tensor from outside "
                "it, expected none. Call it again: it is watched now."
            )

    def is_meant_by(self, reason: BaseException) -> bool:
        """Tell whether it is this run that has to be made again."""
        return not isinstance(reason, AskedError) or reason.watcher is self._watcher

    @property
    def is_plain(self) -> bool:
        """Whether no transform of ``torch.func`` is around it."""
        return self._level is None and self.batch is None

    @property
    def has_inner(self) -> bool:
        """Whether other runs began while this one went on."""
        return bool(thread.count != self._count)

    def followed(self, leaves: list[Any]) -> list[Any]:
        """Return what the function returned, where that is a view of what was written to, with its history."""
        writes = self._watcher.writes
        return writes.fresh(leaves) if writes.has_views else leaves

    @property
    def is_quiet(self) -> bool:
        """Whether the function did nothing that has to be seen."""
        watcher, writes = self._watcher, self._watcher.writes
        has_hooked = watcher.num_hooks != RemovableHandle.next_id
        return not (watcher.has_acted or has_hooked or writes.has_helped or writes.kept)

    def __exit__(self, *exception: Any) -> None:
        """Put everything back."""
        unwritten: Sequence[tuple[Tensor, Tensor]] = ()
        error = exception[1]
        try:
            if error is not None:
                finish_contexts(error)
                is_signal = isinstance(error, _SIGNALS)
                unwritten = () if is_signal else self.written()
                if self._random_state is not None:
                    self._put_back(is_own=is_signal)
                end_cycles(self.cycles())
            self.forget(self._watcher.writes.written.values())
        finally:
            self.leave()
        write_back(unwritten)

    def leave(self, error: BaseException | None = None) -> None:
        """Put the thread back as it was, after an ``error`` once more: an interrupt may come while that is done."""
        has_outer_left = thread.depth < self._depth  # and put back what was before both
        try:
            if error is not None:
                finish_contexts(error)
            if not has_outer_left:
                thread.depth = self._depth
                put_modes_back(self._modes, self._outer_level)
        finally:
            try:
                if self._is_eager:
                    compiled_functions_run_eagerly.end(id(self))
                for entered in (self._inference, self._hiding, self._hooks):
                    if entered is not None:
                        entered.__exit__(None, None, None)
                self._inference = self._hiding = self._hooks = None
            finally:
                if not has_outer_left:
                    set_grad_enabled(self.grad_mode)

    def check_randomness(self) -> None:
        """Refuse random numbers, and put the generator back."""
        if self._randomness == "error" and self._put_back():
            raise RandomnessError(
                f"{self.name}: vmap: called random operation while in randomness error mode. Use "
                "randomness='same' or randomness='different', or draw the numbers outside the function."
            )

    def _put_back(self, is_own: bool = False) -> bool:
        """Put the generators back, and tell whether the function drew from them; ``is_own``: no other thread did."""
        if (before := self._random_state) is None or not has_drawn(before, self.inputs):
            return False
        if not is_own and threading.active_count() > 1 and not self._watcher.has_drawn:
            if not self.is_watched:
                raise Unwatched  # to see who drew
            return False  # another thread drew
        put_back(before, self.inputs)
        return True

    def physical(self, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the function's outputs as autograd sees them."""
        return leaves if self.batch is None else [self.batch.physical(y) for y in leaves]

    def outputs(self, leaves: Sequence[Tensor], reading: Reading) -> list[Tensor]:
        """Return the function's outputs as the caller may have them."""
        is_kept = self.grad_mode and reading.is_followed
        is_dual = has_duals()
        is_plain = not (is_kept or is_dual or self._level)
        if is_plain and len(leaves) == 1 and reading.outputs[0][0] >= 0:
            return [leaves[0].detach()]  # nearly always
        if self._level is not None or is_dual or (is_kept and len(leaves) > 1):
            return [self.handed_over(leaf) for leaf in leaves]
        return [
            self.handed_over(leaf)
            if number < 0
            else self._apart(leaf)
            if is_kept
            else leaf.detach()
            for leaf, (number, _) in zip(leaves, reading.outputs, strict=True)
        ]

    def handed_over(self, tensor: Any) -> Any:
        """Return a tensor that the function returned as the caller may have it."""
        if not isinstance(tensor, Tensor):
            return tensor
        if self._level is not None:
            return unwrap_for_grad(tensor, self._level)
        if self.batch is not None and batch_axis_at(tensor, self.batch.level) is not None:
            physical = self.batch.physical(tensor)
            with without_functorch():
                kept = self._unwrapped_over(physical)
            return tensor if kept is physical else self.batch.wrapped(kept)
        return self._unwrapped_over(tensor)

    def _unwrapped_over(self, tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        node = tensor.grad_fn
        if node is None or (node not in self._starts and sequence_number(node) < self._oldest):
            return tensor  # the caller's own
        if self._is_followed(node):
            return self._apart(tensor)
        return detached(tensor)

    def _is_followed(self, node: Any) -> bool:
        """Tell whether anybody may go back over the history that ends with ``node``."""
        return self.grad_mode and (
            any(x.requires_grad for x in self.inputs)
            or reaches_others(node, self._starts, self._oldest)
        )

    def cycles(self) -> list[Cycle]:
        """Return what is to forget its history when all is done, so that it is let go of."""
        kept = self._watcher.writes.kept
        if not kept or self._level is not None:
            return []
        return [(t, views) for t, views in cycles(kept) if not self._is_followed(t.grad_fn)]

    def written(self) -> list[tuple[Tensor, Tensor]]:
        """Return the inputs that the function wrote to, each with what is to be written to the caller's tensor."""
        found: list[tuple[Tensor, Tensor]] = []
        for i, recorded in enumerate(self._recorded):
            if recorded._version != self._versions[i]:
                x, value = self._given[i], self.handed_over(self.tracked[i])
                is_laid_out = self._keeps_layout and self.batch is None
                found += with_surroundings(x, value) if is_laid_out else [(x, value)]
        return found


_SIGNALS = (AskedError, Unwatched)  # after which the function is run again
_NOBODY = Watcher("", 0)  # of functions that are not watched: sees nothing
