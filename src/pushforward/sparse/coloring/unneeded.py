"""Colours that no entry is read from: their seeds are left out, and their vertices have no colour."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pushforward.sparse.coloring.forest import Forest


def drop_unneeded(forest: Forest, colors: Tensor, fixed: Tensor) -> tuple[Forest, Tensor]:
    """Return the forest with lone edges read from the fewest colours, and colours without those not read from.

    Args:
        forest: The trees of ``colors``.
        colors: A colour for each vertex; no two sides of a bipartite graph share one.
        fixed: The vertices whose own colour is read from besides: those with an entry on the diagonal.

    References:
        Montoison, Dalle, Gebremedhin: Revisiting sparse matrix coloring and bicoloring, arXiv 2505.07308 (2025),
        on neutral colours and their removal.
    """
    num_colors = int(colors.max()) + 1 if len(colors) else 0
    needed = torch.zeros(num_colors, dtype=torch.bool)
    needed[colors[fixed]] = True
    needed[colors[forest.parent[~forest.is_alone]]] = True
    _cover(colors[forest.child[forest.is_alone]], colors[forest.parent[forest.is_alone]], needed)
    turned = forest.is_alone & ~needed[colors[forest.parent]]
    # No colour, -1, stays none: it is the last place.
    renamed = torch.cat((torch.where(needed, needed.cumsum(0) - 1, -1), torch.tensor([-1])))
    return dataclasses.replace(
        forest,
        child=torch.where(turned, forest.parent, forest.child),
        parent=torch.where(turned, forest.child, forest.parent),
    ), renamed[colors]


def _cover(one: Tensor, two: Tensor, needed: Tensor) -> None:
    """Mark colours until each pair has a marked one: the one in most pairs first."""
    open_pairs = ~(needed[one] | needed[two])
    keys = (one * len(needed) + two)[open_pairs].unique()
    pairs = torch.stack((keys // len(needed), keys % len(needed)), 1)
    while len(pairs):
        color = int(torch.bincount(pairs.reshape(-1)).argmax())
        needed[color] = True
        pairs = pairs[(pairs != color).all(1)]
