"""The private names of ``torch.func``: levels, wrappers, batches; tests/tape/test_private_functorch.py pins each."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

_functorch: Any = torch._C._functorch

_DEAD_LEVEL = -2  # what PyTorch says of a wrapper whose transform is over; -1 of a plain tensor

allow_requiring_grad = _functorch.set_inplace_requires_grad_allowed
functorch_level = _functorch.maybe_current_level
push_grad_level = _functorch._grad_increment_nesting
wrap_for_grad = _functorch._wrap_for_grad
unwrap_for_grad = _functorch._unwrap_for_grad
is_wrapped: Callable[[Tensor], bool] = _functorch.is_functorch_wrapped_tensor
is_functionalized = _functorch.is_functionaltensor
unwrapped = _functorch.get_unwrapped
functorch_stack = _functorch.get_interpreter_stack
add_batch_axis = _functorch._add_batch_dim
level_of = _functorch.maybe_get_level  # negative of a tensor that is none of torch.func's wrappers

_VMAP = _functorch.TransformType.Vmap
_NO_RANDOMNESS = _functorch.RandomnessType.Error

_FUNCTORCH_KEY_LIST = (
    DispatchKey.FuncTorchDynamicLayerFrontMode,
    DispatchKey.FuncTorchDynamicLayerBackMode,
    DispatchKey.FuncTorchGradWrapper,
    DispatchKey.FuncTorchBatched,
)
FUNCTORCH_KEYS = functools.reduce(operator.or_, map(torch._C.DispatchKeySet, _FUNCTORCH_KEY_LIST))


def start_requiring_grad(tensor: Tensor) -> Tensor:
    """Call ``requires_grad_`` also where a transform of ``torch.func`` forbids that to its function."""
    allowed = _functorch.get_inplace_requires_grad_allowed()
    try:
        allow_requiring_grad(True)
        return tensor.requires_grad_()
    finally:
        allow_requiring_grad(allowed)


_LEVEL_ENDS: dict[Any, Callable[[], int]] = {
    _functorch.TransformType.Grad: _functorch._grad_decrement_nesting,
    _functorch.TransformType.Jvp: _functorch._jvp_decrement_nesting,
    _functorch.TransformType.Vmap: _functorch._vmap_decrement_nesting,
    _functorch.TransformType.Functionalize: _functorch._func_decrement_nesting,
}


def pop_levels_above(level: int) -> None:
    """End the transforms of ``torch.func`` above ``level``, by their own kinds: 2.11 knows no other way."""
    while (functorch_level() or 0) > level:
        _LEVEL_ENDS[_functorch.peek_interpreter_stack().key()]()


def outlives_level(tensor: Tensor) -> bool:
    """Tell whether a tensor belongs to a transform of ``torch.func`` that is over: nothing can be done with it."""
    level: int = _functorch.maybe_get_level(tensor)
    return level == _DEAD_LEVEL or level > (functorch_level() or 0)


def batch_axis(tensor: Tensor) -> int | None:
    """Return which axis of the tensor inside is the batch of a ``vmap``; None of a tensor that is not batched."""
    axis: int = _functorch.maybe_get_bdim(tensor)
    return axis if _functorch.is_batchedtensor(tensor) else None


def batch_axis_at(tensor: Tensor, level: int) -> int | None:
    """Return which axis of the physical tensor is the batch of a ``vmap``; None of a tensor that it does not batch."""
    if not _functorch.is_batchedtensor(tensor) or _functorch.maybe_get_level(tensor) != level:
        return None
    axis: int = _functorch.maybe_get_bdim(tensor)
    return axis


def with_inner(tensor: Tensor, func: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``func`` of the plain tensor that wrappers of ``torch.func`` hold, in such wrappers."""
    if not is_wrapped(tensor) or is_functionalized(tensor):
        return func(tensor)
    level = level_of(tensor)
    axis = batch_axis_at(tensor, level)
    inner = with_inner(unwrapped(tensor), func)
    made: Tensor = (
        wrap_for_grad(inner, level) if axis is None else add_batch_axis(inner, axis, level)
    )
    return made


def wrappers(tensor: Tensor) -> list[Tensor]:
    """Return the wrappers of ``torch.func`` around a plain tensor, from the outside."""
    found: list[Tensor] = []
    while is_wrapped(tensor):
        found.append(tensor)
        tensor = unwrapped(tensor)
    return found


def vmap_settings(interpreter: Any) -> tuple[int, bool] | None:
    """Return the batch size of a ``vmap``, and whether random numbers may be drawn in it; None of other transforms."""
    if interpreter.key() != _VMAP:
        return None
    level = _functorch.CVmapInterpreterPtr(interpreter)
    return level.batchSize(), level.randomness() != _NO_RANDOMNESS


@contextlib.contextmanager
def dual_numbers() -> Iterator[int | None]:
    """Open a level of dual numbers; under transforms of ``torch.func`` one of theirs, whose number is given."""
    if functorch_level() is None:
        with forward_ad.dual_level():
            yield None
        return
    with eager_transforms.jvp_increment_nesting() as level, forward_ad._set_fwd_grad_enabled(True):
        is_first = eager_transforms.JVP_NESTING == 1
        with forward_ad.dual_level() if is_first else contextlib.nullcontext():
            yield level


def without_functorch() -> Any:
    """Return a context in which plain tensors do not pass through the transforms of ``torch.func``."""
    return torch._C._ExcludeDispatchKeyGuard(FUNCTORCH_KEYS)


@contextlib.contextmanager
def with_functorch() -> Iterator[None]:
    """Undo `without_functorch`, and let ``vmap`` loop over operators without batching rules in silence."""
    keys = [
        key for key in _FUNCTORCH_KEY_LIST if torch._C._dispatch_tls_is_dispatch_key_excluded(key)
    ]
    for key in keys:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    _functorch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        _functorch._set_vmap_fallback_warning_enabled(True)  # there is no asking what it was
        for key in keys:
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, True)


def dual_level() -> int:
    """Return the level of dual numbers of ``torch.autograd.forward_ad``; negative if none is on."""
    return int(torch.autograd.forward_ad._current_level)
