"""Sequential loops over index arrays: compiled by numba where it is installed, plain Python elsewhere.

Greedy colourings go from vertex to vertex, and what one does depends on all before. The loops are written once,
in the part of Python that numba compiles, and give the same result either way.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Array = Any  # an integer array with one axis: numpy's when compiled, else a list

# Elements of all arguments: below this plain Python takes less than the 0.5 s to import and load numba.
FEW = 50_000


class Loop:
    """A function of index tensors and numbers that fills its last tensor and returns a number."""

    def __init__(self, function: Callable[..., int]) -> None:
        """Wrap the function; nothing is compiled before it is needed."""
        self.function = function
        self.compiled: Callable[..., int] | None = None
        self.__doc__ = function.__doc__

    def __call__(self, *arguments: Tensor | int) -> int:
        """Run on tensors; only the last one is sure to be changed, the others may be."""
        size = sum(len(x) for x in arguments if isinstance(x, Tensor))
        if self.compiled is None and size > FEW and has_numba():
            self.compiled = _compiled(self.function)
        if self.compiled is not None:
            return int(
                self.compiled(*(x.numpy() if isinstance(x, Tensor) else x for x in arguments))
            )
        lists = [x.tolist() if isinstance(x, Tensor) else x for x in arguments]
        found = int(self.function(*lists))
        result = arguments[-1]
        assert isinstance(result, Tensor)
        result.copy_(torch.tensor(lists[-1], dtype=result.dtype))
        return found


def has_numba() -> bool:
    """Return whether numba is installed, and goes with the numpy that is."""
    try:
        importlib.import_module("numba")
    except ImportError:
        return False
    return True


def _compiled(function: Callable[..., int]) -> Callable[..., int]:
    import numba

    try:
        compiled: Callable[..., int] = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # there is no folder to keep it in
        compiled = numba.njit(nogil=True)(function)
    return compiled
