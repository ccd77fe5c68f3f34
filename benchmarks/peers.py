"""Ours beside torch.func, torch.compile, torch.autograd.functional, JAX, CasADi and asdex: ``make peers``.

Each library has a process of its own for each workload, pinned to one core, one thread; they take turns. Times are of
the fastest of several bursts of calls. First calls include tracing and compiling, not imports, nor headers that are
compiled once for all. Peak memory is what one more call takes at most. Values are compared. Everything goes to
out/peers.json, and from there to benchmarks/RESULTS.md and its picture. With ``--only`` what is measured anew takes its
place among what stands in that file.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}

import argparse
import contextlib
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch._inductor.compile_fx  # forked processes have it, then
from peer_cases import with_torch
from peer_cases.picture import draw
from peer_cases.report import report, versions
from peer_cases.workload import WORKLOADS, Workload
from sparse import measure
from sparse_cases.problems import PROBLEMS

HERE = Path(__file__).parent
RESULTS, PICTURE, RAW = HERE / "RESULTS.md", HERE / "RESULTS.png", HERE.parent / "out/peers.json"
OTHERS = {"JAX": "peer_cases.with_jax", "CasADi": "peer_cases.with_casadi"}
PATIENCE = 900.0  # seconds for one answer
# Of the sparse family: sizes at which asdex takes less than a minute.
SPARSE = [("brusselator roll", (32, 100, 316, 708)), ("brusselator pad", (100,))]
SPARSE += [(name, p.sizes[:1]) for name, p in PROBLEMS.items() if not name.startswith("brus")]


class Process:
    """One library with one workload."""

    def __init__(self, side: str, w: Workload, clock: str, core: int) -> None:
        """Start it."""
        self._ours, theirs = multiprocessing.Pipe()
        if side in OTHERS:
            python = [os.environ["PEERS"], "-m", OTHERS[side]]
            process = subprocess.Popen(
                [*python, str(theirs.fileno()), clock, str(core)],
                pass_fds=[theirs.fileno()],
                cwd=HERE,
                stderr=subprocess.DEVNULL,
                env=os.environ
                | {
                    "JAX_PLATFORMS": "cpu",
                    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
                },
            )
            args = [_as_arrays(a) for a in w.args]
            found = {"kind": w.kind, "function": w.function.__name__, "batch": w.batch}
            self._ours.send(found | {"args": args, "data": w.arrays()})
            self._kill, self._wait = process.kill, process.wait
        else:
            context = multiprocessing.get_context("fork")
            forked = context.Process(
                target=_forked, args=(theirs, self._ours, side, w.name, clock, core)
            )
            forked.start()
            self._kill, self._wait = forked.kill, forked.join
        theirs.close()

    def send(self, command: str) -> None:
        """Ask for something."""
        with contextlib.suppress(OSError):  # it ended, which `answer` says
            self._ours.send(command)

    def answer(self) -> dict[str, Any]:
        """Return what it says; an error where it says nothing."""
        try:
            if self._ours.poll(PATIENCE):
                answer: dict[str, Any] = self._ours.recv()
                return answer
            self._kill()
            return {"error": f"no answer within {PATIENCE:.0f} s"}
        except (EOFError, OSError):
            return {"error": "its process ended"}

    def end(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._ours.send(
                "end"
            )  # processes forked later hold the pipe, too: closing it says nothing
        self._ours.close()
        self._wait()


def _forked(
    theirs: Connection, ours: Connection, side: str, name: str, clock: str, core: int
) -> None:
    ours.close()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    with_torch.run(theirs, side, name, clock, core)


def _as_arrays(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _as_arrays(v) for k, v in tree.items()}
    return tree.numpy()


def answers(
    processes: dict[str, Process], command: str, in_turn: bool = True
) -> dict[str, dict[str, Any]]:
    """Return what each process says to a command, by side."""
    if not in_turn:
        for process in processes.values():
            process.send(command)
        return {side: process.answer() for side, process in processes.items()}
    found = {}
    for side, process in processes.items():
        process.send(command)
        found[side] = process.answer()
    return found


def measured(w: Workload, options: Any) -> dict[str, Any]:
    """Return what is found of one workload, by side."""
    sides = [s for s in with_torch.SIDES if with_torch.is_suitable(s, w)]
    if "PEERS" in os.environ:
        sides.append("JAX")
        if w.kind == "jacobian" and w.name in with_torch.small.SCALAR_CODES:
            sides.append("CasADi")
    core = max(os.sched_getaffinity(0))
    processes = {side: Process(side, w, options.clock, core) for side in sides}
    in_turn = options.clock == "wall"  # processor time does not mind company
    firsts = answers(processes, "first", in_turn)
    found = {s: {"first": a.get("seconds"), "error": a.get("error")} for s, a in firsts.items()}
    values = {s: a["values"] for s, a in firsts.items() if "values" in a}
    for side, answer in answers({s: processes[s] for s in values}, "warm", in_turn).items():
        found[side]["error"] = answer.get("error")
    alive = {side: processes[side] for side in sides if not found[side]["error"]}
    for _ in range(options.rounds):
        for side, answer in answers(alive, f"time {options.seconds}").items():
            least = min(found[side].get("seconds", np.inf), answer.get("seconds", np.inf))
            found[side] |= {"seconds": least, "error": found[side]["error"] or answer.get("error")}
    for side, answer in answers(alive, "memory").items():
        found[side]["mib"] = answer.get("mib")
    for process in processes.values():
        process.end()
    is_double = next(iter(values.values()))[0].dtype == np.float64
    reference = values.get("torch.func") or values["JAX"]
    for side, value in values.items():
        found[side]["deviation"] = deviation = _deviation(value, reference)
        if not deviation <= (1e-7 if is_double else 1e-3):
            found[side]["error"] = f"wrong numbers, by {deviation:.0e} of the largest"
    return {"date": _now(), "sides": found}


def _deviation(value: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Return the largest difference, relative to the largest element of its array."""
    if [v.size for v in value] != [e.size for e in expected]:
        return np.inf
    found = [0.0]
    for v, e in zip(value, expected, strict=True):
        largest = np.abs(e).max(initial=0.0)
        error = np.abs(v.reshape(e.shape) - e).max(initial=0.0)
        found.append(float(error / largest if largest else error))
    return np.inf if np.isnan(found).any() else max(found)


