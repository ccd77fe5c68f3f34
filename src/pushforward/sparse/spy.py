"""spy: a sparse matrix, its blocks or its colouring, drawn by matplotlib."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pushforward.sparse.coloring.result import Coloring
from pushforward.sparse.entries import rows_of
from pushforward.sparse.pattern import Pattern, pattern_of

FINEST = 400  # cells along an axis
LARGEST_GRID = 64  # rows or columns between which lines are drawn
MOST_BLOCKS = 4000  # that are outlined
OBLONG = 4  # times as long as wide: no longer drawn with equal scales
INK = "#24497f"


def spy(matrix: Any, ax: Any = None) -> Any:
    """Draw where a matrix may be non-zero; of a colouring, each entry in the color of the seed that it is read from.

    A large matrix is drawn in fewer cells, each filled where any entry falls into it: nothing vanishes.

    Args:
        matrix: A `Pattern`; a colouring of one; or what `Pattern.from_matrix` takes: a torch tensor of any layout
            (blocks of BSR are outlined, unless they are very many), or a ``scipy.sparse`` matrix.
        ax: The axes of matplotlib to draw into; None for new ones.

    Returns:
        The axes.

    Raises:
        ArgumentTypeError: It is none of these.
        ImportError: matplotlib is not installed; ``pip install 'pushforward[plot]'`` brings it.

    Example:
        >>> from matplotlib.figure import Figure
        >>> spy(torch.eye(4), Figure().subplots()).get_title()
        '4×4, 4 non-zeros'
    """
    from matplotlib import pyplot

    coloring = matrix if isinstance(matrix, Coloring) else None
    pattern = coloring.pattern if coloring is not None else pattern_of("spy", matrix)
    num_rows, num_cols = pattern.shape
    title = f"{num_rows}×{num_cols}, {pattern.nnz} non-zeros"
    colors, num_colors = torch.zeros_like(pattern.cols), 1
    if coloring is not None:
        colors, num_colors = coloring.entry_colors, coloring.num_colors
        title += f", {num_colors} colors"
    if ax is None:
        ax = pyplot.subplots(layout="constrained")[1]
    if min(pattern.shape) > 0:
        ax.imshow(
            _cells(pattern, colors).numpy(),
            cmap=_palette(num_colors),
            vmin=-0.5,
            vmax=max(num_colors, 1) - 0.5,
            extent=(-0.5, num_cols - 0.5, num_rows - 0.5, -0.5),
            aspect="auto" if max(pattern.shape) > OBLONG * min(pattern.shape) else "equal",
        )
    if isinstance(matrix, Tensor) and matrix.layout == torch.sparse_bsr:
        _outline(ax, matrix)
    elif max(pattern.shape) <= LARGEST_GRID:
        ax.set_xticks(torch.arange(num_cols + 1).numpy() - 0.5, minor=True)
        ax.set_yticks(torch.arange(num_rows + 1).numpy() - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=1)
        ax.tick_params(which="minor", length=0)
    ax.set(title=title, xlabel="column", ylabel="row")
    return ax


def _cells(pattern: Pattern, colors: Tensor) -> Tensor:
    """Return the picture: the largest color of the entries in each cell, nan where there is none."""
    height, width = (min(size, FINEST) for size in pattern.shape)
    places = pattern.rows * height // pattern.shape[0] * width
    places = places + pattern.cols * width // pattern.shape[1]
    cells = torch.full((height * width,), -1.0)
    cells.scatter_reduce_(0, places, colors.to(cells.dtype), "amax")
    return cells.masked_fill(cells < 0, torch.nan).reshape(height, width)


def _palette(num_colors: int) -> Any:
    """Return as many colors as distinct as may be."""
    from matplotlib import color_sequences, colormaps
    from matplotlib.colors import ListedColormap

    if num_colors <= 1:
        return ListedColormap([INK])
    if num_colors <= 10:
        return ListedColormap(color_sequences["tab10"][:num_colors])
    return colormaps["turbo"].resampled(num_colors)


def _outline(ax: Any, matrix: Tensor) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    height, width = matrix.values().shape[1:3]
    cols = matrix.col_indices()
    if len(cols) > MOST_BLOCKS:
        return
    rows = rows_of(matrix.crow_indices())
    corners = zip((cols * width).tolist(), (rows * height).tolist(), strict=True)
    blocks = [Rectangle((x - 0.5, y - 0.5), width, height) for x, y in corners]
    ax.add_collection(PatchCollection(blocks, facecolor="none", edgecolor="white", linewidth=0.8))
