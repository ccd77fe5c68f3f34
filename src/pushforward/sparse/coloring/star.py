"""Star colouring: every entry of a symmetric matrix stands alone in some compressed column."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.sparse.coloring.compiled import Array, Loop
from pushforward.sparse.coloring.graph import Graph


def star_coloring(
    graph: Graph, order: Tensor, *, hubs_first: bool = False, most: int | None = None
) -> Tensor | None:
    """Return a colour for each vertex such that no path of four vertices has two colours, by first fit.

    Neighbours differ too, but for a bipartite graph, whose sides have colours of their own. What a vertex needs
    to know of its neighbours is kept by colour, so that vertices of high degree cost no more than their colours.

    Args:
        graph: The graph.
        order: Its vertices.
        hubs_first: Give neighbours of a vertex without a colour different ones. This forbids more at first, and
            less later: every star then has the vertex in its middle coloured first.
        most: When to give up.

    Returns:
        ``(vertices,)``, or None if that takes more than ``most`` colours.

    References:
        Gebremedhin, Tarafdar, Manne, Pothen: New acyclic and star coloring algorithms with application to
        computing Hessians, SIAM J. Sci. Comput. 29 (2007), algorithm 4.1 (here with colours in place of stars).
        With hubs first: Gebremedhin, Manne, Pothen (2005), algorithm 4.1.
        Coleman, Moré: Estimation of sparse Hessian matrices and graph coloring problems (1984), theorem 3.2.
    """
    num_vertices, num_ends = graph.num_vertices, len(graph.neighbors)
    colors = torch.full((num_vertices,), -1)
    found = _star_first_fit(
        order,
        graph.starts,
        graph.neighbors,
        int(not graph.is_bipartite),
        int(hubs_first),
        num_vertices if most is None else most,
        torch.zeros(num_ends, dtype=torch.int64),
        torch.zeros(num_ends, dtype=torch.int64),
        torch.zeros(num_ends, dtype=torch.int64),
        torch.zeros(num_vertices, dtype=torch.int64),
        torch.zeros(num_vertices + 1, dtype=torch.int64),
        torch.full((num_vertices + 1,), -1),
        torch.full((num_vertices + 1,), -1),
        colors,
    )
    return colors if found >= 0 else None


@Loop
def _star_first_fit(
    order: Array,
    starts: Array,
    neighbors: Array,
    proper: int,
    hubs_first: int,
    most: int,
    slot_color: Array,  # for each vertex the colours of its neighbours, each once,
    slot_only: Array,  # with the neighbour of that colour, -1 if there are several,
    slot_is_leaf: Array,  # and whether that neighbour has several of the vertex's own colour
    num_slots: Array,
    own_slot: Array,  # the slot of each colour at the vertex in hand,
    several: Array,  # and the vertex that last had several neighbours of each colour
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
            if slot_only[slot] < 0:
                several[slot_color[slot]] = vertex
        for place in range(start, end):
            near = neighbors[place]
            near_color = colors[near]
            if near_color < 0 and not hubs_first:
                continue
            # A path: far - near - vertex - another like near; or vertex - near - far - another like near.
            closed = near_color < 0 or several[near_color] == vertex
            for slot in range(starts[near], starts[near] + num_slots[near]):
                if closed or slot_is_leaf[slot]:
                    forbidden[slot_color[slot]] = vertex
        color = 0
        while forbidden[color] == vertex:
            color += 1
        if color >= most:
            return -1
        colors[vertex] = color
        num_colors = max(num_colors, color + 1)
        for place in range(start, end):
            near = neighbors[place]
            near_color = colors[near]
            slot, last = starts[near], starts[near] + num_slots[near]
            while slot < last and slot_color[slot] != color:
                slot += 1
            if slot == last:
                slot_color[slot] = color
                slot_only[slot] = vertex
                slot_is_leaf[slot] = near_color >= 0 and several[near_color] == vertex
                num_slots[near] += 1
                continue
            twin = slot_only[slot]
            slot_only[slot] = -1
            slot_is_leaf[slot] = 0
            if near_color >= 0:
                slot_is_leaf[own_slot[near_color]] = 1
                if twin >= 0:
                    other = starts[twin]
                    while slot_color[other] != near_color:
                        other += 1
                    slot_is_leaf[other] = 1
    return num_colors
