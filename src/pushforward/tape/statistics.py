"""Running statistics: autograd does not follow how a norm updates them, and the function may read them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.tape.private_functorch import functorch_level
from pushforward.tape.writing import COPY, write

_NAMES = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def batch_norm(
    handler: Callable[..., Tensor],
    watcher: Any,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """Call a batch norm, by another handler; write its statistics with their derivative."""
    given = dict(zip(_NAMES, args, strict=False)) | kwargs
    x, momentum = given["input"], given.get("momentum", 0.1)
    buffers: list[Any] = [given.get("running_mean"), given.get("running_var")]
    if not given.get("training", False) or None in buffers:
        return handler(watcher, func, args, kwargs)
    watcher.has_acted = True
    for buffer in buffers:
        watcher.writes.begin_unseen(buffer)
    if (
        functorch_level() is not None
        or not torch.is_grad_enabled()
        or not watcher.writes.is_followed(x)
    ):
        return handler(watcher, func, args, kwargs)
    # The node saves those that it is given, so that they must stay.
    after = [buffer.detach().clone() for buffer in buffers]
    given |= {"running_mean": after[0], "running_var": after[1]}
    result = handler(watcher, func, (), given)
    axes = (0, *range(2, x.dim()))
    for buffer, new, value in zip(buffers, (x.mean(axes), x.var(axes)), after, strict=True):
        followed = (1 - momentum) * buffer + momentum * new.to(buffer.dtype)
        value = value + (followed - followed.detach()).nan_to_num(0)  # inf - inf
        write(watcher.writes, buffer, COPY, None, (buffer, value), {})
    return result


def instance_norm(
    handler: Callable[..., Tensor],
    watcher: Any,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """Call an instance norm, by another handler; see whether it updates statistics, which is not to happen twice."""
    given = dict(zip(_NAMES, args, strict=False)) | kwargs
    is_updating = given.get("use_input_stats", given.get("training", True))
    if is_updating and given.get("running_mean") is not None:
        watcher.has_acted = True
        watcher.writes.begin_unseen(given["running_mean"])
        watcher.writes.begin_unseen(given["running_var"])
    return handler(watcher, func, args, kwargs)
