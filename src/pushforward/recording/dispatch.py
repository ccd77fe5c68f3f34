"""The dispatcher: bare around a call to be recorded, restored around the rules. Private torch calls live here."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch._C import DispatchKey
from torch.utils._python_dispatch import _disable_current_modes

from pushforward.errors import UnsupportedError

_FUNCTORCH_KEYS = (
    DispatchKey.FuncTorchDynamicLayerFrontMode,
    DispatchKey.FuncTorchDynamicLayerBackMode,
    DispatchKey.FuncTorchGradWrapper,
    DispatchKey.FuncTorchBatched,
)


def _key_set(first: DispatchKey, *others: DispatchKey) -> Any:
    keys = torch._C.DispatchKeySet(first)
    for key in others:
        keys = keys | torch._C.DispatchKeySet(key)
    return keys


_FUNCTORCH_KEY_SET = _key_set(*_FUNCTORCH_KEYS)
_PYTHON_KEY_SET = _key_set(DispatchKey.Python, DispatchKey.PythonTLSSnapshot)
_PLAIN = {torch.Tensor, torch.nn.Parameter}
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_NOTHING = contextlib.nullcontext()


class EntryState:
    """The dispatcher's state where a transform was entered: that in which its rules run."""

    __slots__ = (
        "_exclude",
        "_include",
        "_layers",
        "_modes",
        "busy",
        "functorch_level",
        "grad_mode",
        "is_inference",
        "is_plain",
    )

    def __init__(self) -> None:
        """Save the state of the current thread."""
        self.busy = 0  # how many rules are running: what they do is not to be recorded
        self._include = torch._C._dispatch_tls_local_include_set()
        self._exclude = torch._C._dispatch_tls_local_exclude_set()
        self.functorch_level = torch._C._functorch.maybe_current_level()
        self._layers = [] if self.functorch_level is None else _layers_here()
        self.grad_mode = torch.is_grad_enabled()  # whether the caller records for autograd
        self.is_inference = torch.is_inference_mode_enabled()
        self._modes = (
            torch.utils._python_dispatch._get_current_dispatch_mode_stack()
            if torch._C._len_torch_dispatch_stack()
            else []
        )
        # Neither a transform of torch.func nor a mode is on.
        self.is_plain = self.functorch_level is None and not self._modes

    def is_inside_functorch(self) -> bool:
        """Tell whether the function has entered a transform of ``torch.func`` since."""
        level: Any = torch._C._functorch.maybe_current_level()
        return bool(level != self.functorch_level)

    @contextlib.contextmanager
    def restored(self, cut: bool = False) -> Iterator[None]:
        """Run what is inside as the caller would: under ``no_grad`` if the function's call is (``cut``)."""
        grad_mode = torch.is_grad_enabled()
        self.busy += 1
        with (
            _layers_set(self._layers) if self.is_inside_functorch() else _NOTHING,
            torch._C._ForceDispatchKeyGuard(self._include, self._exclude),
            torch._C._EnableTorchFunction(),
            _modes_pushed(self._modes),
        ):
            torch._C._set_grad_enabled(self.grad_mode and not cut)
            try:
                yield
            finally:
                self.busy -= 1
                torch._C._set_grad_enabled(grad_mode)


def _layers_here() -> list[Any]:
    """Return the active transforms of ``torch.func``, outermost first."""
    with torch._C._PreserveDispatchKeyGuard():
        layers = _pop_layers()
        _push_layers(layers)
    return layers


def _pop_layers() -> list[Any]:
    layers: list[Any] = []
    while torch._C._functorch.maybe_current_level() is not None:
        layers.append(torch._C._functorch.pop_dynamic_layer_stack())
    return layers[::-1]


def _push_layers(layers: list[Any]) -> None:
    for layer in layers:
        torch._C._functorch.push_dynamic_layer_stack(layer)


@contextlib.contextmanager
def _layers_set(layers: list[Any]) -> Iterator[None]:
    """Make ``layers`` the active transforms of ``torch.func``.

    By the time an operator inside an inner transform reaches ``__torch_dispatch__``, ``torch.func`` has taken every
    layer off its stack, the caller's too; and another thread starts without any.
    """
    with torch._C._PreserveDispatchKeyGuard():  # pushing and popping change the keys
        here = _pop_layers()
        _push_layers(layers)
        try:
            yield
        finally:
            _pop_layers()
            _push_layers(here)


