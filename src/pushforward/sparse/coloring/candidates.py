"""The colourings among which the best is taken, lazily: each is made when those before it were not good enough."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from pushforward.sparse.coloring.acyclic import acyclic_coloring
from pushforward.sparse.coloring.bicoloring import dense_rows
from pushforward.sparse.coloring.bounds import column_bound
from pushforward.sparse.coloring.columns import color_columns
from pushforward.sparse.coloring.decompression import (
    Reading,
    bidirectional_reading,
    direct_reading,
    symmetric_reading,
)
from pushforward.sparse.coloring.forest import two_colored_forest
from pushforward.sparse.coloring.graph import Graph
from pushforward.sparse.coloring.lattice import interleaved_orders, lattice_coloring
from pushforward.sparse.coloring.orders import column_order
from pushforward.sparse.coloring.star import star_coloring
from pushforward.sparse.coloring.unneeded import drop_unneeded
from pushforward.sparse.pattern import Pattern

Orders = tuple[str, ...]
T = TypeVar("T")

# Entries coloured in all: a colouring in one order takes 0.1 to 1 µs an entry, compiled.
MOST_ENTRIES = 25_000_000
FIRST = 2  # colourings of columns tried before others: natural, and the lattice of a grid


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """Colours of columns and rows, -1 where there is none, and what makes the index arrays of the recovery."""

    order: str
    column_colors: Tensor
    row_colors: Tensor
    reading: Callable[[], Reading]

    @property
    def num_colors(self) -> int:
        """Colours of both sides."""
        return num_colors(self.column_colors) + num_colors(self.row_colors)


def num_colors(colors: Tensor) -> int:
    """Return how many colours there are."""
    return int(colors.max()) + 1 if len(colors) else 0


def first_best(candidates: Iterator[Candidate], pattern: Pattern, bound: int) -> Candidate:
    """Return the first of the candidates with the fewest colours; few are made where that takes long."""
    tries = max(3, MOST_ENTRIES // max(pattern.nnz, 1))
    best = next(candidates)
    for _ in range(tries - 1):
        if best.num_colors <= bound or (found := next(candidates, None)) is None:
            break
        if found.num_colors < best.num_colors:
            best = found
    return best


def column_candidates(pattern: Pattern, orders: Orders) -> Iterator[Candidate]:
    """Yield colourings of the columns, one for each order; where several are tried, of grids too."""
    for name, colors in _column_colorings(pattern, orders):
        yield _direct(name, pattern, colors, _none(pattern.shape[0]))


def _column_colorings(pattern: Pattern, orders: Orders) -> Iterator[tuple[str, Tensor]]:
    first, *others = orders
    colors = color_columns(pattern, column_order(pattern, first))
    yield first, colors
    if others:
        most = num_colors(colors) - 1
        found = lattice_coloring(pattern, column_bound(pattern), most)
        if found is not None:
            yield "lattice", found
        for order in interleaved_orders(pattern):
            yield "interleaved", color_columns(pattern, order)
    for name in others:
        yield name, color_columns(pattern, column_order(pattern, name))


def row_candidates(pattern: Pattern, orders: Orders) -> Iterator[Candidate]:
    """Yield colourings of the rows, one for each order."""
    for found in column_candidates(pattern.transpose(), orders):
        yield _direct(found.order, pattern, _none(pattern.shape[1]), found.column_colors)


def symmetric_candidates(
    pattern: Pattern, graph: Graph, orders: Orders, recovery: str
) -> Iterator[Candidate]:
    """Yield star or acyclic colourings, and where several orders are tried, colourings of the columns too."""
    has_diagonal = pattern.rows[pattern.rows == pattern.cols]
    colorings = _vertex_colorings(graph, orders, recovery)
    if len(orders) > 1:
        of_columns = (
            (f"{name} of columns", colors) for name, colors in _column_colorings(pattern, orders)
        )
        colorings = itertools.chain(
            itertools.islice(colorings, 1),
            itertools.islice(of_columns, FIRST),
            _in_turn(colorings, of_columns),
        )
    for name, colors in colorings:
        forest, kept = drop_unneeded(two_colored_forest(graph, colors), colors, has_diagonal)
        reading = functools.partial(symmetric_reading, pattern, kept, forest)
        yield Candidate(name, kept, _none(pattern.shape[0]), reading)


def bidirectional_candidates(
    pattern: Pattern, graph: Graph, orders: Orders, recovery: str
) -> Iterator[Candidate]:
    """Yield star or acyclic bicolourings; where several orders are tried, splits and colourings of one side too."""
    bicolorings = _bicolorings(pattern, graph, orders, recovery)
    if len(orders) == 1:
        return bicolorings
    columns, rows = column_candidates(pattern, orders), row_candidates(pattern, orders)
    splits = _split_candidates(pattern, orders)
    return itertools.chain(
        itertools.islice(columns, FIRST), _in_turn(bicolorings, splits, rows, columns)
    )


def _bicolorings(
    pattern: Pattern, graph: Graph, orders: Orders, recovery: str
) -> Iterator[Candidate]:
    num_cols = pattern.shape[1]
    for name, colors in _vertex_colorings(graph, orders, recovery):
        first_row_color = num_colors(colors[:num_cols])
        apart = torch.cat((colors[:num_cols], colors[num_cols:] + first_row_color))
        forest, apart = drop_unneeded(
            two_colored_forest(graph, apart), apart, torch.zeros(0, dtype=torch.int64)
        )
        of_columns, of_rows = apart[:num_cols], apart[num_cols:]
        of_rows = torch.where(of_rows < 0, -1, of_rows - num_colors(of_columns))
        reading = functools.partial(bidirectional_reading, pattern, of_columns, of_rows, forest)
        yield Candidate(name, of_columns, of_rows, reading)


def _in_turn(*sources: Iterator[T]) -> Iterator[T]:
    """Yield the first of each, then the second of each that has one, and so on; none before it is asked for."""
    waiting = collections.deque(sources)
    while waiting:
        source = waiting.popleft()
        for found in itertools.islice(source, 1):
            yield found
            waiting.append(source)


def _split_candidates(pattern: Pattern, orders: Orders) -> Iterator[Candidate]:
    """Yield colourings that read dense rows as rows and the rest by columns, or the other way round."""
    columns = pattern.transpose()
    below = min(column_bound(pattern), column_bound(columns))
    for is_dense in dense_rows(pattern, below):
        yield _direct("dense rows", pattern, *_split(pattern, is_dense, orders))
    for is_dense in dense_rows(columns, below):
        row_colors, column_colors = _split(columns, is_dense, orders)
        is_pushed = (column_colors >= 0)[pattern.cols]
        yield _direct("dense columns", pattern, column_colors, row_colors, ~is_pushed)


def _split(pattern: Pattern, is_dense: Tensor, orders: Orders) -> tuple[Tensor, Tensor]:
    """Return colours of columns for the rows that are not dense, and of the dense rows."""
    sparse, dense = pattern.of_rows(~is_dense), pattern.of_rows(is_dense).transpose()
    return (
        first_best(column_candidates(sparse, orders), sparse, column_bound(sparse)).column_colors,
        first_best(column_candidates(dense, orders), dense, column_bound(dense)).column_colors,
    )


def _vertex_colorings(graph: Graph, orders: Orders, recovery: str) -> Iterator[tuple[str, Tensor]]:
    """Yield colours of the vertices, in the orders that do not take far more colours than the largest first.

    The time grows with the colours: a full row coloured last may take one for each of its columns, and hours.
    """
    color = star_coloring if recovery == "direct" else acyclic_coloring
    usual = color(graph, graph.order("largest_first"), hubs_first=True)
    assert usual is not None
    most, is_none = 2 * num_colors(usual) + 8, True
    for name in sorted(orders, key="largest_first".__ne__):
        for hubs_first in (recovery == "direct", recovery != "direct"):
            is_usual = hubs_first and name == "largest_first"
            colors = (
                usual
                if is_usual
                else color(graph, graph.order(name), hubs_first=hubs_first, most=most)
            )
            if colors is not None:
                is_none = False
                yield f"{name}, hubs first" if hubs_first else name, colors
    if is_none:
        yield "largest_first, hubs first", usual


def _direct(
    order: str,
    pattern: Pattern,
    column_colors: Tensor,
    row_colors: Tensor,
    is_pulled: Tensor | None = None,
) -> Candidate:
    """Return the candidate that reads the entries of a mask from rows; by default those whose row has a colour."""
    if is_pulled is None:
        is_pulled = (row_colors >= 0)[pattern.rows]
    reading = functools.partial(direct_reading, pattern, column_colors, row_colors, is_pulled)
    return Candidate(order, column_colors, row_colors, reading)


def _none(size: int) -> Tensor:
    return torch.full((size,), -1)
