"""What solvers are given: functions or adapters, where to start, and options that are ours to choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from pushforward.errors import ArgumentValueError, message
from pushforward.scipy.arrays import Array

T = TypeVar("T")


def adapted(kind: type[T], name: str, func: Any, **options: Any) -> T:
    """Return what calls ``func`` with arrays; an adapter itself, which has its options already."""
    if not isinstance(func, kind):
        make: Callable[..., T] = kind
        return make(func, name=name, **options)
    for option, value in options.items():
        if value not in (None, False, "dense"):
            raise ArgumentValueError(
                message(
                    name,
                    option,
                    f"{value!r} beside a {kind.__name__}",
                    "none, as that has its own",
                    f"Give it to {kind.__name__}.",
                )
            )
    return func


def start(value: Any) -> Array:
    """Return an array that SciPy may keep."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    found = np.array(value)
    return found if found.dtype.kind == "c" else found.astype(np.float64)


def starting_once(func: Callable[..., Array]) -> Callable[..., Array]:
    """Return ``func`` as solvers of MINPACK get it: its first result answers all calls until the point is another.

    SciPy calls what it gives them once or twice before, for the shape of what is returned.
    """
    first: list[tuple[bytes, Array]] | None = None

    def called(x: Array, *args: Any) -> Array:
        nonlocal first
        if first is None:
            found = func(x, *args)
            first = [(x.tobytes(), found.copy())]  # MINPACK writes to what it gets
            return found
        if first:
            start, found = first[0]
            if x.tobytes() == start:
                return found.copy()
            first.clear()
        return func(x, *args)

    return called


def refuse(name: str, options: dict[str, Any], *names: str) -> None:
    """Refuse what is computed here."""
    for each in names:
        if each in options:
            raise ArgumentValueError(
                message(
                    name,
                    each,
                    f"{options[each]!r:.60}",
                    "none, as derivatives are computed",
                    f"Leave it out, or call SciPy's own {name}.",
                )
            )
