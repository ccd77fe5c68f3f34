"""What has no derivative, or none of ours: the table in docs/reference/coverage.md is generated from this one."""

from __future__ import annotations

import dataclasses
import re

import torch


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Derivatives of an entry that raise, with the error that the user gets."""

    entry: str
    derivatives: str  # a regular expression for their names, as ``ours.derivative`` takes them
    error: str  # the type's name
    message: str  # a regular expression for the start of the message, or part of it
    reason: str
    example: str  # a derivative that shows it
    shown: str = "all"  # the derivatives, for the reader
    dtype: torch.dtype = torch.float64
    sample: int = 0  # one that shows it

    def covers(self, derivative: str, message: str) -> bool:
        """Tell whether a failure is this refusal."""
        return (
            re.fullmatch(self.derivatives, derivative) is not None
            and message.startswith(f"raised {self.error}: ")
            and re.search(self.message, message) is not None
        )


REFUSALS: tuple[Refusal, ...] = ()


@dataclasses.dataclass(frozen=True)
class Undefined:
    """Derivatives that do not exist at the samples' points: what comes out is finite, and compared with nothing."""

    entry: str
    derivatives: str
    reason: str
    shown: str

    def covers(self, entry: str, derivative: str) -> bool:
        """Tell whether a derivative of an entry is this one."""
        return entry == self.entry and re.fullmatch(self.derivatives, derivative) is not None


UNDEFINED: tuple[Undefined, ...] = (
    Undefined(
        "linalg.norm.subgradients_at_zero",
        r"jac\w+\(.*\)",
        "a norm has a kink at zero: its subgradient 0 is taken there, and no second derivative exists",
        "second derivatives",
    ),
)

# Entries that use PyTorch's own derivative of a single operator: entry -> nodes.
BLACK_BOXES: dict[str, tuple[str, ...]] = {}


def refusals_of(entry: str) -> list[Refusal]:
    """Return the exceptions of one entry."""
    return [refusal for refusal in REFUSALS if refusal.entry == entry]
