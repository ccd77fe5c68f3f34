"""Resampling: linear operators that do the same to every plane of an image, as maps."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, kept_axes
from pushforward.linear.kinds.general import General, Resampling


def resampler(
    in_shape: Shape,
    out_shape: Shape,
    num_space: int,
    forward: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor, Shape], Tensor],
) -> General:
    """Return the map of a linear operator that does the same to every plane.

    ``forward`` takes ``(planes, channels, *space)``, and ``backward`` takes its output's cotangent
    and the shape of its input.
    """

    def fold(seeds: Tensor) -> Tensor:
        lead = seeds.shape[: seeds.ndim - num_space - 1]
        return seeds.reshape(math.prod(lead), *seeds.shape[len(lead) :])

    def push(seeds: Tensor) -> Tensor:
        result = forward(fold(seeds))
        return result.reshape(seeds.shape[: seeds.ndim - num_space] + result.shape[2:])

    def pull(seeds: Tensor) -> Tensor:
        folded = fold(seeds)
        space = in_shape[len(in_shape) - num_space :]
        shape = (*folded.shape[:2], *space)
        # The kernels refuse to have no channels.
        result = backward(folded, shape) if folded.shape[1] else folded.new_zeros(shape)
        return result.reshape(seeds.shape[: seeds.ndim - num_space] + result.shape[2:])

    lead = len(in_shape) - num_space
    factors = functools.partial(_factors, push, in_shape[lead:], lead)
    return General(in_shape, out_shape, push, pull, kept_axes(lead), uniform=True, factors=factors)


def _factors(push: Callable[[Tensor], Tensor], space: Shape, lead: int) -> list[Resampling]:
    """Return a resampling of planes as one along each axis, of which it is the product.

    Math: with R = A ⊗ B and 1 all ones, R (e_j ⊗ 1) = A e_j ⊗ B 1: a column of A, times a number for each position
    along the other axis.
    """
    ones = torch.ones((1,) * (lead + 1) + space, dtype=torch.float64)
    whole = push(ones).reshape(push(ones).shape[lead + 1 :])
    place = [int(i) for i in torch.unravel_index(whole.abs().argmax(), whole.shape)]
    found = []
    for axis, size in enumerate(space):
        sizes = [size if a == axis else 1 for a in range(len(space))]
        seeds = torch.eye(size, dtype=torch.float64).reshape(size, *(1,) * lead, *sizes)
        pushed = push(seeds.expand(size, *(1,) * lead, *space).contiguous())
        pushed = pushed.reshape(size, *pushed.shape[lead + 1 :]).movedim(1 + axis, 1)
        others = [p for a, p in enumerate(place) if a != axis]
        columns = pushed
        for p in others:
            columns = columns.select(2, p)
        # Each factor but the first without the numbers of the others.
        scale = 1.0 if axis == 0 else float(whole[tuple(place)])
        found.append(_taps(lead + axis, columns.T / scale))
    return found


def _taps(axis: int, matrix: Tensor) -> Resampling:
    """Write a matrix ``(out, in)`` as the few entries of each row."""
    present = matrix != 0
    count = int(present.sum(1).max()) if matrix.numel() else 0
    order = torch.sort((~present).to(torch.int8), dim=1, stable=True).indices[:, :count]
    weight = matrix.gather(1, order)
    return Resampling(axis, torch.where(present.gather(1, order), order, -1).T, weight.T)
