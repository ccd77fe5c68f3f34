"""Colors: the colours of a pattern shared out, so that each process makes a part of the products with seeds."""

from __future__ import annotations

from collections.abc import Sequence

from torch.distributed.device_mesh import DeviceMesh

from pushforward.distributed.meshes import range_of
from pushforward.distributed.parts import Chosen
from pushforward.errors import ArgumentValueError, UnsupportedError, message
from pushforward.sparse.coloring.choice import coloring
from pushforward.sparse.pattern import Pattern


class Colors:
    """What one process has of a pattern: the rows or columns of its colours.

    Attributes:
        part: Which rows or columns.
        pattern: That of these, counted anew.
    """

    def __init__(self, name: str, pattern: Pattern, share: str, mesh: DeviceMesh) -> None:
        """Colour the rows or columns; every process finds the same colours."""
        self._name, self._shape = name, pattern.shape
        by_rows = share == "rows"
        found = coloring(pattern, structure="row" if by_rows else "column")
        colors = (found.row_colors if by_rows else found.column_colors).clamp(min=0)
        begin, end = range_of(found.num_colors, mesh)
        if not found.num_colors:  # no entries
            begin, end = range_of(1, mesh)
        mine = (colors >= begin) & (colors < end)
        self.part = Chosen(mine.nonzero().reshape(-1))
        places = mine.cumsum(0) - 1
        rows, cols, count = pattern.rows, pattern.cols, len(self.part.positions)
        kept = mine[rows if by_rows else cols]
        rows, cols = rows[kept], cols[kept]
        shape = (count, pattern.shape[1]) if by_rows else (pattern.shape[0], count)
        if by_rows:
            rows = places[rows]
        else:
            cols = places[cols]
        self.pattern = Pattern.from_coo(shape, rows, cols)

    def check(self, num_columns: Sequence[int], num_rows: Sequence[int]) -> None:
        """Refuse functions whose Jacobian has not the pattern's shape."""
        if len(num_columns) != 1 or len(num_rows) != 1:
            got = f"{len(num_rows)} outputs and {len(num_columns)} inputs"
            way_out = "Leave pattern out, or take one function for each."
            raise UnsupportedError(message(self._name, "pattern", got, "one of each", way_out))
        size = (num_rows[0], num_columns[0])
        if self._shape != size:
            expected, way_out = f"{size}: (out.numel(), in.numel())", "See pattern(func, *args)."
            raise ArgumentValueError(message(self._name, "pattern", self._shape, expected, way_out))
