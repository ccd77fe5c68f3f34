"""Garbage in cycles: kept while graphs are traced and compiled.

What is made then lives until the end, nearly all of it. To look for the rest, everything that was ever imported is
looked through, too: a quarter of a second, once or more in a first call.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """Collect no garbage until the end, in all threads: of which one compiles at a time."""
    is_collecting = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if is_collecting:
            gc.enable()
