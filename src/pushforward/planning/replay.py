"""Replay: a sweep over a tape, repeated by its kernels alone for every further tape with the same signature.

For small tensors it takes longer to decide which kernels to run than to run them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor

from pushforward.planning.kernels import Replay
from pushforward.planning.noting import Rows
from pushforward.planning.plans import PLANS
from pushforward.tape.private_torch import unseen

FIRST_WRITTEN = 2  # the call that is written down, so that what is called once does not pay for it

KERNELS = "kernels"  # by key
SEEN = "seen"  # calls so far, by the key's hash: what is called once does not keep its key


@dataclasses.dataclass(slots=True)
class Known:
    """What is known of a key."""

    replay: Replay | None  # None: the kernels depend on more than the key
    lifetime: float  # calls until it is worked out anew
    answered: int = 0

    @property
    def is_alive(self) -> bool:
        """Whether there are kernels, and they may answer another call."""
        return self.replay is not None and self.answered < self.lifetime


def ready(key: Hashable) -> Known | None:
    """Return what answers the next call with this key by kernels; None where that has to be computed, or noted."""
    known: Known | None = PLANS.find(KERNELS, key)
    if known is None or not known.is_alive:
        return None
    known.answered += 1
    return known


def foreseen(
    key: Hashable, lifetime: Callable[[int], float] | None, write: Callable[[], Replay | None]
) -> Known | None:
    """Return what answers a first call, written down before it; None where that cannot be. Arguments as of `swept`."""
    if PLANS.find(SEEN, hash(key)) is not None:
        return None
    replay = write()
    if replay is None:
        return None
    PLANS.keep(SEEN, hash(key), 1)
    known = Known(replay, math.inf if lifetime is None else lifetime(0), answered=1)
    PLANS.keep(KERNELS, key, known)
    return known


def swept(
    key: Hashable,
    values: Sequence[Tensor],
    compute: Callable[[], Rows],
    lifetime: Callable[[int], float] | None,
    write: Callable[[], Replay | None],
) -> Rows:
    """Return ``compute()`` where no kernels are `ready`; from the second call on, note them for the next.

    Args:
        key: What decides the kernels: the tape's signature, and what is computed of it.
        values: The tensors of the tape, which may differ from call to call; in the order of the signature.
        compute: Computes the result from ``values``.
        lifetime: Told how many calls a replay has answered, tells how many the next one shall; None if all.
        write: Makes the replay.
    """
    known: Known | None = PLANS.find(KERNELS, key)
    if known is not None and known.answered < known.lifetime:
        known.answered += 1
        return compute()
    count = (PLANS.find(SEEN, hash(key)) or 0) + 1
    if count < FIRST_WRITTEN:
        PLANS.keep(SEEN, hash(key), count)
        return compute()
    answered = 0 if known is None else known.answered
    known = Known(None, math.inf if lifetime is None else lifetime(answered))
    known.replay = write()
    PLANS.keep(KERNELS, key, known)
    # Not what was computed under the modes that watch: linalg.pinv of complex matrices is wrong there in torch 2.13.
    return compute() if known.replay is None else replayed(known.replay, values)


def replayed(replay: Replay, values: Sequence[Any]) -> Rows:
    """Run kernels out of sight of the modes of recordings around this one."""
    return unseen(functools.partial(replay, values))
