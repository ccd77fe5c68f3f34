"""One Jacobian over 1, 2, ... processes: the time of a call, and the bytes that a process sends.

Run by ``make bench-distributed``. Each number of processes is started anew, with one thread a process, over gloo. Times
are those of the slowest process, medians of several calls: of the processor, which other work on the machine does not
change much, and by the clock. What is sent is counted by PyTorch's own
collectives as they are called: for an all-reduce of n bytes over P processes 2 (P - 1) / P n, for an all-gather
(P - 1) / P of the result, as rings send.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

import pushforward
from pushforward import distributed

REPETITIONS = 7


class Sent(TorchDispatchMode):
    """Count the bytes that this process sends by collectives, as a ring sends them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size, self.bytes = size, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func)
        if name.startswith("_c10d_functional.") and isinstance(result, Tensor):
            share = (self._size - 1) / self._size
            if "all_reduce" in name:
                self.bytes += 2 * share * result.nbytes
            elif "all_gather" in name or "reduce_scatter" in name:
                self.bytes += share * max(result.nbytes, args[0].nbytes)
        return result


def cases(mesh: DeviceMesh) -> dict[str, Callable[[], Any]]:
    """Return what is called, by name."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 256)
    )
    samples = distribute_tensor(torch.randn(64, 256), mesh, [Shard(0)])
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    share = 512 // mesh.size()
    mine = torch.randn(512, 256)[mesh.get_local_rank() * share :][:share]

    def many(x: Tensor) -> Tensor:
        return torch.softmax(network(x), 0)

    def outputs(parameters: Any) -> Tensor:
        return functional_call(network, parameters, (mine,))

    gauss_newton = distributed.gauss_newton_operator(outputs, parameters, mesh=mesh)
    vector = torch.randn(gauss_newton.shape[1])
    rows = distributed.jacobian(many, mesh=mesh, share="rows", mode="reverse")
    columns = distributed.jacobian(many, mesh=mesh, share="columns", mode="forward")
    per_sample = distributed.vmap(pushforward.jacrev(network))
    grid = torch.randn(400, 400)
    sparse = distributed.jacobian(_reaction, mesh=mesh, share="columns", output="csc")
    matrix = sparse(grid)
    flat = torch.randn(grid.numel())
    wide = torch.randn(8, 256)
    return {
        "Jacobian 2048x2048, rows (reverse)": lambda: rows(wide),
        "Jacobian 2048x2048, columns (forward)": lambda: columns(wide),
        "Jacobians of 64 samples (vmap)": lambda: per_sample(samples),
        "Gauss-Newton product, 512 samples": lambda: gauss_newton @ vector,
        "sparse Jacobian 160000², columns": lambda: sparse(grid),
        "product with it": lambda: matrix @ flat,
    }


def _reaction(u: Tensor) -> Tensor:
    around = u.roll(1, 0) + u.roll(-1, 0) + u.roll(1, 1) + u.roll(-1, 1)
    return (around - 4 * u) + u * u.tanh() - u.sin() ** 3


def measure(rank: int, size: int, file: str) -> None:
    """Measure in one process of a group; the first one prints."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{file}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(minutes=5),
    )
    mesh = init_device_mesh("cpu", (size,))
    found = {}
    for name, call in cases(mesh).items():
        for _ in range(3):
            call()
        with Sent(size) as sent:
            call()
        times = []
        for _ in range(REPETITIONS):
            torch.distributed.barrier()
            start = time.perf_counter(), time.process_time()
            call()
            end = time.perf_counter(), time.process_time()
            spent = torch.tensor(end, dtype=torch.float64) - torch.tensor(
                start, dtype=torch.float64
            )
            torch.distributed.all_reduce(spent, torch.distributed.ReduceOp.MAX)
            times.append(spent.tolist())
        clock, processor = map(statistics.median, zip(*times, strict=True))
        found[name] = [processor, clock, sent.bytes]
    if not rank:
        print(json.dumps(found))
    torch.distributed.destroy_process_group()


def group(size: int) -> dict[str, list[float]]:
    """Start a group of processes, and return what the first one printed."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "meeting")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", __file__, "--file", file, "--size", str(size)]
        started = [
            subprocess.Popen(
                [*command, "--rank", str(rank)], env=environment, stdout=subprocess.PIPE, text=True
            )
            for rank in range(size)
        ]
        printed = [process.communicate()[0] for process in started]
        if any(process.returncode for process in started):
            raise SystemExit(f"a process of a group of {size} failed")
    found: dict[str, list[float]] = json.loads(printed[0].splitlines()[-1])
    return found


def main() -> None:
    """Measure groups of growing size, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    for option in ("--rank", "--size"):
        parser.add_argument(option, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.file:
        measure(given.rank, given.size, given.file)
        return
    tables = {size: group(size) for size in given.sizes}
    first = tables[given.sizes[0]]
    print("ms of the processor (speedup) / ms by the clock (speedup), KiB that a process sends")
    heads = [f"{size} process{'es' if size > 1 else ''}" for size in given.sizes]
    print(" " * 38 + "".join(f"{head:>44}" for head in heads))
    for name, (processor, clock, _) in first.items():
        cells = []
        for size in given.sizes:
            p, c, sent = tables[size][name]
            times = f"{1e3 * p:8.2f} ({processor / p:4.2f}) /{1e3 * c:8.2f} ({clock / c:4.2f})"
            cells.append(f"{times},{sent / 1024:8.1f}")
        print(f"{name:38}" + "".join(f"{cell:>44}" for cell in cells))


if __name__ == "__main__":
    main()
