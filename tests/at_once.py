"""Threads that start together, and take turns more often than Python lets them."""

import sys
import threading
from collections.abc import Callable


def at_once(work: Callable[[int], None], num_threads: int, interval: float) -> None:
    """Call ``work(0)``, ``work(1)``, ... in threads that are switched every ``interval`` seconds; wait for all."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(num_threads)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
