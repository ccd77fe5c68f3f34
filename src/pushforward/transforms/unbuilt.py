"""Sparse results while a graph is traced, which knows dense tensors only: matrices are put together afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from pushforward.errors import UnsupportedError, message


@dataclasses.dataclass
class Checked:
    """Index tensors that plans depend on, and copies of what they were."""

    indices: list[Tensor] = dataclasses.field(default_factory=list)
    known: list[Tensor] = dataclasses.field(default_factory=list)


class _Local(threading.local):
    checked: Checked | None = None


_local = _Local()


class Unbuilt:
    """The values of a sparse matrix, and what puts it together."""

    def __init__(self, values: Tensor, build: Callable[[Tensor], Tensor]) -> None:
        """Keep both."""
        self.entries, self.build = values, build

    def __getattr__(self, name: str) -> Any:
        """Refuse to compute with it."""
        raise UnsupportedError(
            message(
                "compile",
                "the function",
                f"a sparse Jacobian of which it uses {name!r}",
                "one that it returns",
                "Return it, and compute with it outside.",
            )
        )


@contextlib.contextmanager
def put_off() -> Iterator[Checked]:
    """Within, sparse results are `Unbuilt`; what their plans depend on is collected."""
    before, _local.checked = _local.checked, Checked()
    try:
        yield _local.checked
    finally:
        _local.checked = before


def is_put_off() -> bool:
    """Tell whether a graph is traced to be compiled."""
    return _local.checked is not None


def built(values: Tensor, build: Callable[[Tensor], Tensor]) -> Any:
    """Return the matrix, or put it off."""
    return build(values) if _local.checked is None else Unbuilt(values, build)


def depend(met: list[Tensor], known: list[Tensor]) -> None:
    """Note that what is computed depends on the elements of index tensors."""
    if _local.checked is not None:
        _local.checked.indices += met
        _local.checked.known += known
