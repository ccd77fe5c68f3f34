"""Convolve: convolutions of any dimension, strided, dilated, grouped, transposed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.block import Block
from pushforward.linear.map import AbstractLinearMap, Pattern, positions

Sizes = tuple[int, ...]


@dataclasses.dataclass(slots=True, repr=False)
class Convolve(AbstractLinearMap):
    """Convolve ``(batch, channels, *space)`` with a constant weight.

    Math: ẏ = conv(ẋ, W), x̄ = the transposed convolution of ȳ with conj W. Jacobian: a stencil; the
    batch axis stays tied.
    """

    weight: (
        Tensor  # (out channels, in channels / groups, *kernel); in and out exchanged if transposed
    )
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    transposed: bool
    groups: int

    def push(self, block: Block) -> Block:
        """Convolve, all seeds as one batch."""
        return block.apply(self._push, self.out_shape, ((0, 0),), uniform=True)

    def pull(self, block: Block) -> Block:
        """Convolve the other way, all seeds as one batch."""
        return block.apply(self._pull, self.in_shape, ((0, 0),), uniform=True)

    def _push(self, tangents: Tensor) -> Tensor:
        return self._apply(tangents, self.weight, self.out_shape, transposed=self.transposed)

    def _pull(self, cotangents: Tensor) -> Tensor:
        weight = self.weight.conj() if self.weight.is_complex() else self.weight
        return self._apply(cotangents, weight, self.in_shape, transposed=not self.transposed)

    def _apply(self, seeds: Tensor, weight: Tensor, shape: Shape, *, transposed: bool) -> Tensor:
        num_seeds, batch = seeds.shape[:2]
        if seeds.numel() == 0:
            return seeds.new_zeros((num_seeds, batch, *shape[1:]))
        folded = seeds.reshape(num_seeds * batch, *seeds.shape[2:])
        weight = weight.to(seeds.dtype)
        extra = self._output_padding(seeds.shape[3:], shape[2:]) if transposed else self._no_padding
        result = convolve(
            folded, weight, self.stride, self.padding, self.dilation, transposed, extra, self.groups
        )
        for axis, size in enumerate(shape[2:], 2):
            result = result.narrow(axis, 0, size)
        return result.reshape(num_seeds, batch, *result.shape[1:])

    @property
    def _no_padding(self) -> Sizes:
        return (0,) * len(self.stride)

    def _output_padding(self, source: Sizes, target: Sizes) -> Sizes:
        """Say how far the transposed convolution must reach beyond its least size."""
        axes = zip(
            source,
            target,
            self.stride,
            self.padding,
            self.dilation,
            self.weight.shape[2:],
            strict=True,
        )
        return tuple(t - ((n - 1) * s - 2 * p + d * (k - 1) + 1) for n, t, s, p, d, k in axes)

    def pattern(self) -> Pattern:
        """Combine the stencils along each axis of space; dense among the channels of a group."""
        small, large = self.in_shape, self.out_shape
        if not self.transposed:
            small, large = large, small
        rows = positions(large).reshape((*large[:1], self.groups, -1, *large[2:]))
        cols = positions(small).reshape((*small[:1], self.groups, -1, *small[2:]))
        rows = rows.unsqueeze(3).expand(*rows.shape[:3], cols.shape[2], *large[2:])
        cols = cols.unsqueeze(2).expand(*rows.shape[:3], cols.shape[2], *small[2:])
        for axis in range(len(self.stride)):
            at_large, at_small = self._stencil(axis, large[2 + axis], small[2 + axis])
            rows = rows.index_select(4 + axis, at_large)
            cols = cols.index_select(4 + axis, at_small)
        pair = (rows.flatten(), cols.flatten())
        return pair if self.transposed else (pair[1], pair[0])

    def _stencil(self, axis: int, num_large: int, num_small: int) -> tuple[Tensor, Tensor]:
        tap = torch.arange(self.weight.shape[2 + axis]) * self.dilation[axis]
        small = torch.arange(num_small).unsqueeze(1).expand(num_small, len(tap))
        large = small * self.stride[axis] - self.padding[axis] + tap
        inside = (large >= 0) & (large < num_large)
        return large[inside], small[inside]


def convolve(
    x: Tensor,
    weight: Tensor,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
) -> Tensor:
    """Return the convolution without bias, also of complex numbers."""
    options = (None, stride, padding, dilation, transposed, output_padding, groups)
    return by_parts(lambda image, kernel: torch.convolution(image, kernel, *options), x, weight)


def by_parts(function: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Return a bilinear function of two tensors; of complex ones by three real products, as PyTorch has only those."""
    if not first.is_complex():
        return function(first, second)
    # (a + ib)(c + id)
    real = function(first.real, second.real)
    imaginary = function(first.imag, second.imag)
    both = function(first.real + first.imag, second.real + second.imag)
    return torch.complex(real - imaginary, both - imaginary - real)
