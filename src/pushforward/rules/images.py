"""Images: channels against pixels, windows against columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.gather import Gather
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import rule, with_output
from pushforward.rules.views import permute_map, shape_of, transpose_map

aten = torch.ops.aten


def _pixel_shuffle(x: Tensor, upscale_factor: int) -> AbstractLinearMap:
    return _pixel_shuffle_map(shape_of(x), upscale_factor)


@with_output
def _pixel_unshuffle(x: Tensor, downscale_factor: int, *, out: Tensor) -> AbstractLinearMap:
    return transpose(_pixel_shuffle_map(shape_of(out), downscale_factor))


def _pixel_shuffle_map(shape: Shape, r: int) -> AbstractLinearMap:
    """Return (..., C r², H, W) -> (..., C, r, r, H, W) -> (..., C, H, r, W, r) -> merged."""
    *lead, channels, height, width = shape
    lead = [*lead, channels // (r * r)]
    split = Reshape(shape, (*lead, r, r, height, width))
    k = len(lead)
    moved = permute_map(split.out_shape, [*range(k), k + 2, k, k + 3, k + 1])
    return compose(split, moved, Reshape(moved.out_shape, (*lead, height * r, width * r)))


def _channel_shuffle(x: Tensor, groups: int) -> AbstractLinearMap:
    batch, channels, *rest = shape_of(x)
    split = Reshape(shape_of(x), (batch, groups, channels // groups, *rest))
    moved = transpose_map(split.out_shape, 1, 2)
    return compose(split, moved, Reshape(moved.out_shape, shape_of(x)))


Pair = Sequence[int]


def _im2col_map(
    x: Tensor, shape: Shape, kernel_size: Pair, dilation: Pair, padding: Pair, stride: Pair
) -> AbstractLinearMap:
    """Return (..., C, H, W) -> (..., C, window, place) -> (..., C window, place)."""
    *lead, channels, height, width = shape
    # In float64, which im2col takes on every device; positions count from 1, padding is 0.
    place = torch.arange(1, height * width + 1, dtype=torch.float64, device=x.device)
    place = place.reshape(1, 1, height, width)
    columns = aten.im2col(place, kernel_size, dilation, padding, stride)[0].long() - 1
    window, places = columns.shape
    split = (*lead, channels, window, places)
    axes = (len(shape) - 2, len(shape) - 1)
    taken = Gather(shape, split, columns.reshape(-1), axes, axes)
    return compose(taken, Reshape(split, (*lead, channels * window, places)))


def _im2col(
    x: Tensor, kernel_size: Pair, dilation: Pair, padding: Pair, stride: Pair
) -> AbstractLinearMap:
    return _im2col_map(x, shape_of(x), kernel_size, dilation, padding, stride)


@with_output
def _col2im(
    x: Tensor,
    output_size: Pair,
    kernel_size: Pair,
    dilation: Pair,
    padding: Pair,
    stride: Pair,
    *,
    out: Tensor,
) -> AbstractLinearMap:
    return transpose(_im2col_map(x, shape_of(out), kernel_size, dilation, padding, stride))


rule(aten.pixel_shuffle, _pixel_shuffle)
rule(aten.pixel_unshuffle, _pixel_unshuffle)
rule(aten.channel_shuffle, _channel_shuffle)
rule(aten.im2col, _im2col)
rule(aten.col2im, _col2im)
