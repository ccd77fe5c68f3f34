"""The colouring of a pattern: by one order, or the best of several."""

from __future__ import annotations

from typing import Any

from pushforward.errors import ArgumentValueError, message
from pushforward.sparse.coloring.bounds import bidirectional_bound, column_bound, symmetric_bound
from pushforward.sparse.coloring.candidates import (
    bidirectional_candidates,
    column_candidates,
    first_best,
    row_candidates,
    symmetric_candidates,
)
from pushforward.sparse.coloring.graph import adjacency_graph, bipartite_graph
from pushforward.sparse.coloring.orders import ORDERS
from pushforward.sparse.coloring.result import Coloring
from pushforward.sparse.pattern import Pattern, pattern_of

STRUCTURES = ("column", "row", "bidirectional", "symmetric")
RECOVERIES = ("direct", "substitution")


def coloring(
    pattern: Any, *, structure: str = "column", recovery: str = "direct", order: str = "best"
) -> Coloring:
    """Colour the columns, the rows or both of a sparse matrix, so that few products tell all its entries.

    Args:
        pattern: A `Pattern`, or a matrix that `Pattern.from_matrix` takes.
        structure: ``"column"`` (products with the matrix, forward mode), ``"row"`` (with its transpose, reverse
            mode), ``"bidirectional"`` (both), or ``"symmetric"`` (products with a symmetric matrix).
        recovery: ``"direct"``: every entry stands alone in some product. ``"substitution"``, for the last two
            structures: entries are subtracted from others, which takes fewer products and loses some accuracy.
        order: In which order vertices are coloured: ``"natural"``, ``"largest_first"``, ``"smallest_last"`` or
            ``"incidence_degree"``. ``"best"`` goes through these and more (linear functions on grids; dense rows
            and columns by themselves) until the lower bound is met, or the pattern is too large for more. Star and
            acyclic colourings in an order that takes far more colours than the largest first give way to that.

    Returns:
        A `Coloring`, with the seeds and the way back.

    Raises:
        ArgumentValueError: An option is none of these, or the pattern is not symmetric where it has to be.

    Example:
        >>> tridiagonal = torch.ones(5, 5).triu(-1).tril(1)
        >>> print(coloring(tridiagonal))
        3 colors (lower bound 3) for 13 entries of 5×5: column, order natural

    References:
        Gebremedhin, Manne, Pothen: What color is your Jacobian? Graph coloring for computing derivatives, SIAM
        Review 47 (2005), table 1.1, whose cases these are.
    """
    pattern = pattern_of("coloring", pattern)
    _check(pattern, structure, recovery, order)
    orders = ORDERS if order == "best" else (order,)
    match structure:
        case "column":
            bound, candidates = column_bound(pattern), column_candidates(pattern, orders)
        case "row":
            bound, candidates = column_bound(pattern.transpose()), row_candidates(pattern, orders)
        case "symmetric":
            graph = adjacency_graph(pattern)
            bound = symmetric_bound(pattern, graph, direct=recovery == "direct")
            candidates = symmetric_candidates(pattern, graph, orders, recovery)
        case _:
            graph = bipartite_graph(pattern)
            bound = bidirectional_bound(pattern, graph)
            candidates = bidirectional_candidates(pattern, graph, orders, recovery)
    best = first_best(candidates, pattern, bound)
    return Coloring(
        pattern=pattern,
        structure=structure,
        recovery=recovery,
        order=best.order,
        column_colors=best.column_colors,
        row_colors=best.row_colors,
        lower_bound=bound,
        reading=best.reading(),
    )


def _check(pattern: Pattern, structure: str, recovery: str, order: str) -> None:
    for name, got, known in (
        ("structure", structure, STRUCTURES),
        ("recovery", recovery, RECOVERIES),
        ("order", order, (*ORDERS, "best")),
    ):
        if got not in known:
            raise ArgumentValueError(
                message("coloring", name, repr(got), f"one of {', '.join(known)}", "Choose one.")
            )
    if recovery == "substitution" and structure in ("column", "row"):
        expected = "'symmetric' or 'bidirectional' with recovery='substitution'"
        way_out = "Use recovery='direct'."
        raise ArgumentValueError(
            message("coloring", "structure", repr(structure), expected, way_out)
        )
    if structure == "symmetric" and not pattern.is_symmetric:
        way_out = "Use structure='column', or the union with the transpose: pattern | pattern.transpose()."
        raise ArgumentValueError(
            message("coloring", "pattern", repr(pattern), "a symmetric pattern", way_out)
        )