def sparse_measured(name: str, size: int, options: Any) -> dict[str, Any]:
    """Return what is found of one sparse problem, by side."""
    sides = ["ours", "compiled", "asdex"]
    if name == "brusselator roll" and size <= 100:
        sides.append("casadi")
    repeats = SimpleNamespace(
        repeats=1, rounds=max(2, options.rounds // 2), seconds=0.2, clock=options.clock
    )
    return {"date": _now(), **measure(PROBLEMS[name], size, sides, repeats)}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")


def line_of(name: str, sides: dict[str, Any]) -> str:
    """Return what is printed while it is measured."""
    parts = []
    for side, found in sides.items():
        time_ = f"{found['seconds'] * 1e6:.1f}" if found.get("seconds") else "-"
        parts.append(f"{side} {time_}" + (f" ({found['error']})" if found["error"] else ""))
    return f"{name}: " + "; ".join(parts)


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="what has this in its name (repeatable)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu", help="of all times")
    parser.add_argument("--resume", action="store_true", help="only what out/peers.json lacks")
    parser.add_argument("--report", action="store_true", help="write the report only")
    options = parser.parse_args()
    options.rounds, options.seconds = (2, 0.03) if options.quick else (4, 0.08)
    torch.set_num_threads(1)
    if "PEERS" in os.environ:  # processes run in another folder
        os.environ["PEERS"] = os.path.abspath(shutil.which(os.environ["PEERS"]) or sys.executable)
    is_kept = options.only or options.resume or options.report
    raw = json.loads(RAW.read_text()) if RAW.exists() and is_kept else {}
    raw = {"dense": {}, "sparse": {}} | raw
    RAW.parent.mkdir(exist_ok=True)

    def is_chosen(name: str, group: str) -> bool:
        if options.report or (options.resume and name in raw[group]):
            return False
        return not options.only or any(o in f"{group} {name}" for o in options.only)

    def keep(group: str, name: str, found: dict[str, Any]) -> None:
        raw[group][name] = found
        raw["about"] = versions(options.clock)
        RAW.write_text(json.dumps(raw, indent=1))

    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # nothing is compiled yet
        if not (options.report or torch.cuda.is_available()):
            with_torch.warm_up()
        for name, w in WORKLOADS.items():
            if is_chosen(name, "dense"):
                keep("dense", name, measured(w, options))
                print(line_of(name, raw["dense"][name]["sides"]), flush=True)
        if "PEERS" in os.environ:
            for problem, sizes in SPARSE:
                for size in sizes:
                    name = f"{problem}, {size}"
                    if is_chosen(name, "sparse"):
                        keep("sparse", name, sparse_measured(problem, size, options))
                        print(name, f"{time.perf_counter() - start:.0f} s", flush=True)
    if raw.get("about"):
        RESULTS.write_text(report(raw, list(WORKLOADS)))
        draw(raw, list(WORKLOADS), PICTURE)
        print(f"{time.perf_counter() - start:.0f} s; see {RESULTS}, {PICTURE}")


if __name__ == "__main__":
    main()
