"""Lower bounds on the number of colours."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.sparse.coloring.graph import Graph
from pushforward.sparse.pattern import Pattern


def column_bound(pattern: Pattern) -> int:
    """Return the most entries of a row: their columns need as many colours.

    References:
        Curtis, Powell, Reid: On the estimation of sparse Jacobian matrices (1974).
    """
    return int(pattern.indptr.diff().max()) if pattern.shape[0] else 0


def bidirectional_bound(pattern: Pattern, graph: Graph) -> int:
    """Return a bound by counting: p columns and q rows give p·m + q·n numbers for the entries of an m by n part.

    Holds for any linear recovery. The parts are what is left when vertices of least degree are taken away one
    after the other.

    Args:
        pattern: The entries.
        graph: Its bipartite graph.
    """
    position, edges = _edges_left(graph)
    is_column = torch.zeros(graph.num_vertices, dtype=torch.int64)
    is_column[position[: pattern.shape[1]]] = 1
    columns = is_column.cumsum(0)
    rows = torch.arange(1, graph.num_vertices + 1) - columns
    return _highest(edges, torch.maximum(columns, rows))


def symmetric_bound(pattern: Pattern, graph: Graph, *, direct: bool) -> int:
    """Return a bound by counting, and one from paths, for a symmetric matrix.

    Math: p colours give p·k numbers for the E + D entries on and below the diagonal of a part with k vertices. If
    all colours are kept, as a full diagonal wants, two of them leave a forest: E ≤ (p − 1) k − p (p − 1) / 2.

    Args:
        pattern: The entries.
        graph: Its adjacency graph.
        direct: Whether a path of four vertices needs three colours (star colouring).
    """
    position, edges = _edges_left(graph)
    has_diagonal = torch.zeros(graph.num_vertices, dtype=torch.int64)
    diagonal = pattern.rows[pattern.rows == pattern.cols]
    has_diagonal[position[diagonal]] = 1
    sizes = torch.arange(1, graph.num_vertices + 1)
    bound = _highest(edges + has_diagonal.cumsum(0), sizes)
    if len(diagonal) < graph.num_vertices or not graph.num_vertices:
        return bound
    while bool((edges > (bound - 1) * sizes - bound * (bound - 1) // 2)[bound - 1 :].any()):
        bound += 1
    degrees = graph.starts.diff()
    if direct and bool(((degrees[graph.tails] > 1) & (degrees[graph.heads] > 1)).any()):
        bound = max(bound, 3)
    return bound


def _edges_left(graph: Graph) -> tuple[Tensor, Tensor]:
    """Return each vertex's position, smallest last, and for each position the edges among vertices up to it."""
    peeled = graph.order("smallest_last")
    position = torch.empty_like(peeled)
    position[peeled] = torch.arange(len(peeled))
    last = torch.maximum(position[graph.tails], position[graph.heads])
    return position, torch.bincount(last, minlength=graph.num_vertices).cumsum(0)


def _highest(unknowns: Tensor, equations: Tensor) -> int:
    return int((-(-unknowns // equations)).max()) if len(unknowns) else 0
