"""Assignments to parts, and ``out=``, as the function calls them: copies of what was computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pushforward.tape.copies import is_same_view
from pushforward.tape.in_place import is_basic
from pushforward.tape.private_functorch import functorch_level, level_of
from pushforward.tape.writing import COPY, Writes, copied, write


def write_out(
    writes: Writes, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Carry out a function with ``out=``, which autograd does not follow: as copies of its result."""
    out = kwargs["out"]
    targets = out if isinstance(out, (tuple, list)) else (out,)
    if not torch.is_grad_enabled() or not writes.is_followed((args, kwargs)):
        begun = [writes.begin(target) for target in targets]
        result = func(*args, **kwargs)
        for each in begun:
            if each is not None:
                each.end()
        return result
    result = func(*args, **{key: value for key, value in kwargs.items() if key != "out"})
    values = (result,) if isinstance(result, Tensor) else result
    for target, value in zip(targets, values, strict=True):
        if not torch.can_cast(value.dtype, target.dtype):
            raise RuntimeError(
                f"{name}: out= of {func.__name__}: got a tensor of {target.dtype}, expected one that {value.dtype} "
                "can be cast to."
            )
        if target.shape != value.shape:
            target.resize_(value.shape)
        write(writes, target, COPY, None, (target, value), {})
    return out if isinstance(result, Tensor) else type(result)(targets)


def assign(writes: Writes, func: Any, target: Tensor, index: Any, value: Any) -> None:
    """Carry out ``target[index] = value``: by integers and slices, as a copy into the view that they take."""
    view, is_view = target, False
    is_inside = isinstance(value, Tensor) and functorch_level() is not None
    if is_inside and level_of(value) > max(writes.level, level_of(target)):
        func(target, index, value)  # its transform refuses that; a view would hide it
        return
    is_followed = (
        isinstance(value, Tensor)
        and torch.is_grad_enabled()
        and (writes.is_followed(value) or writes.is_followed(target))
    )
    if is_followed:
        target = writes.stand_in(target)
    if is_followed and is_basic(index):
        view = target[index]
        inner = writes.inner(view)
        is_view = inner._base is not None
        if is_view and is_same_view(inner, writes.inner(value)):
            return
    is_whole = is_view and writes.inner(target)._base is None
    begun = writes.begin(view, is_whole) if is_view else writes.begin(target)
    try:
        if is_view:
            while value.dim() > view.dim() and value.shape[0] == 1:
                value = value[0]
            copied(view, value)
            writes.remember_place(view)
        else:
            func(target, index, value)
    finally:
        if begun is not None:
            begun.end()
