"""Bicolouring: some entries are read from combined columns, the others from combined rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pushforward.sparse.pattern import Pattern

MOST_LEVELS = 32  # how many degrees are looked at, from the highest down
MOST_SPLITS = 3  # how many of these are coloured


def dense_rows(pattern: Pattern, below: int) -> Iterator[Tensor]:
    """Yield masks ``(rows,)`` of the densest rows, to be read by rows where the rest is read by columns.

    The most promising first: by what the two parts need at least in sum, which is less than ``below``.

    References:
        Coleman, Verma: The efficient computation of sparse Jacobian matrices using automatic differentiation,
        SIAM J. Sci. Comput. 19 (1998), where a partition in two is grown row by row.
    """
    lengths = pattern.indptr.diff()
    levels = lengths.unique()[:-1].flip(0)[:MOST_LEVELS].tolist()
    bounds = []
    for level in levels:
        taken = pattern.cols[(lengths > level)[pattern.rows]]
        bounds.append(level + int(torch.bincount(taken).max()))
    for bound, level in sorted(zip(bounds, levels, strict=True))[:MOST_SPLITS]:
        if bound < below:
            yield lengths > level
