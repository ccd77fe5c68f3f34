"""Lattice colouring: on a grid, the colour of a column is a linear function of its coordinates, modulo a number.

Stencils have it as their best colouring, and greedy ones seldom find it. Nobody says where the grid is: its strides
are looked for among the distances of columns that meet, and what is found is tried on the whole pattern.

References:
    Newsam, Ramsdell: Estimation of sparse Jacobian matrices, SIAM J. Alg. Disc. Meth. 4 (1983), on colourings by
    residues; Goldfarb, Toint: Optimal estimation of Jacobian and Hessian matrices that arise in finite difference
    calculations, Math. Comp. 43 (1984), on stencils.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from pushforward.sparse.pattern import Pattern

SAMPLE = 256  # rows that are looked at first
MOST_PAIRS = 10_000  # of columns in one row; a stencil has far fewer
MOST_DISTANCES = 200  # between these columns
MOST_AXES = 4
MOST_FUNCTIONS = 1_000  # for one grid
MOST_GUESSES = 4  # for one grid and modulus
MOST_CHECKS = 16  # of the whole pattern


def lattice_coloring(pattern: Pattern, fewest: int, most: int) -> Tensor | None:
    """Return colours of the columns by a linear function, at least and at most so many, or None.

    Math: color(x) = word(a·x mod M), where no two columns that meet differ by less than 1 or more than d modulo M,
    and the word on the circle of M has no letter twice within d: its blocks are as many as have d + 1 letters or
    more. One block, M = d + 1, is the plain lattice; more blocks fit a periodic grid of any size.
    """
    one, two = _pairs(pattern)
    num_cols = pattern.shape[1]
    guesses: list[_Guess] = []
    for strides in _grids((two - one).unique().tolist(), num_cols):
        steps = _distinct_rows(_coordinates(two, strides) - _coordinates(one, strides))
        moduli = {*range(fewest, most + 1), *_periods(strides, num_cols)}
        guesses += _guesses(strides, steps, sorted(moduli), most)
    guesses.sort(key=lambda guess: guess.num_colors)  # grids with few axes stay first
    for guess in guesses[:MOST_CHECKS]:
        colors = guess.colors(num_cols)
        if is_valid(pattern, colors):
            return _in_use(pattern, colors)
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class _Guess:
    """A linear function, and the word of which it tells the place."""

    strides: tuple[int, ...]
    function: Tensor  # (axes,)
    modulus: int
    num_blocks: int

    @property
    def num_colors(self) -> int:
        """The length of the longest block."""
        return -(-self.modulus // self.num_blocks)

    def colors(self, num_cols: int) -> Tensor:
        """Return the place of each column in its block."""
        coordinates = _coordinates(torch.arange(num_cols), self.strides)
        place = torch.remainder((coordinates * self.function).sum(1), self.modulus)
        block = place * self.num_blocks // self.modulus
        return place - -(-block * self.modulus // self.num_blocks)


def interleaved_orders(pattern: Pattern, most: int = 16) -> Iterator[Tensor]:
    """Yield orders in which the columns of several equal fields, one after the other, are taken point by point."""
    num_cols = pattern.shape[1]
    one, two = _pairs(pattern)
    for stride in (two - one).unique().flip(0).tolist():
        if stride * most >= num_cols > stride and num_cols % stride == 0:
            yield torch.arange(num_cols).reshape(-1, stride).T.reshape(-1)


def is_valid(pattern: Pattern, colors: Tensor) -> bool:
    """Return whether no colour comes twice in a row."""
    width = int(colors.max()) + 1 if len(colors) else 0
    met = torch.zeros(pattern.shape[0] * width, dtype=torch.bool)
    met[pattern.rows * width + colors[pattern.cols]] = True
    return int(met.count_nonzero()) == pattern.nnz


def _in_use(pattern: Pattern, colors: Tensor) -> Tensor:
    """Return the colours without those of empty columns only, which get -1."""
    is_empty = pattern.transpose().indptr.diff() == 0
    used = torch.bincount(colors[~is_empty]) > 0
    renamed = used.cumsum(0) - 1
    return torch.where(is_empty, -1, renamed[torch.where(is_empty, 0, colors)])


def _pairs(pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Return columns that meet, left and right, in rows from both ends and between; none if they are no grid's."""
    num_rows = pattern.shape[0]
    rows = torch.arange(num_rows)
    if num_rows > SAMPLE:
        ends = SAMPLE // 4
        between = torch.linspace(ends, num_rows - ends - 1, SAMPLE - 2 * ends).long()
        rows = torch.cat((rows[:ends], between, rows[-ends:]))
    starts, lengths = pattern.indptr[rows], pattern.indptr.diff()[rows]
    most = int(lengths.max()) if num_rows else 0
    none = torch.zeros(0, dtype=torch.int64)
    if most * most > MOST_PAIRS:
        return none, none
    left, right = torch.triu_indices(most, most, 1)
    row, pair = torch.nonzero(right < lengths[:, None], as_tuple=True)
    one, two = (pattern.indices[starts[row] + side[pair]] for side in (left, right))
    return (one, two) if len((two - one).unique()) <= MOST_DISTANCES else (none, none)


def _grids(distances: list[int], num_cols: int) -> Iterator[tuple[int, ...]]:
    """Yield strides from among the distances, each a multiple of the one before; few axes first."""
    steps = [step for step in distances if step > 1 and num_cols % step == 0]
    for axes in range(MOST_AXES if distances else 0):
        for strides in itertools.combinations(steps, axes):
            if all(large % small == 0 for small, large in itertools.pairwise(strides)):
                yield (1, *strides)


def _distinct_rows(steps: Tensor) -> Tensor:
    """Return the rows of a matrix of whole numbers, each once."""
    low = steps.min(0).values
    keys = torch.zeros(len(steps), dtype=torch.int64)
    for axis, width in enumerate((steps.max(0).values - low + 1).tolist()):
        keys = keys * width + steps[:, axis] - low[axis]
    _, which = keys.unique(return_inverse=True)
    places = torch.zeros(int(which.max()) + 1, dtype=torch.int64)
    places[which] = torch.arange(len(steps))
    return steps[places]


def _coordinates(columns: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return ``(columns, axes)``."""
    wholes = torch.stack([columns // stride for stride in strides], -1)
    wraps = [large // small for small, large in itertools.pairwise(strides)]
    for axis, wrap in enumerate(wraps):
        wholes[..., axis] %= wrap
    return wholes


def _periods(strides: tuple[int, ...], num_cols: int) -> list[int]:
    """Return the lengths of the grid's axes."""
    return sorted({large // small for small, large in itertools.pairwise((*strides, num_cols))})


def _guesses(
    strides: tuple[int, ...], steps: Tensor, moduli: list[int], most: int
) -> Iterator[_Guess]:
    """Yield the best guesses with at most so many colours, of each modulus."""
    axes = len(strides)
    largest = min(most + 1, int(MOST_FUNCTIONS ** (1 / axes)))
    functions = torch.cartesian_prod(*[torch.arange(largest)] * axes).reshape(-1, axes)
    products = functions @ steps.T
    for modulus in moduli:
        distances = torch.remainder(products, modulus)
        distances = torch.minimum(distances, modulus - distances)
        num_blocks = (modulus // (distances.amax(1) + 1)).clamp(min=1)
        num_colors = -(-modulus // num_blocks)
        num_colors[distances.amin(1) == 0] = most + 1
        for place in torch.sort(num_colors, stable=True).indices[:MOST_GUESSES].tolist():
            if num_colors[place] <= most:
                yield _Guess(strides, functions[place], modulus, int(num_blocks[place]))
