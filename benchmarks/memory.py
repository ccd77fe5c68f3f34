"""Peak memory of ours beside torch.func's, and beside what we expect: ``make bench-memory``.

Counted is what PyTorch allocates, byte by byte, in a repeated call (after three) and beyond what was there before.
Each call has a process of its own, forked from one that has the libraries and workloads. By one: one column or row at a
time, ``chunk_size=1`` of both libraries, by hand where torch.func has no such option; a peer that cannot do it has 0.
Need is what ``chunk_size='auto'`` and ``memory_limit`` go by, over what was measured. Ratios in brackets, of peaks
below 256 KiB, have no weight: they are mostly fixed costs, and none fills a memory.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
from collections.abc import Callable
from typing import Any

import memory_cases
import torch
from peaks import bytes_of
from peer_cases import nets, small
from peer_cases.workload import WORKLOADS, Workload
from torch import Tensor, nn

import pushforward
from pushforward.planning.plans import PLANS
from pushforward.transforms.memory import NEEDS

MODULES = (nets, small, memory_cases)  # which register their workloads
KINDS = ("jacfwd", "jacrev", "hessian")
SMALL = 2**18  # bytes


def derivative(library: Any, w: Workload, chunk_size: Any) -> Callable[..., Any]:
    """Return what is measured."""
    options = {} if chunk_size is None else {"chunk_size": chunk_size}
    found: Callable[..., Any]
    if library is torch.func and options and w.kind != "jacrev":  # which alone takes chunks there
        found = _by_hand(torch.func.grad(w.function) if w.kind == "hessian" else w.function)
    else:
        found = getattr(library, w.kind)(w.function, **options)
    return found if w.batch is None else torch.func.vmap(found, w.batch)


def _by_hand(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return torch.func's jacfwd of a function of one tensor, a column at a time."""

    def columns(x: Tensor) -> Tensor:
        def column(direction: Tensor) -> Tensor:
            return torch.func.jvp(function, (x,), (direction,))[1]

        directions = torch.eye(x.numel(), dtype=x.dtype).reshape(x.numel(), *x.shape)
        found = torch.func.vmap(column, out_dims=-1, chunk_size=1)(directions)
        return found.reshape(*found.shape[:-1], *x.shape)

    return columns


def peak(library: Any, w: Workload, chunk_size: int | None) -> int:
    """Return how many bytes a repeated call needs; 0 where torch.func cannot make it."""
    call = derivative(library, w, chunk_size)
    try:
        for _ in range(3):
            call(*w.args)
    except NotImplementedError:  # forward mode of some operators
        if library is torch.func:
            return 0
        raise
    return bytes_of(lambda: call(*w.args), keeps_plans=True)[0]


def needs(w: Workload) -> tuple[int, int]:
    """Return how many bytes are expected for one sweep, and by one."""
    call = derivative(pushforward, w, "auto")
    for _ in range(3):  # by the third it is known where entries are few
        call(*w.args)
    need = PLANS.of_kind(NEEDS)[-1]
    return need.peak(None), need.peak(1)


def measured(name: str, is_trained: bool) -> list[int]:
    """Return the peaks of one workload, in the order of the table, each from a process of its own."""
    calls: list[tuple[Any, ...]] = [
        (peak, library, chunk_size)
        for chunk_size in (None, 1)
        for library in (pushforward, torch.func)
    ]
    found: list[int] = []
    for call in [*calls, (needs,)]:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(
            target=_forked, args=(theirs, name, is_trained, call)
        )
        process.start()
        theirs.close()
        got = ours.recv()
        process.join()
        found += got if isinstance(got, tuple) else [got]
    return found


def _forked(connection: Any, name: str, is_trained: bool, call: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    w = WORKLOADS[name]
    for value in w.data.values():
        if isinstance(value, nn.Module):
            value.requires_grad_(is_trained)
    if call[0] is needs:
        connection.send(needs(w))
    else:
        _, library, chunk_size = call
        connection.send(peak(library, w, chunk_size))


def _row(name: str, found: list[int]) -> str:
    ours, theirs, our_ones, their_ones, need, need_by_one = found
    parts = [f"{name:34}"]
    for mine, peer, expected in ((ours, theirs, need), (our_ones, their_ones, need_by_one)):
        ratio = f"{mine / peer:.2f}" if peer else "-"
        if max(mine, peer) < SMALL:
            ratio = f"({ratio})"
        parts.append(
            f"{mine / 1024:10.1f} {peer / 1024:10.1f} {ratio:>8} {expected / mine:6.2f}   "
        )
    return " ".join(parts).rstrip()


def _summary(what: str, pairs: list[tuple[int, int]]) -> str:
    pairs = [(mine, peer) for mine, peer in pairs if peer]
    ratios = [mine / peer for mine, peer in pairs]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    large = [mine / peer for mine, peer in pairs if max(mine, peer) >= SMALL]
    worst = f", worst from 256 KiB on {max(large):.2f}" if large else ""
    return (
        f"{what}: at most torch.func's in {sum(r <= 1 for r in ratios)} of {len(ratios)}, "
        f"geometric mean {mean:.2f}, worst {max(ratios):.2f}{worst}"
    )


def main() -> None:
    """Print a row a workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="workloads whose names contain this")
    parser.add_argument(
        "--trained", action="store_true", help="networks whose parameters require grad, alone"
    )
    options = parser.parse_args()
    print(f"torch {torch.__version__}; KiB allocated at the peak of a repeated call")
    print(f"{'':34} {'one sweep':>10} {'torch.func':>10} {'ratio':>8} {'need':>6}   ", end=" ")
    print(f"{'by one':>10} {'torch.func':>10} {'ratio':>8} {'need':>6}")
    rows = []
    for name, w in WORKLOADS.items():
        is_network = any(isinstance(value, nn.Module) for value in w.data.values())
        if w.kind not in KINDS or options.only not in name or (options.trained and not is_network):
            continue
        rows.append(measured(name, options.trained))
        print(_row(name, rows[-1]), flush=True)
    print(_summary("One sweep", [(r[0], r[1]) for r in rows]))
    print(_summary("By one", [(r[2], r[3]) for r in rows]))


if __name__ == "__main__":
    main()
