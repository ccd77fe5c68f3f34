"""The plan as text."""

from __future__ import annotations

import dataclasses
import math

from pushforward.linear.block import Block
from pushforward.linear.program import LinearProgram
from pushforward.planning.memory import Need
from pushforward.planning.orders import Plan


@dataclasses.dataclass(frozen=True)
class Row:
    """One equation of the program."""

    variable: int
    operator: str
    source: str  # "rule", "bridge", or "input"
    kinds: str  # of linear map
    blocks: str  # shapes and tied axes, in the order chosen


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How a Jacobian is computed: print it.

    Attributes:
        rows: What was recorded, one row for each equation, in order.
        plan: The order chosen (``plan.mode``) and the predictions for all (``plan.predictions``).
        residual_bytes: What the recorded program keeps alive.
        peak_bytes: The most that blocks are expected to hold at once, in the order chosen.
        need: What a call is expected to need in all, at once or in chunks.
        memory_limit: What it may need, if the caller said so.
    """

    rows: list[Row]
    plan: Plan
    residual_bytes: int
    peak_bytes: int
    need: Need
    memory_limit: int | None = None

    @property
    def chunk_size(self) -> int | None:
        """How many columns or rows go at once within the limit: None for all, 0 if one is too many."""
        return None if self.memory_limit is None else self.need.largest_chunk(self.memory_limit)

    def __str__(self) -> str:
        """Return the table."""
        head = ("", "operator", "by", "map", "blocks" if self.plan.mode != "cross" else "")
        lines = [
            head,
            *((f"v{r.variable}", r.operator, r.source, r.kinds, r.blocks) for r in self.rows),
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
        table = [
            "  ".join(
                [*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[-1]]
            ).rstrip()
            for line in lines
        ]
        table.append("")
        for mode, prediction in sorted(
            self.plan.predictions.items(), key=lambda item: item[1].cost.seconds
        ):
            mark = "→" if mode == self.plan.mode else " "
            table.append(f"{mark} {mode:8} {prediction.cost}")
        if self.plan.mode == "cross":
            table.append(f"  eliminate {' '.join(f'v{v}' for v in self.plan.order)}")
        table.append(
            f"memory: blocks at most {size_text(self.peak_bytes)}, "
            f"residuals {size_text(self.residual_bytes)}"
        )
        table += self._needs()
        return "\n".join(table)

    def _needs(self) -> list[str]:
        """Say what a call needs."""
        need, limit = self.need, self.memory_limit
        parts = f"tape {size_text(need.tape)}, Jacobian {size_text(need.result)}"
        lines = [f"a call: about {size_text(need.peak(None))} at its peak ({parts})"]
        if need.num_seeds > 1:
            lines[0] += f"; {size_text(need.peak(1))} with chunk_size=1"
        if limit is not None:
            size = self.chunk_size
            chosen = "too much for any chunk" if size == 0 else f"chunk_size={size}"
            lines.append(f"within {size_text(limit)}: {chosen}")
        return lines


def explain_plan(
    program: LinearProgram,
    plan: Plan,
    inputs: list[Block],
    residual_bytes: int,
    need: Need,
    memory_limit: int | None = None,
) -> Explanation:
    """Describe a program and its plan.

    Args:
        program: What was recorded.
        plan: Its plan.
        inputs: The block of each input.
        residual_bytes: What the tape keeps alive.
        need: What a call needs.
        memory_limit: What it may need.
    """
    prediction = plan.predictions[plan.mode]
    rows = []
    for variable, block in zip(program.inputs, inputs, strict=True):
        shown = prediction.blocks.get(variable, ())
        rows.append(Row(variable, f"input {_times(block.shape)}", "", "", _shown(shown)))
    for equation in program.equations:
        operator, _, source = equation.origin.rpartition(" by ")
        kinds = " + ".join(f"{t.linear_map!r} v{t.variable}" for t in equation.terms)
        shown = prediction.blocks.get(equation.variable, ())
        rows.append(Row(equation.variable, operator, source, kinds, _shown(shown)))
    return Explanation(rows, plan, residual_bytes, prediction.peak_bytes, need, memory_limit)


def _shown(blocks: tuple[Block, ...]) -> str:
    return " + ".join(repr(b).removeprefix("Block") for b in blocks)


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "()"


def size_text(size: int) -> str:
    """Return a number of bytes in the unit that fits."""
    if not size:
        return "0 B"
    power = min(int(math.log(size, 1024)), 3)
    return f"{size / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
