"""Pending: the derivative of the point that was evaluated last, until it is asked for."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np

from pushforward.scipy.arrays import snapshot

T = TypeVar("T")
Key = tuple[Any, ...]


class Pending(Generic[T]):
    """What was computed along with a value. It is handed out once: whoever asks twice may have changed something.

    Several threads may use one: each takes what is there as a whole, or finds nothing.
    """

    def __init__(self) -> None:
        """Expect that derivatives will be asked for."""
        self._found: list[tuple[Key, T]] = []  # at most one; lists are popped by one thread only
        self._is_asked, self._score = True, 0

    def expect_values(self) -> None:
        """Expect that derivatives will be asked for rarely."""
        self._found.clear()
        self._is_asked, self._score = False, -2

    def begin(self, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key | None:
        """Forget the last point; return the key of a new one if its derivative is likely to be asked for.

        It is if those of the last points were, more often than not.
        """
        self._found.clear()
        self._score = max(-2, min(2, self._score + (1 if self._is_asked else -1)))
        self._is_asked = False
        return self.key(x, args, kwargs) if self._score > 0 else None

    def keep(self, key: Key, derivative: T) -> None:
        """Keep the derivative of a point."""
        self._found[:] = [(key, derivative)]

    def taken(self, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> T | None:
        """Return the derivative if it belongs to this point."""
        self._is_asked = True
        try:
            known, derivative = self._found.pop()
        except IndexError:
            return None
        return derivative if known == self.key(x, args, kwargs) else None

    @staticmethod
    def key(x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key | None:
        """Return what tells a point from others; None where that cannot be told."""
        return snapshot((np.asarray(x), *args, *sorted(kwargs.items())))
