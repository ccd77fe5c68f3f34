"""Compiled derivatives: ours eager and compiled, torch.func eager and under torch.compile, JAX jitted; one thread.

Run by ``make bench-compiled``; ``PEERS=python`` names an interpreter that has JAX. Times are medians, in microseconds a
call; JAX runs in a process of its own, before the others. Values are compared.
"""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compiled_cases.with_torch import FIELD, NET, Problem, U, V, problems
from timing import interleaved_medians

import pushforward

HEAD = (
    "torch.func",
    "torch.compile",
    "JAX jit",
    "ours",
    "eager",
    "inductor",
    "ind/JAX",
    "first calls, s: t.c, JAX, ours",
)


def derivative(library: Any, problem: Problem) -> Callable[..., Any]:
    """Return what is timed."""
    made = getattr(library, problem.transform)(problem.function)
    return torch.func.vmap(made) if problem.is_batched else made


def with_jax(found: dict[str, Problem]) -> dict[str, list[float]]:
    """Return [seconds of the first call, of a call, sum of sizes] by name; nothing where there is no JAX."""
    python = os.environ.get("PEERS")
    if not python:
        return {}
    arrays = {f"x {name}": p.x.numpy() for name, p in found.items()} | {
        "U": U.numpy(),
        "V": V.numpy(),
    }
    for prefix, net in (("net", NET), ("field", FIELD)):
        for number, layer in enumerate(net[::2]):
            arrays[f"{prefix}{number}w"] = layer.weight.numpy()
            arrays[f"{prefix}{number}b"] = layer.bias.numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.npz"
        np.savez(path, **arrays)
        script = Path(__file__).parent / "compiled_cases" / "with_jax.py"
        result = subprocess.run(
            [python, str(script), str(path), json.dumps(list(found))],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ
            | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"},
        )
    answers: dict[str, list[float]] = json.loads(result.stdout.splitlines()[-1])
    return answers


def first_call(function: Callable[..., Any], x: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return how long the first call took, and its result."""
    start = time.perf_counter()
    result = function(x)
    return time.perf_counter() - start, result


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    found = problems()
    only = sys.argv[1:]
    found = {n: p for n, p in found.items() if not only or any(o in n for o in only)}
    jax = with_jax(found)
    print(f"{'':32}" + "".join(f"{h:>14}" for h in HEAD[:-1]) + f"   {HEAD[-1]}", flush=True)
    ratios: list[tuple[float, float, float]] = []
    for name, problem in found.items():
        torch.compiler.reset()  # or it gives up after eight functions
        peer = derivative(torch.func, problem)
        sides = [
            peer,
            torch.compile(peer),
            derivative(pushforward, problem),
            pushforward.compile(derivative(pushforward, problem), backend="eager"),
            pushforward.compile(derivative(pushforward, problem)),
        ]
        firsts = [first_call(side, problem.x) for side in sides]
        expected = firsts[0][1]
        for _, result in firsts[2:]:
            torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)
        is_right = torch.allclose(firsts[1][1], expected, rtol=1e-3, atol=1e-4)  # torch.compile's
        times = interleaved_medians([functools.partial(side, problem.x) for side in sides], 2.0)
        jitted = jax.get(name, [math.nan] * 3)
        scale = float(expected.abs().sum())
        if jax and abs(jitted[2] - scale) > 1e-3 * scale:
            raise SystemExit(f"{name}: JAX gives another result")
        if not is_right:
            times[1] = math.nan
        columns = [times[0], times[1], jitted[1], *times[2:]]
        ratios.append((times[4] / times[1], times[4] / jitted[1], times[2] / times[0]))
        print(
            f"{name:32}"
            + "".join(f"{1e6 * t:14.1f}" for t in columns)
            + f"{ratios[-1][1]:14.2f}   {firsts[1][0]:.1f}, {jitted[0]:.1f}, {firsts[4][0]:.1f}"
            + ("" if is_right else "; torch.compile: wrong numbers"),
            flush=True,
        )
    for label, place in (
        ("inductor / torch.compile", 0),
        ("inductor / JAX", 1),
        ("ours / torch.func, eager", 2),
    ):
        logs = [math.log(r[place]) for r in ratios if not math.isnan(r[place])] or [math.nan]
        print(
            f"{label}: geometric mean {math.exp(sum(logs) / len(logs)):.3f}, worst {math.exp(max(logs)):.2f}"
        )


if __name__ == "__main__":
    main()
