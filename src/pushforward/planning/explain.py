"""The plan as text."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import Any

from pushforward.linear.axes import shape_text
from pushforward.linear.block import Block
from pushforward.linear.program import LinearProgram
from pushforward.planning.costs import three_digits
from pushforward.planning.drawing import draw
from pushforward.planning.memory import Need
from pushforward.planning.orders import Plan
from pushforward.tape.lines import Line


@dataclasses.dataclass(frozen=True)
class Row:
    """One equation of the program."""

    variable: int
    operator: str
    source: str  # "rule", "bridge", or "input"
    kinds: str  # of linear map
    blocks: str  # shapes and tied axes, in the order chosen; as they are pushed, where that is cross-country
    line: Line | None = None  # of the caller's code, of PyTorch's where that is all there is
    sources: tuple[int, ...] = ()  # the variables that it is made of
    shadows: tuple[Block, ...] = ()  # the blocks, with tensors of the meta device

    @property
    def name(self) -> str:
        """The variable and what made it, in short."""
        words = self.operator.split(".")
        return f"v{self.variable} {words[1] if len(words) > 1 else self.operator}"


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
        lines = self._table()
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
        table = [
            "  ".join(
                [*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[-1]]
            ).rstrip()
            for line in lines
        ]
        table.append("")
        for mark, mode, cost in self._orders():
            table.append(f"{mark or ' '} {mode:8} {cost}")
        return "\n".join([*table, *self._rest()])

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""

        def row(cells: Sequence[str], tag: str = "td") -> str:
            inside = "".join(
                f'<{tag} style="text-align: left; white-space: pre">{html.escape(cell)}</{tag}>'
                for cell in cells
            )
            return f"<tr>{inside}</tr>"

        head, *rows = self._table()
        table = "".join([row(head, "th"), *map(row, rows)])
        orders = "".join(map(row, self._orders()))
        rest = html.escape("\n".join(self._rest()))
        return f"<table>{table}</table><table>{orders}</table><pre>{rest}</pre>"

    def plot(self, ax: Any = None) -> Any:
        """Draw the graph: a picture of the blocks' structure for each variable, inputs at the top.

        Args:
            ax: The axes of matplotlib to draw into; None for new ones.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed; ``pip install 'pushforward[plot]'`` brings it.
        """
        orders = [f"{mark}{mode} {cost.partition(',')[0]}" for mark, mode, cost in self._orders()]
        names = {row.variable: row.name for row in self.rows}
        sources = {row.variable: row.sources for row in self.rows}
        blocks = {row.variable: row.shadows for row in self.rows}
        return draw(ax, names, sources, blocks, "   ".join(orders), self.plan.mode == "reverse")

    def _table(self) -> list[tuple[str, ...]]:
        """Return the rows as texts, a head before them."""
        is_cross = self.plan.mode == "cross"
        head = ("", "operator", "by", "map", "blocks, pushed" if is_cross else "blocks", "line")
        rows = [
            (f"v{r.variable}", r.operator, r.source, r.kinds, r.blocks, str(r.line or ""))
            for r in self.rows
        ]
        width = len(head) if any(r.line for r in self.rows) else len(head) - 1
        return [line[:width] for line in (head, *rows)]

    def _orders(self) -> list[tuple[str, str, str]]:
        """Return the orders, the cheapest first: a mark if it is chosen, its name, its cost."""
        predictions = sorted(self.plan.predictions.items(), key=lambda item: item[1].cost.seconds)
        return [
            ("→" if mode == self.plan.mode else "", mode, str(found.cost))
            for mode, found in predictions
        ]

    def _rest(self) -> list[str]:
        """Say in which order vertices go, and what memory is needed."""
        lines = []
        if self.plan.mode == "cross":
            lines.append(f"  eliminate {' '.join(f'v{v}' for v in self.plan.order)}")
        lines.append(
            f"memory: blocks at most {size_text(self.peak_bytes)}, "
            f"residuals {size_text(self.residual_bytes)}"
        )
        return lines + self._needs()

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
    *,
    lines: Sequence[Line | None] = (),
) -> Explanation:
    """Describe a program and its plan.

    Args:
        program: What was recorded.
        plan: Its plan.
        inputs: The block of each input.
        residual_bytes: What the tape keeps alive.
        need: What a call needs.
        memory_limit: What it may need.
        lines: Where each node of the graph was made.
    """
    prediction = plan.predictions[plan.mode]
    pushed = plan.predictions.get("forward", prediction)
    blocks = (pushed if plan.mode == "cross" else prediction).blocks
    rows = []
    for variable, block in zip(program.inputs, inputs, strict=True):
        shadows = blocks.get(variable, ())
        name = f"input {shape_text(block.shape)}"
        rows.append(Row(variable, name, "", "", _shown(shadows), shadows=shadows))
    for equation in program.equations:
        operator, _, source = equation.origin.rpartition(" by ")
        kinds = " + ".join(f"{t.linear_map!r} v{t.variable}" for t in equation.terms)
        shadows = blocks.get(equation.variable, ())
        line = lines[equation.place] if 0 <= equation.place < len(lines) else None
        sources = tuple(t.variable for t in equation.terms)
        rows.append(
            Row(equation.variable, operator, source, kinds, _shown(shadows), line, sources, shadows)
        )
    return Explanation(rows, plan, residual_bytes, prediction.peak_bytes, need, memory_limit)


def _shown(blocks: tuple[Block, ...]) -> str:
    return " + ".join(repr(b).removeprefix("Block") for b in blocks)


def size_text(size: int) -> str:
    """Return a number of bytes in the unit that fits."""
    if not size:
        return "0 B"
    power = min(int(math.log(size, 1024)), 3)
    return f"{three_digits(size / 1024**power)} {('B', 'KiB', 'MiB', 'GiB')[power]}"
