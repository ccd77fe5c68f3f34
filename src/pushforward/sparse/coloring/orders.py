"""Orders in which a greedy colouring takes the vertices."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.sparse.coloring.compiled import Array, Loop
from pushforward.sparse.pattern import Pattern

ORDERS = ("natural", "largest_first", "smallest_last", "incidence_degree")

# Rows this much longer than the mean make neighbours of nearly all columns; orders look past them.
LONGEST = 32


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
            return torch.sort(
                _degrees(_without_long_rows(pattern)), descending=True, stable=True
            ).indices
        case "smallest_last":
            pattern = _without_long_rows(pattern)
            return _dynamic_order(pattern, _degrees(pattern), from_top=0, step=-1).flip(0)
        case "incidence_degree":
            none = torch.zeros(pattern.shape[1], dtype=torch.int64)
            return _dynamic_order(_without_long_rows(pattern), none, from_top=1, step=1)
    raise AssertionError(name)


def _without_long_rows(pattern: Pattern) -> Pattern:
    lengths = pattern.indptr.diff()
    is_long = lengths > LONGEST * max(1, pattern.nnz // max(pattern.shape[0], 1))
    return pattern.of_rows(~is_long) if bool(is_long.any()) else pattern


def _degrees(pattern: Pattern) -> Tensor:
    """Return how many other columns each column meets."""
    num_cols, columns = pattern.shape[1], pattern.transpose()
    found = torch.zeros(num_cols, dtype=torch.int64)
    seen = torch.full((num_cols,), -1)
    arrays = (columns.indptr, columns.indices, pattern.indptr, pattern.indices)
    _count_neighbors(*arrays, seen, found)
    return found


def _dynamic_order(pattern: Pattern, keys: Tensor, *, from_top: int, step: int) -> Tensor:
    """Return the columns as they are taken: lowest or highest key first, neighbours' keys change by ``step``."""
    num_cols, columns = pattern.shape[1], pattern.transpose()
    order = torch.zeros(num_cols, dtype=torch.int64)
    _take(
        columns.indptr,
        columns.indices,
        pattern.indptr,
        pattern.indices,
        from_top,
        step,
        torch.full((num_cols + 1,), -1),
        torch.zeros(num_cols, dtype=torch.int64),
        torch.zeros(num_cols, dtype=torch.int64),
        keys.clone(),
        torch.full((num_cols,), -1),
        order,
    )
    return order


@Loop
def _count_neighbors(
    column_starts: Array,
    column_rows: Array,
    row_starts: Array,
    row_columns: Array,
    seen: Array,
    degrees: Array,
) -> int:
    num_cols = len(degrees)
    for column in range(num_cols):
        seen[column] = column
        degree = 0
        for k in range(column_starts[column], column_starts[column + 1]):
            row = column_rows[k]
            for place in range(row_starts[row], row_starts[row + 1]):
                other = row_columns[place]
                if seen[other] != column:
                    seen[other] = column
                    degree += 1
        degrees[column] = degree
    return num_cols


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
    seen: Array,  # the column that last saw each as a neighbour
    order: Array,
) -> int:
    num_cols = len(order)
    for back in range(num_cols):
        column = num_cols - 1 - back
        key = keys[column]
        after[column], before[column] = first[key], -1
        if first[key] >= 0:
            before[first[key]] = column
        first[key] = column
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
