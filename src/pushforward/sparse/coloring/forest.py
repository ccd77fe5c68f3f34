"""The trees that two colours leave of a graph: which end of an edge is read, and after which others."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pushforward.sparse.coloring.compiled import Array, Loop
from pushforward.sparse.coloring.graph import Graph


@dataclasses.dataclass(frozen=True, slots=True)
class Forest:
    """A way to read every edge: in the compressed column of the parent's colour, at the child.

    Math: compressed[color(parent), child] = Σ edges of the child with that colour = edge + Σ edges below it
    """

    child: Tensor  # (edges,) vertices
    parent: Tensor  # (edges,) vertices
    above: (
        Tensor  # (edges,) the edge from the parent to its own parent in the same tree; -1 at a root
    )
    is_alone: (
        Tensor  # (edges,) bool: whether the edge is a whole tree, and could be read at either end
    )


def two_colored_forest(graph: Graph, colors: Tensor) -> Forest:
    """Return the trees of an acyclic colouring, each from its middle; for a star colouring these are stars.

    Raises:
        AssertionError: Two colours hold a cycle.
    """
    num_edges = len(graph.tails)
    # A vertex is in one tree for each colour of its neighbours: a node for each vertex and colour.
    width = int(colors.max()) + 1 if len(colors) else 0
    ends = torch.cat((graph.tails, graph.heads))
    keys = ends * width + colors[torch.cat((graph.heads, graph.tails))]
    keys, nodes, degrees = keys.unique(return_inverse=True, return_counts=True)
    tail_nodes, head_nodes = nodes[:num_edges], nodes[num_edges:]
    edges = torch.arange(num_edges)
    child_nodes = torch.full((num_edges,), -1)
    peeled = _peel(
        tail_nodes,
        head_nodes,
        torch.zeros(len(keys), dtype=torch.int64),
        torch.zeros(len(keys), dtype=torch.int64),
        torch.zeros(len(keys), dtype=torch.int64),
        child_nodes,
    )
    assert peeled == num_edges, "two colours of an acyclic colouring hold a cycle"
    tail_is_child = child_nodes == tail_nodes
    parent_nodes = torch.where(tail_is_child, head_nodes, tail_nodes)
    edge_of = torch.full((len(keys),), -1)
    edge_of[child_nodes] = edges
    return Forest(
        child=torch.where(tail_is_child, graph.tails, graph.heads),
        parent=torch.where(tail_is_child, graph.heads, graph.tails),
        above=edge_of[parent_nodes],
        is_alone=(degrees[tail_nodes] == 1) & (degrees[head_nodes] == 1),
    )


@Loop
def _peel(
    tails: Array,
    heads: Array,
    degrees: Array,
    links: Array,  # for each node the numbers of its edges, all in one by exclusive or
    queue: Array,
    children: Array,
) -> int:
    for edge in range(len(tails)):
        for node in (tails[edge], heads[edge]):
            degrees[node] += 1
            links[node] ^= edge
    end = 0
    for node in range(len(degrees)):
        if degrees[node] == 1:
            queue[end] = node
            end += 1
    peeled = begin = 0
    while begin < end:
        node = queue[begin]
        begin += 1
        if degrees[node] == 0:
            continue
        edge = links[node]
        other = tails[edge] ^ heads[edge] ^ node
        children[edge] = node
        peeled += 1
        degrees[other] -= 1
        links[other] ^= edge
        degrees[node] = 0
        if degrees[other] == 1:
            queue[end] = other
            end += 1
    return peeled
