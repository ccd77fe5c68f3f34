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
    # (edges,) the edge from the parent to its own parent in the same tree; -1 at a root
    above: Tensor
    # (edges,) bool: whether the edge is a whole tree, and could be read at either end
    is_alone: Tensor


def two_colored_forest(graph: Graph, colors: Tensor) -> Forest:
    """Return the trees of an acyclic colouring, each from its middle; for a star colouring these are stars.

    Raises:
        AssertionError: Two colours hold a cycle.
    """
    num_edges, num_ends = len(graph.tails), len(graph.neighbors)
    # A vertex is in one tree for each colour of its neighbours: a node for each vertex and such colour.
    nodes = torch.zeros(num_ends, dtype=torch.int64)
    _find_nodes(
        graph.tails,
        graph.heads,
        graph.starts,
        colors,
        torch.zeros(num_ends, dtype=torch.int64),
        torch.zeros(graph.num_vertices, dtype=torch.int64),
        nodes,
    )
    tail_nodes, head_nodes = nodes[:num_edges], nodes[num_edges:]
    child_nodes = torch.full((num_edges,), -1)
    peeled = _peel(
        tail_nodes,
        head_nodes,
        torch.zeros(num_ends, dtype=torch.int64),
        torch.zeros(num_ends, dtype=torch.int64),
        torch.zeros(num_ends, dtype=torch.int64),
        child_nodes,
    )
    assert peeled == num_edges, "two colours of an acyclic colouring hold a cycle"
    tail_is_child = child_nodes == tail_nodes
    edge_of = torch.full((num_ends,), -1)
    edge_of[child_nodes] = torch.arange(num_edges)
    degrees = torch.bincount(nodes, minlength=num_ends)
    return Forest(
        child=torch.where(tail_is_child, graph.tails, graph.heads),
        parent=torch.where(tail_is_child, graph.heads, graph.tails),
        above=edge_of[torch.where(tail_is_child, head_nodes, tail_nodes)],
        is_alone=(degrees[tail_nodes] == 1) & (degrees[head_nodes] == 1),
    )


@Loop
def _find_nodes(
    tails: Array,
    heads: Array,
    starts: Array,
    colors: Array,
    slot_color: Array,  # for each vertex the colours of its neighbours, each once: a slot is a node
    num_slots: Array,
    nodes: Array,  # of the tails of all edges, and of their heads
) -> int:
    num_edges = len(tails)
    for end in range(2 * num_edges):
        edge = end % num_edges
        vertex = tails[edge] if end < num_edges else heads[edge]
        color = colors[heads[edge] if end < num_edges else tails[edge]]
        slot, last = starts[vertex], starts[vertex] + num_slots[vertex]
        while slot < last and slot_color[slot] != color:
            slot += 1
        if slot == last:
            slot_color[slot] = color
            num_slots[vertex] += 1
        nodes[end] = slot
    return num_edges


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
