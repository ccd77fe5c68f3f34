"""Replay: a sweep over a tape, repeated by its kernels alone for every further tape with the same signature.

For small tensors it takes longer to decide which kernels to run than to run them.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.planning.kernels import Replay
from pushforward.planning.noting import Rows
from pushforward.tape.private_torch import num_function_modes

FIRST_WRITTEN = 2  # the call that is written down, so that what is called once does not pay for it
MAX_REPLAYS = 256
MAX_COUNTS = 4096

_replays: dict[Hashable, _Known] = {}
_counts: dict[Hashable, int] = {}  # by the key's hash: calls so far
_lock = threading.Lock()


@dataclasses.dataclass(slots=True)
class _Known:
    """What is known of a key."""

    replay: Replay | None  # None: the kernels depend on more than the key
    lifetime: float  # calls until it is worked out anew
    answered: int = 0


def swept(
    key: Hashable,
    values: Sequence[Tensor],
    compute: Callable[[], Rows],
    lifetime: Callable[[int], float] | None,
    write: Callable[[], Replay | None],
) -> Rows:
    """Return ``compute()``, by the kernels that it ran for this key before, if they are known.

    Args:
        key: What decides the kernels: the tape's signature, and what is computed of it.
        values: The tensors of the tape, which may differ from call to call; in the order of the signature.
        compute: Computes the result from ``values``.
        lifetime: Told how many calls a replay has answered, tells how many the next one shall; None if all.
        write: Makes the replay.
    """
    known = _replays.get(key)
    if known is not None and known.answered < known.lifetime:
        known.answered += 1
        return compute() if known.replay is None else _replayed(known.replay, values)
    count = _counts.get(hash(key), 0) + 1
    if count < FIRST_WRITTEN:
        _put(_counts, hash(key), count, MAX_COUNTS)
        return compute()
    answered = 0 if known is None else known.answered
    known = _Known(None, math.inf if lifetime is None else lifetime(answered))
    known.replay = write()
    _put(_replays, key, known, MAX_REPLAYS)
    # Not what was computed under the modes that watch: linalg.pinv of complex matrices is wrong there in torch 2.13.
    return compute() if known.replay is None else _replayed(known.replay, values)


def _replayed(replay: Replay, values: Sequence[Any]) -> Rows:
    """Run kernels out of sight of the modes of recordings around this one."""
    if not num_function_modes():
        return replay(values)
    with torch._C.DisableTorchFunction():
        return replay(values)


def _put(cache: dict[Hashable, Any], key: Hashable, value: Any, limit: int) -> None:
    """Store, and forget what was stored first."""
    with _lock:
        cache[key] = value
        while len(cache) > limit:
            del cache[next(iter(cache))]
