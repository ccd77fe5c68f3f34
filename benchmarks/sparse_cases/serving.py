"""A process for each library: it prepares a problem, then is asked for timings in turn with the others."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from timing import memory_raised_by, processor_time

from sparse_cases.problems import PROBLEMS, Data

Clock = Callable[[], float]
SHOWN = 1000  # elements of a product that are compared


class Side(Protocol):
    """What a library does with a problem."""

    parts: dict[str, float]  # of the preparation, in seconds
    numbers: dict[str, int]  # counts of what was found

    def prepare(self, clock: Clock) -> None:
        """Do all that is needed for the first matrix, and compute it."""

    def value(self) -> Any:
        """Compute the function."""

    def matrix(self) -> Any:
        """Compute the matrix."""

    def product(self, vector: np.ndarray) -> np.ndarray:
        """Multiply the last matrix by a vector."""

    def true(self) -> dict[str, int]:
        """Return how many entries are stored, and how many are non-zero at one of some random points."""


def serve(make: Callable[[str, Data], Side], warm_up: Callable[[], None]) -> None:
    """Answer what comes in lines: ``prepare``, ``time SECONDS``, ``product SEED``, ``true``."""
    name, size, clock_name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    os.sched_setaffinity(0, {int(sys.argv[4])})
    clock = processor_time if clock_name == "cpu" else time.perf_counter
    problem = PROBLEMS[name]
    warm_up()
    side = make(name, problem.data(size))
    _answer({"ready": True})
    for line in sys.stdin:
        command, *args = line.split()
        match command:
            case "prepare":
                _answer(_prepare(side, clock))
            case "time":
                _answer(_timed(side, clock, float(args[0])))
            case "product":
                columns = side.numbers["columns"]
                vector = np.random.default_rng(int(args[0])).uniform(-1, 1, columns)
                product = side.product(vector)
                shown = product[:: max(len(product) // SHOWN, 1)]
                _answer({"norm": float(np.linalg.norm(product)), "shown": shown.tolist()})
            case "true":
                _answer(side.true())


def _answer(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def _prepare(side: Side, clock: Clock) -> dict[str, Any]:
    side.value()
    side.value()
    of_value = memory_raised_by(side.value)
    taken = []

    def prepare() -> None:
        start = clock()
        side.prepare(clock)
        taken.append(clock() - start)

    memory = memory_raised_by(prepare) - of_value
    return {"seconds": taken[0], "mib": memory, **side.parts, **side.numbers}


def _timed(side: Side, clock: Clock, seconds: float) -> dict[str, Any]:
    gc.collect()
    gc.disable()
    found = {
        "value": _times(side.value, clock, seconds),
        "matrix": _times(side.matrix, clock, seconds),
    }
    gc.enable()
    return found


def _times(function: Callable[[], Any], clock: Clock, seconds: float) -> list[float]:
    times: list[float] = []
    function()
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 200):
        start = clock()
        function()
        times.append(clock() - start)
    return times
