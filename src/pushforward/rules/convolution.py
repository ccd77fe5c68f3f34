"""Convolutions of one to three dimensions, ordinary and transposed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.convolve import Convolve, Sizes, by_parts, convolve
from pushforward.linear.kinds.expand import Expand
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.permute import Permute
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten


def _sizes(value: int | Sequence[int], num_axes: int) -> Sizes:
    """Return one size for each axis; a single one stands for all."""
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes * num_axes if len(sizes) == 1 else sizes


@with_output
def convolution_map(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *flags: bool,
    out: Tensor,
) -> AbstractLinearMap:
    """Return the map from the image."""
    n = input.ndim - 2
    return Convolve(
        tuple(input.shape),
        tuple(out.shape),
        weight,
        _sizes(stride, n),
        _sizes(padding, n),
        _sizes(dilation, n),
        transposed,
        groups,
    )


def _is_narrow(image: Tensor, shape: Sizes) -> bool:
    """Whether to convolve an image with cotangents, batch and channels exchanged, for gradients by a weight.

    From 25 taps on, of 4 to 15 channels to 9 and more, in float32 on CPUs, that takes .4 to .9 of the time of PyTorch's
    backward operator, which fills the channels up; of others up to 5 times as much.
    """
    if image.dtype is not torch.float32 or image.device.type not in ("cpu", "meta"):
        return False
    return len(shape) == 4 and 4 <= shape[1] < 16 and shape[0] > 8 and math.prod(shape[2:]) >= 25


@with_output
def convolution_weight_map(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *flags: bool,
    out: Tensor,
) -> AbstractLinearMap:
    """Fold the seeds into the output channels.

    The output channels of the weight are those of the output, position by position; with groups
    that holds for an ordinary convolution only, as the weight of a transposed one has the output
    channels of one group.
    """
    n = input.ndim - 2
    stride, padding = _sizes(stride, n), _sizes(padding, n)
    dilation, extra = _sizes(dilation, n), _sizes(output_padding, n)
    axis = 1 if transposed else 0
    kept = () if transposed and groups > 1 else ((axis, 1),)

    def push(seeds: Tensor) -> Tensor:
        num_seeds, size = len(seeds), seeds.shape[1 + axis]
        channels = size * groups if transposed else size
        if seeds.numel() == 0 or input.numel() == 0:
            return seeds.new_zeros((num_seeds, out.shape[0], channels, *out.shape[2:]))
        if transposed:  # (s, in, o, *k) -> (in, s·o, *k)
            folded = seeds.movedim(0, 1).flatten(1, 2)
        else:  # (s, g·o, in, *k) -> (g·s·o, in, *k)
            folded = seeds.unflatten(1, (groups, size // groups)).movedim(0, 1).flatten(0, 2)
        primal = input.to(seeds.dtype)
        result = convolve(primal, folded, stride, padding, dilation, transposed, extra, groups)
        result = result.unflatten(1, (groups, num_seeds, channels // groups))
        moved: Tensor = result.movedim(2, 0).flatten(2, 3)
        return moved

    def pull_parts(seeds: Tensor, parts: int) -> Tensor:
        """Take each part of the batch for more groups of channels."""
        num_seeds, batch, channels = seeds.shape[:3]
        if seeds.numel() == 0 or input.numel() == 0:
            empty = list(weight.shape)
            empty[axis] = channels // groups if transposed else channels
            return seeds.new_zeros((num_seeds, parts, *empty))
        primal = (input.conj() if input.is_complex() else input).to(seeds.dtype)
        num_groups, per_group = parts * groups, num_seeds * channels // groups
        if num_seeds == parts == 1:
            folded = seeds[0]
        else:  # (s, p·n, g·o, *) -> (n, p·g·s·o, *)
            apart = seeds.unflatten(2, (groups, channels // groups))
            apart = apart.unflatten(1, (parts, batch // parts))
            folded = apart.movedim(0, 3).movedim(0, 1).flatten(1, 4)
            primal = primal.unflatten(0, (parts, batch // parts)).movedim(0, 1).flatten(1, 2)
        if transposed:
            shape = (parts * weight.shape[0], per_group, *weight.shape[2:])
        else:
            shape = (num_groups * per_group, weight.shape[1], *weight.shape[2:])

        is_simple = not transposed and num_groups == 1 and {*stride, *dilation} == {1}

        def correlate(image: Tensor, cotangent: Tensor) -> Tensor:
            if is_simple and _is_narrow(image, shape):
                turned = torch.conv2d(
                    image.transpose(0, 1), cotangent.transpose(0, 1), None, 1, padding
                )
                return turned.transpose(0, 1).contiguous()
            pulled: Tensor = aten.convolution_backward.default(
                cotangent,
                image,
                # Only its shape matters
                torch.empty(shape, dtype=image.dtype, device=image.device),
                None,
                stride,
                padding,
                dilation,
                transposed,
                extra,
                num_groups,
                [False, True, False],
            )[1]
            return pulled

        result = by_parts(correlate, primal, folded)
        if num_seeds == parts == 1:
            return result[None, None]
        moved: Tensor
        if transposed:  # (p·in, s·o, *k) -> (s, p, in, o, *k)
            moved = result.unflatten(1, (num_seeds, -1)).unflatten(0, (parts, -1)).movedim(2, 0)
        else:  # (p·g·s·o, in, *k) -> (s, p, g·o, in, *k)
            moved = result.unflatten(0, (parts, groups, num_seeds, -1)).movedim(2, 0).flatten(2, 3)
        return moved

    def pull(seeds: Tensor) -> Tensor:
        return pull_parts(seeds, 1).squeeze(1)

    return General(
        tuple(weight.shape),
        tuple(out.shape),
        push,
        pull,
        kept,
        uniform=groups == 1,
        pull_parts=pull_parts,
    )


@with_output
def _convolution_bias(
    input: Tensor, weight: Tensor, bias: Tensor, *options: object, out: Tensor
) -> AbstractLinearMap:
    column = (*bias.shape, *(1,) * (out.ndim - 2))
    return compose(Reshape(tuple(bias.shape), column), Expand(column, tuple(out.shape)))


for _operator in (aten.convolution, aten._convolution.default):
    rule(_operator, convolution_map, convolution_weight_map, _convolution_bias)

# Time first, channels last


def _time_first(x: Tensor) -> Tensor:
    return x.permute(1, 2, 0)


def _permute(source: Tensor, dims: tuple[int, ...]) -> Permute:
    shape = tuple(source.shape)
    return Permute(shape, tuple(shape[d] for d in dims), dims)


def _conv_tbc(which: int, self: Tensor, weight: Tensor, pad: int, out: Tensor) -> AbstractLinearMap:
    image, kernel, result = _time_first(self), weight.permute(2, 1, 0), _time_first(out)
    partial = (convolution_map, convolution_weight_map)[which]
    inner = partial(image, kernel, None, [1], [pad], [1], False, [0], 1, out=result)
    before = _permute(self, (1, 2, 0)) if which == 0 else _permute(weight, (2, 1, 0))
    return compose(before, inner, _permute(result, (2, 0, 1)))


rule(
    aten.conv_tbc,
    with_output(lambda self, weight, bias, pad=0, *, out: _conv_tbc(0, self, weight, pad, out)),
    with_output(lambda self, weight, bias, pad=0, *, out: _conv_tbc(1, self, weight, pad, out)),
    with_output(
        lambda self, weight, bias, pad=0, *, out: Expand(tuple(bias.shape), tuple(out.shape))
    ),
)
