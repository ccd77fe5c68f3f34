"""Column colouring: columns that meet in no row share a colour (and a seed)."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.sparse.coloring.compiled import Array, Loop
from pushforward.sparse.pattern import Pattern


def color_columns(pattern: Pattern, order: Tensor) -> Tensor:
    """Return a colour for each column, by first fit in the given order; -1 for an empty column.

    References:
        Gebremedhin, Manne, Pothen: What color is your Jacobian? Graph coloring for computing derivatives, SIAM
        Review 47 (2005), algorithm 3.2 (greedy partial distance-2 coloring of a bipartite graph).
    """
    (num_rows, num_cols), columns = pattern.shape, pattern.transpose()
    colors = torch.full((num_cols,), -1)
    _first_fit(
        order,
        columns.indptr,
        columns.indices,
        pattern.indptr,
        torch.zeros(pattern.nnz, dtype=torch.int64),
        torch.zeros(num_rows, dtype=torch.int64),
        torch.zeros(num_rows, dtype=torch.int64),
        torch.full((num_cols + 1,), -1),
        colors,
    )
    return colors


@Loop
def _first_fit(
    order: Array,
    column_starts: Array,
    column_rows: Array,
    row_starts: Array,
    used: Array,  # for each row the colours in use from its floor on, in no order
    num_used: Array,
    floor: Array,  # for each row the first colour not in use: a dense row is not searched from 0 each time
    forbidden: Array,  # the column that last forbade each colour
    colors: Array,
) -> int:
    num_colors = 0
    for column in order:
        start, end = column_starts[column], column_starts[column + 1]
        if start == end:
            continue
        color = 0
        for k in range(start, end):
            row = column_rows[k]
            color = max(color, floor[row])
            for place in range(row_starts[row], row_starts[row] + num_used[row]):
                forbidden[used[place]] = column
        while forbidden[color] == column:
            color += 1
        colors[column] = color
        num_colors = max(num_colors, color + 1)
        for k in range(start, end):
            row = column_rows[k]
            used[row_starts[row] + num_used[row]] = color
            num_used[row] += 1
            place = row_starts[row]
            while place < row_starts[row] + num_used[row]:
                if used[place] == floor[row]:
                    floor[row] += 1
                    num_used[row] -= 1
                    used[place] = used[row_starts[row] + num_used[row]]
                    place = row_starts[row]
                else:
                    place += 1
    return num_colors
