"""One recording from start to end: tracers for the inputs, the function's run, its outputs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pushforward.recording.dispatch import EntryState, bare, compiled_functions_run_eagerly
from pushforward.recording.recorder import Recorder
from pushforward.recording.tracer import Tracer, map_tensors


def _generator_state(entry: EntryState) -> bytes:
    """Return the CPU generator's state as bytes: 4 microseconds less to compare than two tensors."""
    if entry.is_plain:
        return torch.default_generator.get_state().numpy().tobytes()
    with bare():
        return torch.default_generator.get_state().numpy().tobytes()


def run(
    recorder: Recorder,
    function: Callable[[list[Tracer]], Any],
    inputs: Sequence[Tensor],
    payloads: Sequence[Any],
) -> Any:
    """Call ``function`` on tracers of ``inputs``, and leave the thread as it was found.

    Writes to the caller's tensors are carried out at the end, also when the function raised.
    """
    if recorder.randomness != "error":
        return _record(recorder, function, inputs, payloads)
    before = _generator_state(recorder.entry)
    result = _record(recorder, function, inputs, payloads)
    if _generator_state(recorder.entry) == before:
        return result
    if threading.active_count() > 1 and not recorder.has_written:
        # It may have been another thread that drew: ask again, with every operator watched.
        with RefuseRandom(recorder):
            return _record(recorder, function, inputs, payloads)
    torch.default_generator.set_state(torch.frombuffer(bytearray(before), dtype=torch.uint8))
    recorder.refuse_random("on tensors that are not differentiated")
    return result


def _record(
    recorder: Recorder,
    function: Callable[[list[Tracer]], Any],
    inputs: Sequence[Tensor],
    payloads: Sequence[Any],
) -> Any:
    if "torch._dynamo.eval_frame" in sys.modules:
        with compiled_functions_run_eagerly:
            return _call(recorder, function, inputs, payloads)
    return _call(recorder, function, inputs, payloads)


def _call(
    recorder: Recorder,
    function: Callable[[list[Tracer]], Any],
    inputs: Sequence[Tensor],
    payloads: Sequence[Any],
) -> Any:
    entry = recorder.entry
    tracers = list(map(recorder.trace, inputs, payloads))
    if not entry.grad_mode:
        torch._C._set_grad_enabled(True)
    try:
        result = function(tracers)
        if recorder.has_captured:
            result = map_tensors(result, recorder.captured.lookup)
    finally:
        if torch.is_grad_enabled() is not entry.grad_mode:
            torch._C._set_grad_enabled(entry.grad_mode)
        recorder.finish()
    return result


class RefuseRandom(TorchDispatchMode):
    """Raises at the first random operator on plain tensors; those on tracers are refused as they are."""

    def __init__(self, recorder: Recorder) -> None:
        """Serve ``recorder``."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Answer no: PyTorch would import its compiler at the first operator, which takes two seconds."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Look at the operator's tag."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._recorder.refuse_random(str(func))
        return func(*args, **(kwargs or {}))
