"""Every private name of PyTorch that this package leans on; tests/tape/test_private_torch.py pins each."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch.utils._python_dispatch import _disable_current_modes

_functorch: Any = torch._C._functorch

_DEAD_LEVEL = -2  # what PyTorch says of a wrapper whose transform is over; -1 of a plain tensor

Node = Any  # torch.autograd.graph.Node

set_grad_enabled = torch._C._set_grad_enabled
functorch_level = _functorch.maybe_current_level
num_function_modes = torch._C._len_torch_function_stack
push_grad_level = _functorch._grad_increment_nesting
pop_grad_level = _functorch._grad_decrement_nesting
wrap_for_grad = _functorch._wrap_for_grad
unwrap_for_grad = _functorch._unwrap_for_grad
is_functorch_wrapped = _functorch.is_functorch_wrapped_tensor


def start_requiring_grad(tensor: Tensor) -> Tensor:
    """Call ``requires_grad_`` also where a transform of ``torch.func`` forbids that to its function."""
    allowed = _functorch.get_inplace_requires_grad_allowed()
    _functorch.set_inplace_requires_grad_allowed(True)
    try:
        return tensor.requires_grad_()
    finally:
        _functorch.set_inplace_requires_grad_allowed(allowed)


make_wrapper = torch.Tensor._make_wrapper_subclass

AccumulateGrad: Any = type(
    torch.zeros((), requires_grad=True).clone().grad_fn.next_functions[0][0]  # type: ignore[union-attr]
)

_FUNCTORCH_KEYS = (
    torch._C.DispatchKeySet(DispatchKey.FuncTorchDynamicLayerFrontMode)
    | torch._C.DispatchKeySet(DispatchKey.FuncTorchDynamicLayerBackMode)
    | torch._C.DispatchKeySet(DispatchKey.FuncTorchGradWrapper)
    | torch._C.DispatchKeySet(DispatchKey.FuncTorchBatched)
)


@contextlib.contextmanager
def bare() -> Iterator[None]:
    """Let plain tensors pass by autograd, the transforms of ``torch.func`` and all modes."""
    modes = (
        _disable_current_modes()
        if torch._C._len_torch_dispatch_stack()
        else contextlib.nullcontext()
    )
    with (
        torch._C.DisableTorchFunction(),
        torch._C._AutoDispatchBelowAutograd(),
        torch._C._ExcludeDispatchKeyGuard(_FUNCTORCH_KEYS),
        modes,
    ):
        yield


def sequence_number(node: Node) -> int:
    """Return when a node was made, counted within its thread."""
    number: int = node._sequence_nr()
    return number


def output_metadata(node: Node) -> Any:
    """Return shape, dtype and device of every output of the operator that a node belongs to."""
    return node._input_metadata


def is_autocasting() -> bool:
    """Tell whether autocast is on for any device."""
    return bool(torch._C._is_any_autocast_enabled())


def outlives_level(tensor: Tensor) -> bool:
    """Tell whether a tensor belongs to a transform of ``torch.func`` that is over: nothing can be done with it."""
    level: int = _functorch.maybe_get_level(tensor)
    return level == _DEAD_LEVEL or level > (functorch_level() or 0)


def is_wrapped(tensor: Tensor) -> bool:
    """Tell whether a tensor is a wrapper of a transform of ``torch.func``."""
    return bool(is_functorch_wrapped(tensor))


class _Eagerly:
    """While a recording runs, functions made by ``torch.compile`` run as they were written.

    Dynamo's stance belongs to the process, so recordings in several threads are counted. It is set as
    ``torch.compiler.set_stance`` sets it, which takes 7 microseconds more.
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


def has_dynamo() -> bool:
    """Tell whether anything was compiled in this process."""
    return "torch._dynamo.eval_frame" in sys.modules
