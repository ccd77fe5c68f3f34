"""Peaks in bytes that PyTorch allocates, whatever the allocator takes from the system."""

import gc
from collections.abc import Callable
from typing import Any

from torch.autograd.profiler import profile

import pushforward


def bytes_of(call: Callable[[], Any], *, keeps_plans: bool = False) -> tuple[int, int]:
    """Return how many bytes ``call`` needs at its peak, and how many are left when its result is gone.

    Plans, which keep constants, count as left unless they go too.
    """
    gc.collect()
    with profile(profile_memory=True) as prof:
        result = call()
        del result
        if not keeps_plans:
            pushforward.clear_plans()
        gc.collect()
    events = prof.kineto_results.events()
    now = most = 0
    for event in sorted(
        (e for e in events if e.name() == "[memory]"), key=lambda event: event.start_ns()
    ):
        now += event.nbytes()
        most = max(most, now)
    return most, now