def uncover(tensor: torch.Tensor, entry: EntryState) -> torch.Tensor:
    """Return what ``tensor`` wraps at the caller's levels of ``torch.func``.

    An operator inside an inner transform passes through the caller's levels too, where the output is wrapped once more.
    The wrapper must not carry a derivative of its own: it would be lost.
    """
    inner = tensor
    while torch._C._functorch.is_functorch_wrapped_tensor(inner):
        level = torch._C._functorch.maybe_get_level(inner)
        if level > (entry.functorch_level or 0):
            return tensor
        if type(torch._C._functorch.get_unwrapped(inner)) is not torch.Tensor and (
            torch._C._functorch.is_batchedtensor(inner)
            or inner.requires_grad
            or _has_tangent(inner, entry)
        ):
            raise UnsupportedError(
                "a transform of torch.func inside the function used a captured tensor that an outer transform of "
                "torch.func follows: expected a transform of pushforward in between. Pass that tensor to the function "
                "as an argument, or use pushforward's transform for the inner one."
            )
        inner = torch._C._functorch.get_unwrapped(inner)
    return inner if type(inner) is not torch.Tensor else tensor


def _has_tangent(tensor: torch.Tensor, entry: EntryState) -> bool:
    with entry.restored():
        return torch._VF._unpack_dual(tensor, level=0)[1] is not None


@contextlib.contextmanager
def bare() -> Iterator[None]:
    """Let composite functions fall apart into primitives that reach ``__torch_dispatch__`` untouched."""
    with (
        torch._C.DisableTorchFunctionSubclass(),
        torch._C._AutoDispatchBelowAutograd(),
        torch._C._ExcludeDispatchKeyGuard(_FUNCTORCH_KEY_SET),
        _modes_disabled(),
    ):
        yield


@contextlib.contextmanager
def below_torch_function() -> Iterator[None]:
    """Call past ``__torch_function__`` only: autograd and ``torch.func`` still see the tracers."""
    with torch._C.DisableTorchFunctionSubclass():
        yield


@contextlib.contextmanager
def _modes_disabled() -> Iterator[None]:
    if torch._C._len_torch_dispatch_stack():
        with _disable_current_modes():
            yield
    else:
        yield


@contextlib.contextmanager
def _modes_pushed(modes: list[Any]) -> Iterator[None]:
    if not modes or torch._C._len_torch_dispatch_stack():
        yield
        return
    with contextlib.ExitStack() as stack:
        for mode in modes:
            torch.utils._python_dispatch._push_mode(mode)
            stack.callback(torch.utils._python_dispatch._pop_mode, _mode_key(mode))
        yield


def _mode_key(mode: Any) -> Any:
    return getattr(mode, "_mode_key", None)


def change_metadata(tensor: torch.Tensor, like: torch.Tensor) -> None:
    """Give the wrapper ``tensor`` the sizes and strides of ``like``, below every key that would record it."""
    with (
        torch._C.DisableTorchFunction(),
        torch._C._AutoDispatchBelowAutograd(),
        torch._C._ExcludeDispatchKeyGuard(_FUNCTORCH_KEY_SET | _PYTHON_KEY_SET),
    ):
        torch.ops.aten.as_strided_.default(tensor, like.shape, like.stride(), 0)


def is_autocasting() -> bool:
    """Tell whether autocast is on for any device."""
    return bool(torch._C._is_any_autocast_enabled())


def has_version(tensor: torch.Tensor) -> bool:
    """Tell whether in-place writes to ``tensor`` can be noticed later."""
    return type(tensor) in _PLAIN and not (tensor.is_inference() or _is_wrapped(tensor))


def needs_tracer(tensor: torch.Tensor) -> bool:
    """Tell whether operators on ``tensor`` alone must run in the caller's state, not in the bare one."""
    return tensor.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(tensor)


class _Eagerly:
    """While a recording runs, functions made by ``torch.compile`` run as they were written.

    Dynamo would trace into the tracers. Its stance belongs to the process, so recordings in several threads are
    counted. It is set as ``torch.compiler.set_stance`` sets it, which takes 7 microseconds more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._before: Any = None
        self._eager: Any = None

    def __enter__(self) -> None:
        eval_frame: Any = sys.modules["torch._dynamo.eval_frame"]
        with self._lock:
            if not self._count:
                if self._eager is None:
                    self._eager = eval_frame.DynamoStance("force_eager")
                self._before, eval_frame._stance = eval_frame._stance, self._eager
            self._count += 1

    def __exit__(self, *exception: object) -> None:
        eval_frame: Any = sys.modules["torch._dynamo.eval_frame"]
        with self._lock:
            self._count -= 1
            if not self._count:
                eval_frame._stance = self._before


compiled_functions_run_eagerly = _Eagerly()
