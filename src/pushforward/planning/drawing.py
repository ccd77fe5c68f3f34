"""A program drawn by matplotlib: a graph, with a picture of the blocks' structure for each variable."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import Part
from pushforward.linear.block import Block
from pushforward.tape.private_torch import bare

FINEST = 36  # cells along an axis of a picture
MOST_NAMED = 120  # variables that get a name beside their picture
INK = "#24497f"

Blocks = tuple[Block, ...]


def draw(
    ax: Any,
    names: Mapping[int, str],
    sources: Mapping[int, tuple[int, ...]],
    blocks: Mapping[int, Blocks],
    title: str,
    is_pulled: bool,
) -> Any:
    """Draw a program.

    Args:
        ax: Axes of matplotlib; None for new ones.
        names: What stands beside each variable, in order of definition.
        sources: The variables that each is made of.
        blocks: The blocks of each.
        title: Of the picture.
        is_pulled: Whether blocks are of cotangents: their seeds are rows then.
    """
    places = _places(sources)
    depth, width = (max(p[i] for p in places.values()) + 1 for i in (1, 0))
    if ax is None:
        from matplotlib import pyplot

        size = (min(2.5 + 2.2 * width, 14), min(1.2 + 0.9 * depth, 40))
        ax = pyplot.subplots(figsize=size, layout="constrained")[1]
    for variable, made_of in sources.items():
        x, y = places[variable]
        for source in made_of:
            _draw_edge(ax, places[source], (x, y))
        _draw_blocks(ax, x, y, blocks.get(variable, ()), is_pulled)
        if len(names) <= MOST_NAMED:
            ax.text(x + 0.34, y, names[variable], va="center", fontsize="small")
    ax.set(xlim=(-0.8, width + 0.2), ylim=(depth - 0.4, -0.6), title=title)
    ax.set_axis_off()
    return ax


def _places(sources: Mapping[int, tuple[int, ...]]) -> dict[int, tuple[float, float]]:
    """Return where each variable stands: below all that it is made of, near the middle of these."""
    places: dict[int, tuple[float, float]] = {}
    rows: dict[int, set[int]] = {}
    for variable, made_of in sources.items():
        found = [places[s] for s in made_of]
        row = int(max((y for _, y in found), default=-1)) + 1
        wanted = sum(x for x, _ in found) / len(found) if found else 0.0
        taken = rows.setdefault(row, set())
        free = (n for n in itertools.count() if n not in taken)
        near = min(itertools.islice(free, len(sources) + 1), key=lambda n: abs(n - wanted))
        taken.add(near)
        places[variable] = float(near), float(row)
    return places


def _draw_edge(ax: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an edge, on the left of what it passes."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    first, last = (start[0], start[1] + 0.3), (end[0], end[1] - 0.3)
    aside = min(first[0], last[0]) - 0.7
    passed = end[1] - start[1] > 1
    between = [(aside, first[1] + 0.3), (aside, last[1] - 0.3)] if passed else [first, last]
    path = Path([first, *between, last], [Path.MOVETO, *[Path.CURVE4] * 3])
    ax.add_patch(PathPatch(path, facecolor="none", edgecolor="0.6", zorder=1))


def _draw_blocks(ax: Any, x: float, y: float, blocks: Blocks, is_pulled: bool) -> None:
    """Draw where entries may be nonzero."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle

    cells = _cells(blocks)
    ax.imshow(
        (cells.mT if is_pulled else cells).numpy(),
        cmap=ListedColormap(["white", INK]),
        vmin=0,
        vmax=1,
        extent=(x - 0.3, x + 0.3, y + 0.3, y - 0.3),
        aspect="auto",
        interpolation="nearest",
        zorder=2,
    )
    frame = Rectangle((x - 0.3, y - 0.3), 0.6, 0.6, fill=False, edgecolor="0.5", linewidth=0.8)
    ax.add_patch(frame).set_zorder(3)


def _cells(blocks: Blocks) -> Tensor:
    """Return the structure of the blocks, those of one far end beside those of another: 0 or 1."""
    with bare():
        small = [(block.source, _small(block)) for block in blocks]
        num_rows = max((len(cells) for _, cells in small), default=1)
        num_cols = max((cells.shape[1] for _, cells in small), default=1)
        ends = {
            source: torch.zeros(num_rows, num_cols)
            for source, _ in sorted(small, key=lambda found: found[0])
        }
        for source, cells in small:
            ends[source] += _resized(cells, num_rows, num_cols)
        return (torch.cat([*ends.values()], 1) != 0).float() if ends else torch.zeros(1, 1)


def _small(block: Block) -> Tensor:
    """Return the structure of a block whose axes are cut to a few positions, as a matrix."""
    finest = max(2, int(FINEST ** (1 / max(len(block.shape), len(block.seed_shape), 1))))
    shape, seed_shape = (
        [max(1, min(n, finest)) for n in sizes] for sizes in (block.shape, block.seed_shape)
    )
    tied = list(block.tied)
    for k, tie in enumerate(tied):
        if isinstance(tie, Part):
            shape[tie.axis] = 2 * seed_shape[k]
            tied[k] = Part(tie.axis, min(tie.within, 2))
    free = tuple(n for n, tie in zip(seed_shape, tied, strict=True) if tie is None)
    ones = torch.ones((*free, *shape))
    full = Block(ones, tuple(shape), tuple(seed_shape), tuple(tied), block.source)
    return full.to_dense().reshape(math.prod(shape), math.prod(seed_shape))


def _resized(cells: Tensor, num_rows: int, num_cols: int) -> Tensor:
    """Return the cells with as many rows and columns, repeated or left out evenly."""
    rows = torch.arange(num_rows) * len(cells) // num_rows
    cols = torch.arange(num_cols) * cells.shape[1] // num_cols
    return cells[rows][:, cols]
