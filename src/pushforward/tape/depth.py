"""How many recordings are on in a thread, each within the one before."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable

from torch import Tensor

from pushforward.errors import UnsupportedError


class _Thread(threading.local):
    depth = 0  # how many runs are on
    count = 0  # how many began

    def __init__(self) -> None:
        # What may have got a history that nobody watched: the outermost run takes that away.
        self.written: list[weakref.ref[Tensor]] = []

    def leave_written(self, tensors: Iterable[Tensor]) -> None:
        """Leave tensors to the outermost run."""
        self.written += map(weakref.ref, tensors)

    def take_written(self) -> list[Tensor]:
        """Return those that were left, and live."""
        found = [tensor for ref in self.written if (tensor := ref()) is not None]
        self.written.clear()
        return found


thread = _Thread()


def run_depth() -> int:
    """Return how many recordings are on in this thread."""
    return thread.depth


def check_depth(name: str, depth: int) -> None:
    """Refuse functions that were suspended in between: state that belongs to the thread was that of another run.

    Raises:
        UnsupportedError: Other recordings began, and are still on, or ended.
    """
    if thread.depth != depth + 1:
        raise UnsupportedError(
            f"{name}: the function was suspended (by a greenlet, say) while another recording began or ended in its "
            "thread: got recordings that cross, expected nested ones. Give each a thread of its own."
        )
