"""Patterns of known structure, for colourings."""

import torch

from pushforward.sparse.pattern import Pattern


def brusselator(size: int) -> Pattern:
    """Two fields on a periodic grid: five points of one, and the point itself of the other."""
    place = torch.arange(2 * size * size).reshape(2, size, size)
    near = [place, place.flip(0)]
    near += [place.roll(step, axis) for step in (1, -1) for axis in (1, 2)]
    rows = [place.reshape(-1)] * len(near)
    return Pattern.from_coo((place.numel(),) * 2, torch.cat(rows), torch.stack(near).reshape(-1))


def grid(*sizes: int) -> Pattern:
    """A point and its neighbours along each axis, not periodic."""
    place = torch.arange(torch.Size(sizes).numel()).reshape(sizes)
    pairs = [(place, place)]
    for axis, size in enumerate(sizes):
        one, two = place.narrow(axis, 0, size - 1), place.narrow(axis, 1, size - 1)
        pairs += [(one, two), (two, one)]
    rows, cols = (torch.cat([x.reshape(-1) for x in side]) for side in zip(*pairs, strict=True))
    return Pattern.from_coo((place.numel(),) * 2, rows, cols)


def arrow(size: int) -> Pattern:
    """A full first row, a full first column and the diagonal."""
    mask = torch.eye(size, dtype=torch.bool)
    mask[0] = mask[:, 0] = True
    return Pattern.from_matrix(mask)


def band(size: int, width: int) -> Pattern:
    """The diagonal and ``width`` more on each side."""
    return Pattern.from_matrix(torch.ones(size, size).triu(-width).tril(width))


def random(rows: int, cols: int, density: float) -> Pattern:
    return Pattern.from_matrix(torch.rand(rows, cols) < density)


def random_symmetric(size: int, density: float, *, diagonal: bool = True) -> Pattern:
    mask = (torch.rand(size, size) < density).triu(1)
    mask = mask | mask.T
    return Pattern.from_matrix(mask.fill_diagonal_(diagonal))
