"""The naming recorder: a tape that also remembers which operator each equation comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pushforward.recording.recorder import Part
from pushforward.recording.taping import TapingRecorder
from pushforward.rules.registry import Rule


class NamingRecorder(TapingRecorder):
    """Takes no fast path, so that every operator passes `apply`."""

    def __init__(self, randomness: str = "error", name: str = "explain") -> None:
        """Start an empty program."""
        super().__init__(randomness, name, is_kept=False)
        self.has_fast_path = self.defers = False
        self.origins: dict[int, tuple[str, str]] = {}  # variable -> operator, "rule" or "bridge"
        self._current = ("", "")

    def apply(
        self, rule: Rule | None, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Remember the operator while it is recorded."""
        outer = self._current
        name = str(op) if hasattr(op, "overloadpacket") else getattr(op, "__qualname__", str(op))
        self._current = (name, "bridge" if rule is None else "rule")
        try:
            return super().apply(rule, op, args, kwargs)
        finally:
            self._current = outer

    def combine(self, parts: Sequence[Part], out: Tensor) -> int:
        """Append the equation of one output, and note whose it is."""
        variable = super().combine(parts, out)
        self.origins[variable] = self._current
        return variable
