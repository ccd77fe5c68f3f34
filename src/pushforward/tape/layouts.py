"""Where inputs lie in memory: functions that read memory by numbers are to find there what the caller's tensors have.

A copy of an input that is a part of another tensor is shorter, and begins elsewhere. So the first ``as_strided`` of one
ends the run, and the function is run again on copies of the whole memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from pushforward.errors import UnsupportedError
from pushforward.linear.differentiated import has_duals
from pushforward.tape.copies import overlaps
from pushforward.tape.private_functorch import is_wrapped
from pushforward.tape.private_torch import shares_storage
from pushforward.tape.trust import LayoutError

Inputs = Sequence[tuple[Tensor, Tensor]]  # copies, and what they are copies of


def lay_out(copy: Tensor, x: Tensor) -> None:
    """Give a copy of ``x`` the place in memory that ``x`` has, among copies of all that lies around it."""
    if can_be_laid_out(x):
        with torch.no_grad():
            whole = memory_of(x).clone()
            copy.data = whole.as_strided(x.shape, x.stride(), x.storage_offset())


def memory_of(x: Tensor) -> Tensor:
    """Return all of the memory that ``x`` lies in."""
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())


def with_surroundings(x: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return what of a copy that was written to goes where: ``value`` to ``x``, and what lies around it, too."""
    if not can_be_laid_out(x):
        return [(x, value)]
    whole = memory_of(x), memory_of(value)
    return [whole, (x, value.as_strided(x.shape, x.stride(), x.storage_offset()))]


def by_numbers(
    handler: Callable[..., Any],
    watcher: Any,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call what reads or writes memory by strides and offset, by another handler; inputs have to lie as they did.

    Raises:
        LayoutError: The function is to be run again on copies that do.
        UnsupportedError: There can be none.
    """
    inner = watcher.writes.inner(args[0] if args else kwargs["input"])
    for copy, x in watcher.inputs:
        if not _is_of(inner, copy):
            continue
        watcher.has_acted = True  # where the next input lies is not told by the graph
        if not _is_alike(copy, x):
            _end(watcher, func, x)
        with torch.no_grad():  # runs around this one ask whether theirs lie so, too
            x.as_strided((0,), (1,), 0)
        try:
            return handler(watcher, func, args, kwargs)
        except RuntimeError:
            if is_wrapped(x) or memory_of(copy).numel() >= memory_of(x).numel():
                raise
            _end(watcher, func, x)  # it may be out of the bounds of the copy only
    return handler(watcher, func, args, kwargs)


def lay_out_anew(watcher: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Lay out a tensor anew in place; not an input itself, which gives results their shapes.

    Raises:
        UnsupportedError: It is one, which the function reaches in another way than by the argument.
    """
    if not args or not isinstance(args[0], Tensor):
        return func(*args, **kwargs)
    target = args[0]
    if any(target is x for _, x in watcher.inputs):
        raise UnsupportedError(
            f"{watcher.name}: {func.__name__}: got a tensor that is differentiated and that the function has as "
            "another argument, too, or captures, expected one that it has once. Pass x.clone()."
        )
    if not (target.requires_grad or watcher.writes.owns(target)):
        watcher.has_acted = True
    begun = watcher.writes.begin_layout(target)
    try:
        return func(*args, **kwargs)
    finally:
        if begun is not None:
            begun.end()


def _end(watcher: Any, func: Any, x: Tensor) -> NoReturn:
    """End a run whose copy of ``x`` does not lie as it should."""
    if can_be_laid_out(x):
        raise LayoutError(watcher)
    raise UnsupportedError(
        f"{watcher.name}: {func.__name__} of an input: got one that is a part of another tensor (strides {x.stride()}, "
        f"offset {x.storage_offset()}) in nested transforms, or that lies in memory more than once, expected one with "
        "memory of its own. Pass x.clone(), or index it."
    )


def _is_of(inner: Any, copy: Tensor) -> bool:
    """Tell whether a tensor lies in the memory of a copy."""
    if inner is copy or inner._base is copy:
        return True
    return not (is_wrapped(inner) or is_wrapped(copy)) and shares_storage(inner, copy)


def _is_alike(copy: Tensor, x: Tensor) -> bool:
    """Tell whether a copy lies as ``x`` does, and has in its memory what there is in that of ``x``."""
    if copy.stride() != x.stride() or copy.storage_offset() != x.storage_offset():
        return False
    if is_wrapped(copy):
        return True
    size = copy.untyped_storage().nbytes()
    return size in (copy.nbytes, x.untyped_storage().nbytes()) and not overlaps(copy)


def can_be_laid_out(x: Tensor) -> bool:
    """Tell whether a copy can lie in memory as ``x`` does."""
    if is_wrapped(x) or x.is_conj() or x.is_neg() or has_duals():
        return False
    return not overlaps(x)
