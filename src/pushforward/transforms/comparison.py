"""What `check_derivatives` found, as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from pushforward.errors import PushforwardError

Verdict = Literal["agrees", "differs", "unclear"]


class DerivativeError(PushforwardError, AssertionError):
    """Derivatives differ from differences, or from each other."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two ways to the same numbers."""

    what: str
    order: int
    error: float  # the largest difference, relative to the largest number
    tolerance: float
    verdict: Verdict
    where: str = ""  # the worst place, where they differ


@dataclasses.dataclass(frozen=True)
class Check:
    """What `check_derivatives` found: print it.

    Attributes:
        comparisons: Of the function as a whole.
        rules: The same for every operator in it whose rule is the user's, by name.
        functions: The names of the ``autograd.Function``s in it, whose derivatives are their own.
    """

    comparisons: list[Comparison]
    rules: dict[str, list[Comparison]]
    functions: list[str]

    @property
    def is_right(self) -> bool:
        """Whether nothing differs."""
        every = [*self.comparisons, *(c for found in self.rules.values() for c in found)]
        return all(c.verdict != "differs" for c in every)

    def __str__(self) -> str:
        """Return the table, and who is to blame."""
        lines = list(_lines(self.comparisons, ""))
        for name, found in self.rules.items():
            lines += _lines(found, f"rule of {name}: ")
        wrong = [n for n, found in self.rules.items() if any(c.verdict == "differs" for c in found)]
        if self.is_right:
            return "\n".join(lines)
        if wrong:
            lines.append(f"Wrong by itself: the rule of {', '.join(wrong)}, which is yours.")
        elif self.functions:
            names = ", ".join(self.functions)
            lines.append(f"Look first at the derivatives that the function brings along: {names}.")
        else:
            lines.append(
                "No rule of yours and no autograd.Function is in it: the fault is pushforward's, or the function has a "
                "kink here."
            )
        return "\n".join(lines)


def _lines(found: Sequence[Comparison], prefix: str) -> Iterator[str]:
    for c in found:
        place = f" at {c.where}" if c.where else ""
        text = f"{prefix}{c.what}"
        yield f"{c.verdict:8} order {c.order}  {text:44} {c.error:8.1e} of {c.tolerance:.1e}{place}"
