"""What a compiled function runs, and where its time goes."""

from __future__ import annotations

import dataclasses
import html
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pushforward.compiling.stage import Stage

REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Step:
    """One operator of a graph."""

    name: str
    operator: str
    shape: str  # and dtype of the result
    seconds: float  # alone, called by PyTorch's own interpreter of graphs


@dataclasses.dataclass(frozen=True)
class GraphExplanation:
    """What a compiled function runs: print it.

    Attributes:
        steps: The operators in order, with how long each takes by itself.
        backend: What runs them.
        num_captured: How many captured tensors are inputs.
        compile_seconds: How long tracing and compiling took.
        call_seconds: How long the graph takes, as it is run.
        guard_seconds: How long it takes to see that nothing changed that was captured.
    """

    steps: list[Step]
    backend: str
    num_captured: int
    compile_seconds: float
    call_seconds: float
    guard_seconds: float

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def __str__(self) -> str:
        """Return the table."""
        head = ("", "operator", "result", "µs alone")
        lines = [
            head,
            *((s.name, s.operator, s.shape, f"{s.seconds * 1e6:.1f}") for s in self.steps),
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        table = [
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join(
            [
                *table,
                "",
                f"{len(self.steps)} operators, {self.num_captured} captured tensors, backend {self.backend!r}",
                f"compiled in {self.compile_seconds:.3g} s; a call: graph {self.call_seconds * 1e6:.1f} µs, "
                f"guards {self.guard_seconds * 1e6:.1f} µs",
            ]
        )


class _Timed(fx.Interpreter):
    """Runs a graph, and remembers how long each node took at its fastest."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.seconds: dict[fx.Node, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one."""
        start = time.perf_counter()
        result = super().run_node(n)
        seconds = time.perf_counter() - start
        self.seconds[n] = min(seconds, self.seconds.get(n, seconds))
        return result


def steps_of(stage: Stage, tensors: Sequence[Tensor]) -> list[Step]:
    """Return the operators of a graph with their times, on copies of its inputs."""
    timed = _Timed(stage.graph)
    with torch.no_grad():
        for _ in range(REPEATS):
            timed.run(*[t.detach().clone() for t in tensors])
    return [
        Step(n.name, str(n.target), _shown(n.meta.get("val")), timed.seconds[n])
        for n in stage.graph.graph.nodes
        if n.op == "call_function"
    ]


def fastest(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes at its fastest."""
    found = []
    for _ in range(2 * REPEATS):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__
