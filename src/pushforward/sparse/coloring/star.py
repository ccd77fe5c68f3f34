"""Star colouring: every entry of a symmetric matrix stands alone in some compressed column."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.sparse.coloring.compiled import Array, Loop
from pushforward.sparse.coloring.graph import Graph


def star_coloring(graph: Graph, order: Tensor) -> Tensor:
    """Return a colour for each vertex such that no path of four vertices has two colours, by first fit.

    Neighbours differ too, but for a bipartite graph, whose sides have colours of their own. What a vertex needs
    to know of its neighbours is kept by colour, so that vertices of high degree cost no more than their colours.

    References:
        Gebremedhin, Tarafdar, Manne, Pothen: New acyclic and star coloring algorithms with application to
        computing Hessians, SIAM J. Sci. Comput. 29 (2007), algorithm 4.1 (here with colours in place of stars).
        Coleman, Moré: Estimation of sparse Hessian matrices and graph coloring problems (1984), theorem 3.2.
    """
    num_vertices, num_ends = graph.num_vertices, len(graph.neighbors)
    colors = torch.full((num_vertices,), -1)
    _star_first_fit(
        order,
        graph.starts,
        graph.neighbors,
        int(not graph.is_bipartite),
        torch.zeros(num_ends, dtype=torch.int64),
        torch.zeros(num_ends, dtype=torch.int64),
        torch.zeros(num_vertices, dtype=torch.int64),
        torch.full((num_vertices + 1,), -1),
        torch.full((num_vertices + 1,), -1),
        colors,
    )
    return colors


@Loop
def _star_first_fit(
    order: Array,
    starts: Array,
    neighbors: Array,
    proper: int,
    slot_color: Array,  # for each vertex the colours of its neighbours, each once,
    slot_only: Array,  # with the neighbour of that colour, -1 if there are several
    num_slots: Array,
    several: Array,  # the vertex that last saw each colour at several of its neighbours
    forbidden: Array,  # the vertex that last forbade each colour
    colors: Array,
) -> int:
    num_colors = 0
    for vertex in order:
        start, end = starts[vertex], starts[vertex + 1]
        for slot in range(start, start + num_slots[vertex]):
            if proper:
                forbidden[slot_color[slot]] = vertex
            if slot_only[slot] < 0:
                several[slot_color[slot]] = vertex
        for place in range(start, end):
            near = neighbors[place]
            near_color = colors[near]
            if near_color < 0:
                continue
            for slot in range(starts[near], starts[near] + num_slots[near]):
                color = slot_color[slot]
                if forbidden[color] == vertex:
                    continue
                if several[near_color] == vertex:
                    forbidden[color] = vertex  # far - near - vertex - another neighbour like near
                    continue
                far = slot_only[slot]
                if far < 0:
                    continue
                for other in range(starts[far], starts[far] + num_slots[far]):
                    if slot_color[other] == near_color and slot_only[other] < 0:
                        forbidden[color] = (
                            vertex  # vertex - near - far - another neighbour like near
                        )
        color = 0
        while forbidden[color] == vertex:
            color += 1
        colors[vertex] = color
        num_colors = max(num_colors, color + 1)
        for place in range(start, end):
            near = neighbors[place]
            slot, last = starts[near], starts[near] + num_slots[near]
            while slot < last and slot_color[slot] != color:
                slot += 1
            if slot == last:
                slot_color[slot] = color
                slot_only[slot] = vertex
                num_slots[near] += 1
            else:
                slot_only[slot] = -1
    return num_colors
