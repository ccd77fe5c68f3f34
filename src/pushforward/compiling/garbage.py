"""Garbage in cycles: kept while graphs are traced and compiled.

What is made then lives until the end, nearly all of it. To look for the rest, everything that was ever imported is
looked through, too: a quarter of a second, once or more in a first call.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_num_within = 0
_is_collecting = False  # outside


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """Collect no garbage until the end, in all threads."""
    global _num_within, _is_collecting
    with _lock:
        _num_within += 1
        if _num_within == 1:
            _is_collecting = gc.isenabled()
            gc.disable()
    try:
        yield
    finally:
        with _lock:
            _num_within -= 1
            if not _num_within and _is_collecting:
                gc.enable()
