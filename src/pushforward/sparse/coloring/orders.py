"""Orders in which a greedy colouring takes the vertices."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.sparse.coloring.compiled import Array, Loop
from pushforward.sparse.pattern import Pattern

ORDERS = ("natural", "largest_first", "smallest_last", "incidence_degree")

# Rows this much longer than the mean make neighbours of nearly all columns; orders look past them.
LONGEST = 32


def degrees(pattern: Pattern) -> Tensor:
    """Return for each column, how many others it meets in some row, counted once for each row."""
    lengths = pattern.indptr.diff()
    return torch.zeros(pattern.shape[1], dtype=torch.int64).index_add_(
        0, pattern.cols, (lengths - 1)[pattern.rows]
    )


def column_order(pattern: Pattern, name: str) -> Tensor:
    """Return the columns in the order of that name; neighbours are columns that meet in a row.

    References:
        Gebremedhin, Manne, Pothen (2005), section 5.1: largest first (Welsh and Powell), smallest last (Matula),
        incidence degree (Coleman and Moré).
    """
    match name:
        case "natural":
            return torch.arange(pattern.shape[1])
        case "largest_first":
            return torch.sort(degrees(pattern), descending=True, stable=True).indices
        case "smallest_last":
            return _dynamic_order(pattern, from_top=0, step=-1).flip(0)
        case "incidence_degree":
            return _dynamic_order(pattern, from_top=1, step=1)
    raise AssertionError(name)


def _dynamic_order(pattern: Pattern, *, from_top: int, step: int) -> Tensor:
    """Return the columns as they are taken: lowest or highest key first, neighbours' keys change by ``step``."""
    lengths = pattern.indptr.diff()
    longest = max(LONGEST, LONGEST * pattern.nnz // max(pattern.shape[0], 1))
    if bool((lengths > longest).any()):
        kept = lengths[pattern.rows] <= longest
        pattern = Pattern.from_coo(pattern.shape, pattern.rows[kept], pattern.cols[kept])
    num_cols, columns = pattern.shape[1], pattern.transpose()
    most = int(degrees(pattern).max()) if num_cols else 0
    order = torch.zeros(num_cols, dtype=torch.int64)
    _take(
        columns.indptr,
        columns.indices,
        pattern.indptr,
        pattern.indices,
        from_top,
        step,
        torch.full((min(most, num_cols) + 2,), -1),
        torch.zeros(num_cols, dtype=torch.int64),
        torch.zeros(num_cols, dtype=torch.int64),
        torch.zeros(num_cols, dtype=torch.int64),
        torch.full((num_cols,), -1),
        order,
    )
    return order


@Loop
def _take(
    column_starts: Array,
    column_rows: Array,
    row_starts: Array,
    row_columns: Array,
    from_top: int,
    step: int,
    first: Array,  # the first column of each key; -1: none
    after: Array,
    before: Array,
    keys: Array,  # -1: taken already
    seen: Array,
    order: Array,
) -> int:
    num_cols = len(order)
    for column in range(num_cols):
        degree = 0
        seen[column] = column
        if step < 0:
            for k in range(column_starts[column], column_starts[column + 1]):
                row = column_rows[k]
                for place in range(row_starts[row], row_starts[row + 1]):
                    other = row_columns[place]
                    if seen[other] != column:
                        seen[other] = column
                        degree += 1
        keys[column] = degree
    for back in range(num_cols):
        column = num_cols - 1 - back
        key = keys[column]
        after[column], before[column] = first[key], -1
        if first[key] >= 0:
            before[first[key]] = column
        first[key] = column
        seen[column] = -1
    now = len(first) - 1 if from_top else 0
    for count in range(num_cols):
        while first[now] < 0:
            now += -1 if from_top else 1
        column = first[now]
        first[now] = after[column]
        if after[column] >= 0:
            before[after[column]] = -1
        keys[column] = -1
        order[count] = column
        for k in range(column_starts[column], column_starts[column + 1]):
            row = column_rows[k]
            for place in range(row_starts[row], row_starts[row + 1]):
                other = row_columns[place]
                key = keys[other]
                if key < 0 or seen[other] == column:
                    continue
                seen[other] = column
                if before[other] >= 0:
                    after[before[other]] = after[other]
                else:
                    first[key] = after[other]
                if after[other] >= 0:
                    before[after[other]] = before[other]
                key += step
                keys[other] = key
                after[other], before[other] = first[key], -1
                if first[key] >= 0:
                    before[first[key]] = other
                first[key] = other
                now = max(now, key) if from_top else min(now, key)
    return num_cols
