"""The graphs that star and acyclic colourings work on, made from patterns."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from pushforward.sparse.coloring.orders import column_order
from pushforward.sparse.entries import starts_of
from pushforward.sparse.pattern import Pattern


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """An undirected graph: every edge once by its ends, and every vertex with its neighbours.

    Two matrices give one. A symmetric one: its vertices are the columns, its edges the entries below the diagonal.
    Any other: its vertices are the columns and after them the rows, its edges the entries.
    """

    num_vertices: int
    tails: Tensor  # (edges,); less than its head
    heads: Tensor  # (edges,)
    starts: Tensor  # (vertices + 1,)
    neighbors: Tensor  # (2 edges,)
    is_bipartite: bool  # each side then has its own colours

    @functools.cached_property
    def incidence(self) -> Pattern:
        """The pattern with a row for each edge: columns that meet in a row are neighbours."""
        num_edges = len(self.tails)
        ends = torch.stack((self.tails, self.heads), 1).reshape(-1)
        return Pattern((num_edges, self.num_vertices), torch.arange(num_edges + 1) * 2, ends)

    def order(self, name: str) -> Tensor:
        """Return the vertices in the order of that name; each is made once."""
        if name not in self._orders:
            self._orders[name] = column_order(self.incidence, name)
        return self._orders[name]

    @functools.cached_property
    def _orders(self) -> dict[str, Tensor]:
        return {}


def adjacency_graph(pattern: Pattern) -> Graph:
    """Return the graph of a symmetric pattern; its diagonal is left out."""
    rows, cols = pattern.rows, pattern.cols
    below, off_diagonal = rows > cols, rows != cols
    starts = starts_of(torch.bincount(rows[off_diagonal], minlength=pattern.shape[0]))
    return Graph(pattern.shape[1], cols[below], rows[below], starts, cols[off_diagonal], False)


def bipartite_graph(pattern: Pattern) -> Graph:
    """Return the graph in which every entry joins its column with its row."""
    num_rows, num_cols = pattern.shape
    columns = pattern.transpose()
    return Graph(
        num_rows + num_cols,
        pattern.cols,
        pattern.rows + num_cols,
        torch.cat((columns.indptr, pattern.indptr[1:] + pattern.nnz)),
        torch.cat((columns.indices + num_cols, pattern.indices)),
        True,
    )
