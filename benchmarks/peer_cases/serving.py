"""A process for one library and one workload: it prepares, then is timed in turn with the others."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from timing import memory_raised_by, processor_time

WARM_UP = 0.2  # seconds of calls before anything is timed, as much is worked out late
BURST = 2e-3  # seconds: shorter ones are beneath the clock
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h

Thunk = Callable[[], Any]
Prepared = tuple[Thunk, Callable[[Any], list[np.ndarray]]]  # a call, and its result as arrays


def serve(
    connection: Connection, warm_up: Thunk, make: Callable[[], Prepared], clock: str, core: int
) -> None:
    """Answer "first", "warm", "time SECONDS" and "memory" until "end"; failures are answers, too."""
    os.sched_setaffinity(0, {core})
    now = processor_time if clock == "cpu" else time.perf_counter
    call: Thunk = warm_up
    with contextlib.suppress(EOFError):
        while (command := connection.recv().split()) != ["end"]:
            try:
                match command[0]:
                    case "first":
                        warm_up()
                        start = now()
                        call, arrays = make()
                        result = call()
                        seconds = now() - start
                        answer: dict[str, Any] = {"seconds": seconds, "values": arrays(result)}
                        del result
                    case "warm":
                        warm(call)
                        answer = {}
                    case "time":
                        answer = {"seconds": timed(call, now, float(command[1]))}
                    case "memory":
                        answer = {"mib": memory(call)}
            except Exception as error:  # a peer that fails is a finding
                lines = str(error).strip().splitlines() or [""]
                answer = {"error": f"{type(error).__name__}: {lines[0][:120]}"}
            connection.send(answer)


def timed(call: Thunk, clock: Callable[[], float], seconds: float) -> float:
    """Return the seconds of a call: the fastest of several bursts, each of many calls."""
    gc.collect()
    gc.disable()
    try:
        count, taken = 1, _burst(call, clock, 1)
        while taken < BURST:
            count = max(2 * count, int(count * BURST / max(taken, 1e-7)))
            taken = _burst(call, clock, count)
        found = []
        end = clock() + seconds
        while len(found) < 3 or clock() < end:
            found.append(_burst(call, clock, count) / count)
        return min(found)
    finally:
        gc.enable()


def _burst(call: Thunk, clock: Callable[[], float], count: int) -> float:
    start = clock()
    for _ in range(count):
        call()
    return clock() - start


def warm(call: Thunk) -> None:
    """Call until what is worked out late is."""
    end = time.process_time() + WARM_UP
    count = 0
    while count < 4 or time.process_time() < end:
        call()
        count += 1


def memory(call: Thunk) -> float:
    """Return by how many MiB one more call raises the resident set, at its peak."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 65536)  # what is freed goes back, and what is taken is seen
    libc.mallopt(M_TRIM_THRESHOLD, 0)
    call()
    gc.collect()
    libc.malloc_trim(0)
    return memory_raised_by(call)
