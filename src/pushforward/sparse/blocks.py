"""Blocks: a compressed sparse matrix as one of small dense blocks."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pushforward.sparse.entries import rows_of, starts_of
from pushforward.sparse.layout import Layout


@dataclasses.dataclass(slots=True)
class Blocked:
    """Where the values of a matrix stand in its blocks."""

    starts: Tensor  # (rows of blocks + 1,)
    columns: Tensor  # (blocks,): columns of blocks, sorted within each row
    size: tuple[int, int]  # of a block
    places: Tensor  # of each value, in the flattened blocks

    def filled(self, values: Tensor) -> Tensor:
        """Return the blocks ``(blocks, rows, columns)``; what is no entry is zero."""
        shape = (len(self.columns), *self.size)
        zeros = torch.zeros(torch.Size(shape).numel(), dtype=values.dtype, device=values.device)
        return zeros.index_put((self.places,), values).reshape(shape)


def blocked(known: Layout, height: int, width: int) -> Blocked:
    """Return the layout in blocks of ``height`` times ``width``, which divide rows and columns."""
    num_rows, num_columns = known.shape
    wide = num_columns // width if width else 0
    rows = rows_of(known.starts)
    keys = rows // max(height, 1) * wide + known.columns // max(width, 1)
    present, number = torch.unique(keys, return_inverse=True)
    counts = torch.bincount(present // max(wide, 1), minlength=num_rows // max(height, 1))
    places = (number * height + rows % max(height, 1)) * width + known.columns % max(width, 1)
    return Blocked(starts_of(counts), present % max(wide, 1), (height, width), places)
