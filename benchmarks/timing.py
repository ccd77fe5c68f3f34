"""Medians of interleaved repetitions, and peak memory in a fresh process."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WARM_UP = 0.5
DEVICE = os.environ.get("DEVICE", "cpu")
Thunk = Callable[[], Any]


def interleaved_medians(functions: Sequence[Thunk], seconds: float) -> list[float]:
    """Return the median time of each, in seconds; their calls alternate, so that noise hits both alike.

    One repetition is a run of calls long enough (2 ms) for the clock, after one call that is not timed. At least 7
    repetitions of each are made, at least 3 where one takes more than a second, one where one takes more than ten.
    All must have been called before; each is called for WARM_UP seconds more, as what is worked out for repeated calls
    may be worked out late.
    """
    counts, least = [], 7
    for function in functions:
        once = _time(function, 1)
        for _ in range(int(WARM_UP / once)):
            function()
        least = min(least, 1 if once > 10 else 3 if once > 1 else 7)
        counts.append(1 if once > 2e-3 else max(1, int(2e-3 / _time(function, 5))))
    times: list[list[float]] = [[] for _ in functions]
    gc_was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while len(times[0]) < least or time.perf_counter() < end:
            for function, count, record in zip(functions, counts, times, strict=True):
                if least > 1:
                    function()  # the other sides have filled the caches with their data
                record.append(_time(function, count))
    finally:
        if gc_was_on:
            gc.enable()
    return [statistics.median(record) for record in times]


def _time(function: Thunk, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        function()
    if DEVICE != "cpu":
        _synchronize()
    return (time.perf_counter() - start) / count


def _synchronize() -> None:
    """Wait for the device, which answers before it has computed."""
    import torch  # as some processes that time have no PyTorch

    torch.accelerator.synchronize()


def processor_time() -> float:
    """Return seconds of this process and of those that it has waited for: compilers."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_memory(script: Path, case: str, side: str) -> float:
    """Return by how many MiB one call raises the peak resident set of a fresh process that runs ``script``."""
    result = subprocess.run(
        [sys.executable, str(script), "--measure-memory", case, side],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(result.stdout.strip().splitlines()[-1])


def memory_raised_by(function: Thunk) -> float:
    """Return the growth in MiB of the peak resident set (VmHWM of /proc/self/status) over one call.

    VmHWM is reset to the present resident set first (5 to /proc/self/clear_refs), so that an earlier peak, that
    of importing torch, does not hide the call's.
    """
    gc.collect()
    with contextlib.suppress(OSError):  # without it only what exceeds the earlier peak is seen
        Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmHWM")
    result = function()
    after = _status("VmHWM")
    del result
    return (after - before) / 1024


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(
        f"memory_raised_by: {field} in /proc/self/status: got none, expected a Linux kernel."
    )
