"""Copies of the caller's tensors, on which a tape begins, and what of a run goes back to the caller's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pushforward.errors import UnsupportedError
from pushforward.tape.private_functorch import (
    functorch_level,
    is_wrapped,
    outlives_level,
    start_requiring_grad,
    wrap_for_grad,
)


def num_bytes(tensor: Tensor) -> int:
    """Return how many bytes the elements take; 0 for a sparse tensor, which has no one size."""
    return tensor.nbytes if tensor.layout is torch.strided else 0


def tracked_copy(x: Tensor, level: int | None) -> Tensor:
    """Return a copy of ``x`` whose node is where the tape begins."""
    copy = _copy(x, level)
    if x.layout is torch.strided and not x.is_contiguous():
        keep_strides(copy, x)
    return copy


def _copy(x: Tensor, level: int | None) -> Tensor:
    is_alone = functorch_level() is None and forward_ad._current_level < 0
    if is_alone and not (x.requires_grad or x.is_inference()):  # nearly always
        return x.detach().requires_grad_().clone()
    if level is not None:
        inner: Tensor = start_requiring_grad(wrap_for_grad(x, level))
    elif x.requires_grad:
        inner = x
    else:
        inner = x.clone() if x.is_inference() else x.detach()
        inner = inner.requires_grad_() if functorch_level() is None else start_requiring_grad(inner)
        if forward_ad._current_level >= 0:
            inner = _with_tangent(inner, x)
    return inner.clone()


def keep_strides(copy: Tensor, x: Tensor) -> None:
    """Give a copy of a part of another tensor the strides of that part: they tell whether `contiguous` is a copy."""
    if is_wrapped(copy) or x.is_conj() or x.is_neg() or copy.stride() == x.stride():
        return
    if forward_ad._current_level >= 0 or not x.numel():
        return
    with torch.no_grad(), torch._C.DisableTorchFunction():  # no step of a function that is watched
        # Writes to what is expanded are refused; other overlaps get memory for each element.
        if 0 in x.stride():
            span = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
            copy.data = x.as_strided((span,), (1,)).clone().as_strided(x.shape, x.stride())
        elif not overlaps(x):
            memory = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
            copy.data = memory.copy_(x)


def overlaps(x: Tensor) -> bool:
    """Tell whether elements may share their memory."""
    steps = sorted((s, n) for n, s in zip(x.shape, x.stride(), strict=True) if n > 1)
    reach = 0  # of the axes with smaller steps
    for step, length in steps:
        if step <= reach:
            return True
        reach += step * (length - 1)
    return False


def detached(tensor: Tensor) -> Tensor:
    """Return a tensor without history; with its tangent, which ``detach`` drops."""
    plain = tensor.detach()
    return plain if forward_ad._current_level < 0 else _with_tangent(plain, tensor)


def _with_tangent(plain: Tensor, tensor: Tensor) -> Tensor:
    tangent = forward_ad.unpack_dual(tensor).tangent
    return plain if tangent is None else forward_ad.make_dual(plain, tangent)


def write_back(writes: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Carry out writes to the caller's tensors."""
    for x, value in writes:
        value = value if x.layout is not torch.strided else _laid_out_alike(x, value)
        if not is_wrapped(x) and 0 in x.stride() and torch.equal(x, value):
            continue  # laid out anew, and not written to: that would be refused
        if x.requires_grad and not x.is_leaf and torch.is_grad_enabled():
            x.copy_(value)
        else:
            with torch.no_grad():
                x.copy_(value)


def _laid_out_alike(x: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` with the layout of ``x``: the function may have changed that of its copy, as ``x.t_()`` does."""
    lies_as_x = not is_wrapped(value) and value.untyped_storage().nbytes() != value.nbytes
    # Those of the copy at first.
    strides = x.stride() if lies_as_x else torch.empty_like(x).stride()
    if value.shape == x.shape and value.stride() in (strides, x.stride()):
        return value
    if value.numel() != x.numel():
        raise UnsupportedError(
            f"The function resized an input: got {tuple(value.shape)}, expected {tuple(x.shape)}. Use operators that "
            "return a new tensor."
        )
    return value.as_strided(x.shape, strides)


def forget_history(tensors: Iterable[Tensor]) -> None:
    """Detach what had no history before the function wrote to it."""
    for tensor in tensors:
        if outlives_level(tensor) or not tensor.requires_grad or tensor.grad_fn is None:
            continue
        if tensor._base is None or tensor._base.dtype is not tensor.dtype:
            tensor.detach_()
        else:
            _take_anew(tensor, tensor._base.detach_())


def _take_anew(view: Tensor, base: Tensor) -> None:
    """Make a view what it was before its base got a history, which it does not lose with that of the base."""
    new = base.as_strided(view.shape, view.stride(), view.storage_offset())
    try:
        torch.utils.swap_tensors(view, new)
    except RuntimeError as error:
        raise UnsupportedError(
            "The function wrote to a view from outside it in a new branch, and used it afterwards: got a view that has "
            "a history now, expected none. Write to the tensor that it is a view of."
        ) from error


def owned(result: Tensor, given: Sequence[Tensor]) -> Tensor:
    """Return ``result``, copied if it is, or is a view of, one of the caller's tensors."""
    if result._is_view() or any(result is tensor for tensor in given):
        return result.clone()
    return result


def is_data(base: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Tell whether ``base`` is the ``.data``, which has a version of its own, of one of the tensors."""
    memory = _memory_id(base)
    if not memory or any(t is base or t._base is base for t in tensors):
        return False
    return any(_memory_id(t) == memory for t in tensors)


def _memory_id(tensor: Tensor) -> int:
    """Return where the memory of a tensor begins, 0 where that tells nothing."""
    if is_wrapped(tensor) or tensor.layout is not torch.strided:
        return 0
    return tensor.untyped_storage().data_ptr()


def apart_from(value: Any, target: Tensor) -> Any:
    """Return a copy of an argument that is about to be overwritten itself, as the operator may save it."""
    if isinstance(value, Tensor) and (value is target or value._base is target):
        return value.clone()
    return value


def has_version(tensor: Tensor) -> bool:
    """Tell whether PyTorch counts the writes to a tensor."""
    return not (tensor.is_inference() or is_wrapped(tensor))


def base_of(tensor: Tensor) -> Tensor:
    """Return the tensor that a view is a part of; any other itself."""
    base = tensor._base
    return tensor if base is None else base


def is_same_view(view: Tensor, value: Tensor) -> bool:
    """Tell whether the value is the view itself: ``y[i] += 1`` assigns what it has written already."""
    return (
        value._base is not None
        and value._base is view._base
        and value.shape == view.shape
        and value.stride() == view.stride()
        and value.storage_offset() == view.storage_offset()
        and value.dtype is view.dtype
    )
