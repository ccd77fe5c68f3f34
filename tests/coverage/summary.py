"""The figures of a run, as lines: printed by pytest at its end and by ``report.py``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence


@dataclasses.dataclass(frozen=True)
class Figures:
    """One entry's share of the table."""

    entry: str
    num_samples: int
    num_directional: int
    num_second: int
    is_passed: bool
    has_black_box: bool
    is_refused: bool  # some derivative raises, as the table of exceptions says
    torch_func_failures: int


def lines(figures: Sequence[Figures]) -> Iterator[str]:
    """Yield the table."""
    passed = [f for f in figures if f.is_passed]
    own = sum(not f.has_black_box and not f.is_refused for f in passed)
    boxed = sum(f.has_black_box and not f.is_refused for f in passed)
    refused = sum(f.is_refused for f in passed)
    complete = sum(not f.torch_func_failures for f in figures)
    samples = sum(f.num_samples for f in figures)
    directional = sum(f.num_directional for f in figures)
    wrong = sum(f.torch_func_failures for f in figures)
    untouched = sum(not f.has_black_box for f in figures)
    yield f"op_db: {len(figures)} entries, {samples} samples ({directional} of them by directions)"
    share = untouched / max(1, len(figures))
    yield f"pushforward        by own rules {own}, by black boxes too {boxed}, refused in part {refused},"
    yield f"                   failed {len(figures) - len(passed)}; entries without any black box: {share:.1%}"
    yield f"torch.func.jacfwd  right on all samples {complete}, not on all {len(figures) - complete} ({wrong} samples)"
