"""One recording from start to end: tracers for the inputs, the function's run, its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import RandomnessError
from pushforward.recording.dispatch import bare, is_mode_active
from pushforward.recording.recorder import Recorder
from pushforward.recording.tracer import Tracer, map_tensors


def _generator_state() -> bytes:
    """Return the CPU generator's state as bytes: 4 microseconds less to compare than two tensors."""
    if torch._C._functorch.maybe_current_level() is None and not is_mode_active():
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
    tracers = [recorder.trace(x, payload) for x, payload in zip(inputs, payloads)]  # noqa: B905
    entry = recorder.entry
    state = _generator_state() if recorder.randomness == "error" else None
    if not entry.grad_mode:
        torch._C._set_grad_enabled(True)
    try:
        result = function(tracers)
        if recorder.captured.is_used:
            result = map_tensors(result, recorder.captured.lookup)
    finally:
        if torch.is_grad_enabled() is not entry.grad_mode:
            torch._C._set_grad_enabled(entry.grad_mode)
        if recorder.captured.is_used:
            recorder.captured.leave()
        recorder.finish()
    if state is not None:
        _check_no_draw(recorder, state)
    return result


def _check_no_draw(recorder: Recorder, before: bytes) -> None:
    """Refuse draws that no tracer saw (``torch.rand(3)``), and undo them."""
    if _generator_state() == before:
        return
    torch.default_generator.set_state(torch.frombuffer(bytearray(before), dtype=torch.uint8))
    raise RandomnessError(
        f"{recorder.name}: vmap: called random operation while in randomness error mode. Use randomness='same' or "
        "randomness='different', or draw the numbers outside the function."
    )
