"""Time sparse Jacobians and Hessians against asdex and CasADi: ``python benchmarks/sparse.py [--case NAME]``.

float64, one core. Each library runs in processes of its own, which take turns. Preparation is the first call with all
that it needs, in a fresh process that has imported everything and differentiated other functions; evaluation is the
median of the calls after it. asdex runs compiled (jax.jit); its preparation is detection, colouring and compilation.
Memory is by how much preparation raises the peak resident set beyond what a call of the function does.

The peers (``pip install '.[peers]'``) may live in another environment: ``PEERS=/path/to/python``. Without them only our
numbers are printed. With ``COMPILED=1`` ours are compiled by Inductor, which is then part of the preparation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sparse_cases.problems import PROBLEMS, Problem

HERE = Path(__file__).parent
MODULES = {
    "ours": "sparse_cases.with_torch",
    "compiled": "sparse_cases.with_torch",
    "asdex": "sparse_cases.with_jax",
    "casadi": "sparse_cases.with_casadi",
}
LONG = 5.0  # seconds of preparation that are measured once
MAX_CASADI = 100  # points along an axis; building larger graphs of scalars takes minutes


class Process:
    """A library with one problem, in a process of its own."""

    def __init__(self, side: str, name: str, size: int, clock: str) -> None:
        """Start it, and wait until it has warmed up."""
        python = sys.executable if MODULES[side] == MODULES["ours"] else _peers()
        core = str(max(os.sched_getaffinity(0)))
        found = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([str(HERE), *([found] if found else [])])
        self._process = subprocess.Popen(
            [python, "-m", MODULES[side], name, str(size), clock, core],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                **({"COMPILED": "1"} if side == "compiled" else {}),
                "PYTHONPATH": path,
                "OMP_NUM_THREADS": "1",
                "JAX_PLATFORMS": "cpu",
                # What is freed stays with the process: else megabytes go back to the system and
                # are faulted in anew at each call, which takes more than to fill them.
                "MALLOC_MMAP_THRESHOLD_": str(2**32),
                "MALLOC_TRIM_THRESHOLD_": str(2**33),
            },
        )
        self._read()

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read()

    def end(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args}: ended with {self._process.wait()}.")
        found: dict[str, Any] = json.loads(line)
        return found


def _peers() -> str:
    return os.environ.get("PEERS", sys.executable)


def _has(module: str) -> bool:
    found = subprocess.run([_peers(), "-c", f"import {module}"], capture_output=True, check=False)
    return found.returncode == 0


def measure(problem: Problem, size: int, sides: list[str], options: Any) -> dict[str, Any]:
    """Prepare in several processes of each side, let the last ones take turns, and compare their products."""
    prepared: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    processes: dict[str, Process] = {}
    for repeat in range(options.repeats):
        for side in sides:
            known = prepared[side]
            if known and known[-1]["seconds"] > LONG:
                continue
            if repeat:
                processes[side].end()
            processes[side] = Process(side, problem.name, size, options.clock)
            known.append(processes[side].ask("prepare"))
    times: dict[str, dict[str, list[float]]] = {s: {"value": [], "matrix": []} for s in sides}
    for _ in range(options.rounds):
        for side in sides:
            found = processes[side].ask(f"time {options.seconds}")
            for what, record in found.items():
                times[side][what] += record
    products = {side: processes[side].ask("product 1") for side in sides}
    for side in sides[1:]:
        for what, expected in products["ours"].items():
            np.testing.assert_allclose(
                products[side][what], expected, rtol=1e-9, atol=1e-9 * products["ours"]["norm"]
            )
    result: dict[str, Any] = {"name": problem.name, "size": size}
    for side in sides:
        runs = prepared[side]
        result[side] = {key: statistics.median(r[key] for r in runs) for key in runs[0]}
        result[side] |= {what: statistics.median(t) for what, t in times[side].items()}
        result[side]["small"] = processes[side].ask("true")
        processes[side].end()
    return result


HEADER = (
    f"{'problem':20} {'size':>6} {'f':>9} | {'prepare':>9} {'asdex':>9} {'ratio':>6} | {'evaluate':>9} {'/ f':>5} "
    f"{'asdex':>9} {'/ f':>5} {'ratio':>6} | {'MiB':>6} {'asdex':>6} | {'stored':>9} {'asdex':>9} "
    f"{'small: true/ours/asdex':>22} | asdex: detect, colour, compile (s), colours"
)


def line_of(result: dict[str, Any]) -> str:
    """Return the line of the table."""
    ours, peer = result["ours"], result.get("asdex")
    small = [str(ours["small"]["true"]), str(ours["small"]["stored"])]
    texts = [
        f"{result['name']:20} {result['size']:6} {_time(ours['value'])} |",
        f"{_time(ours['seconds'])} {_time(peer['seconds']) if peer else '-':>9}",
        f"{_ratio(ours, peer, 'seconds')} | {_time(ours['matrix'])} {ours['matrix'] / ours['value']:5.1f}",
        f"{_time(peer['matrix']) if peer else '-':>9}",
        f"{peer['matrix'] / peer['value'] if peer else 0:5.1f} {_ratio(ours, peer, 'matrix')} |",
        f"{ours['mib']:6.0f} {peer['mib'] if peer else 0:6.0f} |",
        f"{ours['stored']:9.0f} {peer['stored'] if peer else 0:9.0f}",
    ]
    if peer:
        small.append(str(peer["small"]["stored"]))
        parts = ", ".join(f"{peer[part]:.3g}" for part in ("detect", "color", "compile"))
        texts += [f"{'/'.join(small):>22} | {parts}, {peer['colors']:.0f}"]
    else:
        texts += [f"{'/'.join(small):>22} |"]
    if casadi := result.get("casadi"):
        texts += [
            f"\n{'':20} {'CasADi':>6} detects in{_time(casadi['detect'])}, prepares in{_time(casadi['seconds'])},",
            f"evaluates in{_time(casadi['matrix'])}; {casadi['mib']:.0f} MiB, stores {casadi['stored']:.0f};",
            f"ratio ours: preparation to detection{_ratio(ours, casadi, 'seconds', 'detect')},",
            f"evaluation{_ratio(ours, casadi, 'matrix')}",
        ]
    return " ".join(texts)


def _ratio(ours: dict[str, Any], peer: dict[str, Any] | None, key: str, of: str = "") -> str:
    return f"{ours[key] / peer[of or key]:6.3f}" if peer else f"{'-':>6}"


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:7.2f} s"
    return f"{seconds * 1e3:6.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:6.1f} µs"


def _chosen(options: Any) -> Iterator[tuple[Problem, int]]:
    for problem in PROBLEMS.values():
        if options.case and problem.name not in options.case:
            continue
        for size in problem.sizes:
            if size <= options.largest or len(problem.sizes) == 1:
                yield problem, size


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", help="only this problem (may be repeated)")
    parser.add_argument("--largest", type=int, default=10**9, help="of problems with several sizes")
    parser.add_argument("--repeats", type=int, default=3, help="preparations, each in a process")
    parser.add_argument("--rounds", type=int, default=5, help="turns of evaluations")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu where the machine is shared"
    )
    parser.add_argument("--alone", action="store_true", help="without peers")
    parser.add_argument("--json", help="write results to this file, too")
    options = parser.parse_args()
    peers = [] if options.alone else ["asdex", "casadi"]
    for peer in [p for p in peers if not _has(p)]:
        print(f"without {peer}: {_peers()} cannot import it; see PEERS in benchmarks/sparse.py")
        peers.remove(peer)
    print(HEADER)
    results = []
    for problem, size in _chosen(options):
        sides = ["ours", *peers]
        if "casadi" in sides and not (problem.name == "brusselator roll" and size <= MAX_CASADI):
            sides.remove("casadi")
        results.append(measure(problem, size, sides, options))
        print(line_of(results[-1]), flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
