"""Running the caller's function under autograd, and leaving the thread as it was found."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pushforward.errors import RandomnessError
from pushforward.tape.private_torch import (
    Node,
    compiled_functions_run_eagerly,
    functorch_level,
    has_dynamo,
    outlives_level,
    pop_grad_level,
    push_grad_level,
    sequence_number,
    set_grad_enabled,
    start_requiring_grad,
    unwrap_for_grad,
    without_functorch,
    wrap_for_grad,
)
from pushforward.tape.reader import Reading, map_saved, reaches_others, read, sign_tensors
from pushforward.tape.watching import Watcher

_thread = threading.local()


class Run:
    """One run of a function, from the inputs it is called with to the graph that it left.

    Use it in a ``with`` statement: inside it the function is called on ``tracked``, and its outputs are read.
    """

    __slots__ = (
        "_is_eager", "_level", "_oldest", "_random_state", "_randomness", "_starts", "_versions", "_watcher",
        "grad_mode", "inputs", "is_outermost", "is_inference", "name", "tracked", "_inference",
    )  # fmt: skip

    def __init__(self, name: str, inputs: Sequence[Tensor], randomness: str) -> None:
        """Prepare.

        Args:
            name: The transform, for messages.
            inputs: The caller's tensors.
            randomness: ``'error'`` refuses what draws from the default generator.
        """
        self.name, self.inputs, self._randomness = name, inputs, randomness
        self.grad_mode = torch.is_grad_enabled()
        self.is_inference = torch.is_inference_mode_enabled()
        self._level: int | None = None
        self._is_eager = False
        self._watcher: Any = None

    def __enter__(self) -> Run:
        """Start to record."""
        self._random_state = (
            _generator_state() if self._randomness == "error" else None
        )
        depth = getattr(_thread, "depth", 0)
        self.is_outermost = not depth
        _thread.depth = depth + 1
        self._inference = torch.inference_mode(False) if self.is_inference else None
        if self._inference is not None:
            self._inference.__enter__()
        set_grad_enabled(True)
        if functorch_level() is not None:
            self._level = push_grad_level()
        if has_dynamo():
            self._is_eager = True
            compiled_functions_run_eagerly.__enter__()
        try:
            self.tracked = [_tracked(x, self._level) for x in self.inputs]
        except BaseException:
            self.__exit__()
            raise
        self._starts = [x.grad_fn for x in self.tracked]
        self._versions = [x._version for x in self.tracked]
        self._oldest = _oldest(self.tracked, self._starts)
        self._watcher = Watcher(self.name)
        return self

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, watched."""
        with self._watcher:
            return func(*args, **kwargs)

    def __exit__(self, *exception: object) -> None:
        """Put everything back."""
        watcher = self._watcher
        if watcher is not None and self.is_outermost and watcher.written:
            _forget_history(watcher.written.values())
        if self._is_eager:
            compiled_functions_run_eagerly.__exit__()
        if self._level is not None:
            pop_grad_level()
        set_grad_enabled(self.grad_mode)
        if self._inference is not None:
            self._inference.__exit__(None, None, None)
        _thread.depth -= 1

    def check_randomness(self) -> None:
        """Refuse random numbers, and put the generator back."""
        before = self._random_state
        if before is None or before == _generator_state():
            return
        torch.default_generator.set_state(torch.frombuffer(bytearray(before), dtype=torch.uint8))
        raise RandomnessError(
            f"{self.name}: vmap: called random operation while in randomness error mode. Use "
            "randomness='same' or randomness='different', or draw the numbers outside the function."
        )

    def reading(self, outputs: Sequence[Any]) -> Reading:
        """Read the graph that leads to ``outputs``."""
        ends = [
            (y.grad_fn, y.output_nr) if isinstance(y, Tensor) and y.requires_grad else (None, 0)
            for y in outputs
        ]
        with torch._C.DisableTorchFunction():  # modes of recordings around this one would see each attribute
            found = self._read(ends)
        return found

    def _read(self, ends: list[tuple[Node | None, int]]) -> Reading:
        found = read(self._starts, ends, self._oldest, self._watcher.geometries)
        if self.is_outermost and self._watcher.written:
            found.tensors = map_saved(self._apart, found.tensors)
        if self._level is not None:
            level = self._level
            found.tensors = map_saved(lambda t: unwrap_for_grad(t, level), found.tensors)
            found.is_followed = True
        elif not found.is_followed:
            found.is_followed = any(x.requires_grad for x in self.inputs)
        sign_tensors(found.tensors, found.signature)
        return found

    def outputs(self, leaves: Sequence[Tensor], reading: Reading) -> list[Tensor]:
        """Return the function's outputs as the caller may have them."""
        if self._level is not None or (len(leaves) > 1 and self.grad_mode and reading.is_followed):
            return [self.handed_over(leaf) for leaf in leaves]
        is_kept = self.grad_mode and reading.is_followed
        return [
            self.handed_over(leaf) if number < 0 else leaf if is_kept else leaf.detach()
            for leaf, (number, _) in zip(leaves, reading.outputs, strict=True)
        ]

    def handed_over(self, tensor: Any) -> Any:
        """Return a tensor that the function returned as the caller may have it."""
        if not isinstance(tensor, Tensor):
            return tensor
        if self._level is not None:
            return unwrap_for_grad(tensor, self._level)
        if not tensor.requires_grad:
            return tensor
        node = tensor.grad_fn
        if node is None or (node not in self._starts and sequence_number(node) < self._oldest):
            return tensor  # the caller's own
        if self.grad_mode and (
            any(x.requires_grad for x in self.inputs)
            or reaches_others(node, self._starts, self._oldest)
        ):
            return self._apart(tensor)
        return tensor.detach()

    def _apart(self, tensor: Tensor) -> Tensor:
        """Return a tensor whose history stays when the one that the function wrote to is detached."""
        return tensor.view_as(tensor) if id(tensor) in self._watcher.written else tensor

    def written(self) -> list[tuple[Tensor, Tensor]]:
        """Return the inputs that the function wrote to, each with what is to be written to the caller's tensor."""
        found = []
        for x, inner, version in zip(self.inputs, self.tracked, self._versions, strict=True):
            if inner._version != version:
                found.append((x, self.handed_over(inner)))
        return found


