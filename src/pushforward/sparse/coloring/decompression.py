"""How the entries are read back from compressed columns and rows: index arrays, made once."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pushforward.sparse.coloring.forest import Forest
from pushforward.sparse.pattern import Pattern


@dataclasses.dataclass(frozen=True)
class Reading:
    """One gather; then, where sums were read, one subtraction for each doubling of the distance to the root.

    Math: value(e) = Σ_d (−1)^d Σ_{e' d edges below e} read(e'), summed by doubling.
    """

    places: Tensor  # (unknowns,) of the flattened compressed matrices
    rounds: tuple[tuple[Tensor, Tensor], ...] = ()  # (from, to): unknowns 1, 2, 4, ... below others
    spread: Tensor | None = None  # (nnz,) the unknown of each entry; None: they are the same

    def entries(self, compressed: Tensor) -> Tensor:
        """Return ``(nnz, *rest)`` from ``(places, *rest)``; differentiable."""
        values = compressed[self.places]
        for number, (source, target) in enumerate(self.rounds):
            values = values.index_add(0, target, values[source], alpha=1 if number else -1)
        return values if self.spread is None else values[self.spread]

    def to(self, device: torch.device) -> Reading:
        """Return the same index arrays on a device."""
        return Reading(
            self.places.to(device),
            tuple((source.to(device), target.to(device)) for source, target in self.rounds),
            None if self.spread is None else self.spread.to(device),
        )


def direct_reading(
    pattern: Pattern, column_colors: Tensor, row_colors: Tensor, is_pulled: Tensor
) -> Reading:
    """Return how to read entries in the columns' compressed matrix, or in the rows' where ``is_pulled``.

    Args:
        pattern: The entries.
        column_colors: ``(columns,)``; those of entries that are not pulled have one.
        row_colors: ``(rows,)``; those of entries that are pulled have one.
        is_pulled: ``(nnz,)`` bool.
    """
    num_rows, num_cols = pattern.shape
    pushed = column_colors[pattern.cols] * num_rows + pattern.rows
    pulled = row_colors[pattern.rows] * num_cols + pattern.cols
    offset = (int(column_colors.max()) + 1 if num_cols else 0) * num_rows
    return Reading(torch.where(is_pulled, pulled + offset, pushed))


def bidirectional_reading(
    pattern: Pattern, column_colors: Tensor, row_colors: Tensor, forest: Forest
) -> Reading:
    """Return how to read the forest of a bicolouring, whose edges are the entries."""
    is_pulled = forest.parent >= pattern.shape[1]
    direct = direct_reading(pattern, column_colors, row_colors, is_pulled)
    return Reading(direct.places, _rounds(forest.above))


def symmetric_reading(pattern: Pattern, colors: Tensor, forest: Forest) -> Reading:
    """Return how to read the forest of a symmetric pattern, whose edges are the entries below the diagonal."""
    rows, cols = pattern.rows, pattern.cols
    num_vertices, num_edges = pattern.shape[0], len(forest.child)
    diagonal = rows[rows == cols]
    unknowns = torch.where(rows > cols, (rows > cols).cumsum(0) - 1, -1)
    unknowns = torch.where(rows < cols, unknowns[pattern.by_columns], unknowns)
    unknowns = torch.where(rows == cols, num_edges - 1 + (rows == cols).cumsum(0), unknowns)
    edge_places = colors[forest.parent] * num_vertices + forest.child
    places = torch.cat((edge_places, colors[diagonal] * num_vertices + diagonal))
    rounds = _rounds(forest.above)
    return Reading(places, rounds, unknowns) if rounds else Reading(places[unknowns])


def _rounds(above: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return the pairs of edges 1, 2, 4, ... apart on the way to the root."""
    rounds = []
    below = torch.nonzero(above >= 0).squeeze(1)
    while len(below):
        rounds.append((below, above[below]))
        jumped = torch.full_like(above, -1)
        jumped[below] = above[above[below]]
        above = jumped
        below = below[above[below] >= 0]
    return tuple(rounds)
