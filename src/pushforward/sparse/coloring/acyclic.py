"""Acyclic colouring: every two colours of a symmetric matrix leave a forest, read from the leaves to the roots."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.sparse.coloring.compiled import Array, Loop
from pushforward.sparse.coloring.graph import Graph


def acyclic_coloring(
    graph: Graph, order: Tensor, *, hubs_first: bool = False, most: int | None = None
) -> Tensor | None:
    """Return a colour for each vertex such that no cycle has two colours, by first fit.

    Neighbours differ too, but for a bipartite graph, whose sides have colours of their own.

    Args:
        graph: The graph.
        order: Its vertices.
        hubs_first: Give neighbours of a vertex without a colour different ones, which alone forbids every cycle.
        most: When to give up.

    Returns:
        ``(vertices,)``, or None if that takes more than ``most`` colours.

    References:
        Gebremedhin, Tarafdar, Manne, Pothen (2007), algorithm 3.1; Coleman, Cai: The cyclic coloring problem and
        estimation of sparse Hessian matrices (1986). With hubs first: the triangular colouring of Coleman and Moré
        (1984), section 5.
    """
    num_vertices, num_ends = graph.num_vertices, len(graph.neighbors)
    colors = torch.full((num_vertices,), -1)
    found = _acyclic_first_fit(
        order,
        graph.starts,
        graph.neighbors,
        int(not graph.is_bipartite),
        int(hubs_first),
        num_vertices if most is None else most,
        torch.zeros(num_ends, dtype=torch.int64),
        torch.zeros(num_vertices, dtype=torch.int64),
        torch.arange(num_ends),
        torch.full((num_ends,), -1),
        torch.full((num_ends,), -1),
        torch.zeros(num_vertices + 1, dtype=torch.int64),
        torch.full((num_vertices + 1,), -1),
        colors,
    )
    return colors if found >= 0 else None


@Loop
def _acyclic_first_fit(
    order: Array,
    starts: Array,
    neighbors: Array,
    proper: int,
    hubs_first: int,
    most: int,
    slot_color: Array,  # for each vertex the colours of its neighbours, each once:
    num_slots: Array,  # a slot stands for the vertex in the tree of its own colour and that one
    above: Array,  # towards a slot that stands for the whole tree
    visitor: Array,  # the vertex that last met each tree,
    entrance: Array,  # and at which neighbour
    own_slot: Array,  # the slot of each colour at the vertex in hand
    forbidden: Array,  # the vertex that last forbade each colour
    colors: Array,
) -> int:
    num_colors = 0
    for vertex in order:
        start, end = starts[vertex], starts[vertex + 1]
        for slot in range(start, start + num_slots[vertex]):
            own_slot[slot_color[slot]] = slot
            if proper:
                forbidden[slot_color[slot]] = vertex
        for place in range(start, end):
            near = neighbors[place]
            near_color = colors[near]
            if near_color < 0 and not hubs_first:
                continue
            for slot in range(starts[near], starts[near] + num_slots[near]):
                color = slot_color[slot]
                if near_color < 0:
                    forbidden[color] = vertex
                if forbidden[color] == vertex:
                    continue
                tree = slot
                while above[tree] != tree:
                    above[tree] = above[above[tree]]
                    tree = above[tree]
                if visitor[tree] != vertex:
                    visitor[tree] = vertex
                    entrance[tree] = near
                elif entrance[tree] != near:
                    forbidden[color] = vertex  # a second way into one tree closes a cycle
        color = 0
        while forbidden[color] == vertex:
            color += 1
        if color >= most:
            return -1
        colors[vertex] = color
        num_colors = max(num_colors, color + 1)
        for place in range(start, end):
            near = neighbors[place]
            slot, last = starts[near], starts[near] + num_slots[near]
            while slot < last and slot_color[slot] != color:
                slot += 1
            if slot == last:
                slot_color[slot] = color
                num_slots[near] += 1
            if colors[near] >= 0:
                one, two = slot, own_slot[colors[near]]
                while above[one] != one:
                    above[one] = above[above[one]]
                    one = above[one]
                while above[two] != two:
                    above[two] = above[above[two]]
                    two = above[two]
                above[one] = two
    return num_colors