def _generator_state() -> bytes:
    """Return the CPU generator's state as bytes: less than half the time of comparing tensors."""
    with without_functorch() if functorch_level() is not None else contextlib.nullcontext():
        state: bytes = torch.default_generator.get_state().numpy().tobytes()
    return state


def _tracked(x: Tensor, level: int | None) -> Tensor:
    """Return a copy of ``x`` whose node is where the tape begins."""
    if level is not None:
        inner: Tensor = start_requiring_grad(wrap_for_grad(x, level))
    elif x.requires_grad:
        inner = x
    else:
        inner = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        if forward_ad._current_level >= 0:
            inner = _with_tangent(inner, x)
    return inner.clone()


def _with_tangent(inner: Tensor, x: Tensor) -> Tensor:
    tangent = forward_ad.unpack_dual(x).tangent
    return inner if tangent is None else forward_ad.make_dual(inner, tangent)


def _oldest(tracked: Sequence[Tensor], starts: Sequence[Node]) -> int:
    """Return the sequence number of the first node of the run; 0 where nodes may come from several threads."""
    if not starts or any(x.is_cuda for x in tracked):
        return 0
    return sequence_number(starts[0])


def _forget_history(tensors: Any) -> None:
    """Detach what had no history before the function wrote to it."""
    for tensor in tensors:
        if not outlives_level(tensor) and tensor.requires_grad and tensor.grad_fn is not None:
            tensor.detach_()
