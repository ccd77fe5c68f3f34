"""The colourings among which the best is taken, lazily: each is made when those before it were not good enough."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pushforward.sparse.coloring.acyclic import acyclic_coloring
from pushforward.sparse.coloring.bicoloring import dense_rows, part
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
from pushforward.sparse.coloring.orders import column_order
from pushforward.sparse.coloring.star import star_coloring
from pushforward.sparse.coloring.unneeded import drop_unneeded
from pushforward.sparse.pattern import Pattern

Orders = tuple[str, ...]


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


def first_best(candidates: Iterator[Candidate], bound: int) -> Candidate:
    """Return the first of the candidates with the fewest colours; none is made once the bound is met."""
    best = next(candidates)
    while best.num_colors > bound and (found := next(candidates, None)) is not None:
        if found.num_colors < best.num_colors:
            best = found
    return best


def column_candidates(pattern: Pattern, orders: Orders) -> Iterator[Candidate]:
    """Yield colourings of the columns, one for each order."""
    for name in orders:
        colors = color_columns(pattern, column_order(pattern, name))
        yield _direct(name, pattern, colors, _none(pattern.shape[0]))


def row_candidates(pattern: Pattern, orders: Orders) -> Iterator[Candidate]:
    """Yield colourings of the rows, one for each order."""
    for found in column_candidates(pattern.transpose(), orders):
        yield _direct(found.order, pattern, _none(pattern.shape[1]), found.column_colors)


def symmetric_candidates(
    pattern: Pattern, graph: Graph, orders: Orders, recovery: str
) -> Iterator[Candidate]:
    """Yield star or acyclic colourings, and where several orders are tried, colourings of the columns too."""
    has_diagonal = pattern.rows[pattern.rows == pattern.cols]

    def made(name: str, colors: Tensor) -> Candidate:
        forest, colors = drop_unneeded(two_colored_forest(graph, colors), colors, has_diagonal)
        reading = functools.partial(symmetric_reading, pattern, colors, forest)
        return Candidate(name, colors, _none(pattern.shape[0]), reading)

    for name, colors in _vertex_colorings(graph, orders, recovery):
        yield made(name, colors)
    if len(orders) > 1:
        for found in column_candidates(pattern, orders):
            yield made(f"{found.order} of columns", found.column_colors)


def bidirectional_candidates(
    pattern: Pattern, graph: Graph, orders: Orders, recovery: str
) -> Iterator[Candidate]:
    """Yield star or acyclic bicolourings; where several orders are tried, splits and colourings of one side too."""
    num_cols = pattern.shape[1]
    if len(orders) > 1:
        yield from _split_candidates(pattern, orders)
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


def _split_candidates(pattern: Pattern, orders: Orders) -> Iterator[Candidate]:
    """Yield colourings that read dense rows as rows and the rest by columns, or the other way round."""
    yield from column_candidates(pattern, orders)
    yield from row_candidates(pattern, orders)
    for is_dense in dense_rows(pattern):
        yield _direct("dense rows", pattern, *_split(pattern, is_dense, orders))
    for is_dense in dense_rows(pattern.transpose()):
        row_colors, column_colors = _split(pattern.transpose(), is_dense, orders)
        is_pushed = (column_colors >= 0)[pattern.cols]
        yield _direct("dense columns", pattern, column_colors, row_colors, ~is_pushed)


def _split(pattern: Pattern, is_dense: Tensor, orders: Orders) -> tuple[Tensor, Tensor]:
    """Return colours of columns for the rows that are not dense, and of the dense rows."""
    sparse, dense = part(pattern, ~is_dense), part(pattern, is_dense).transpose()
    return (
        first_best(column_candidates(sparse, orders), column_bound(sparse)).column_colors,
        first_best(column_candidates(dense, orders), column_bound(dense)).column_colors,
    )


def _vertex_colorings(graph: Graph, orders: Orders, recovery: str) -> Iterator[tuple[str, Tensor]]:
    """Yield colours of the vertices; a star colouring is acyclic too, and may be better by chance."""
    if recovery == "substitution":
        for name in orders:
            yield name, acyclic_coloring(graph, graph.order(name))
    if recovery == "direct" or len(orders) > 1:
        for name in orders:
            yield name, star_coloring(graph, graph.order(name))


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
