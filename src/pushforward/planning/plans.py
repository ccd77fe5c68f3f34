"""The one store of what is kept for calls to come: how often a signature was seen, its kernels, its order."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Hashable, Iterator
from typing import Any

MAX_PLANS = 2048


class Store:
    """Bounded, and safe under threads: what was stored first is forgotten first."""

    def __init__(self, limit: int) -> None:
        """Start empty."""
        self.limit = limit
        self._entries: dict[tuple[str, Hashable], Any] = {}
        self._renew_lock()
        if hasattr(os, "register_at_fork"):  # another thread may hold it then
            os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()  # what is forgotten may call us while it ends

    def find(self, kind: str, key: Hashable) -> Any:
        """Return what is stored, None if nothing is."""
        return self._entries.get((kind, key))

    def keep(self, kind: str, key: Hashable, value: Any) -> None:
        """Store ``value``."""
        with self._lock:
            self._entries[kind, key] = value
            while len(self._entries) > self.limit:
                del self._entries[next(iter(self._entries))]

    def drop(self, kind: str, key: Hashable) -> None:
        """Forget one."""
        with self._lock:
            self._entries.pop((kind, key), None)

    def of_kind(self, kind: str) -> list[Any]:
        """Return all that is stored of a kind, oldest first."""
        with self._lock:
            return [value for (k, _), value in self._entries.items() if k == kind]

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._entries.clear()

    @contextlib.contextmanager
    def forgetting(self) -> Iterator[None]:
        """Forget what is stored within: it may hold symbols, which mean nothing afterwards."""
        before = set(self._entries)
        try:
            yield
        finally:
            with self._lock:
                for key in self._entries.keys() - before:
                    del self._entries[key]

    def __len__(self) -> int:
        """Return how much is stored."""
        return len(self._entries)


PLANS = Store(MAX_PLANS)
