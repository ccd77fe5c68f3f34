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
Options = tuple[Sizes, Sizes, Sizes, bool, Sizes, int]  # as `convolve` has them


@dataclasses.dataclass(slots=True, repr=False)
class Convolve(AbstractLinearMap):
    """Convolve ``(batch, channels, *space)`` with a constant weight.

    Math: ẏ = conv(ẋ, W), x̄ = the transposed convolution of ȳ with conj W. Jacobian: a stencil; the
    batch axis stays tied.
    """

    # (out channels, in channels / groups, *kernel); in and out exchanged if transposed
    weight: Tensor
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
    options = (stride, padding, dilation, transposed, output_padding, groups)
    is_plain = x.device.type not in ("cpu", "meta") or (  # as shadows count for what they stand for
        not transposed if x.dtype is torch.float32 else x.dtype is not torch.float64
    )
    if is_plain or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return by_parts(lambda a, w: torch.convolution(a, w, None, *options), x, weight)
    return by_parts(lambda a, w: _on_cpu(a, w, options), x, weight)


def _on_cpu(x: Tensor, weight: Tensor, options: Options) -> Tensor:
    """Return a convolution that autograd does not follow in the way that takes least time on CPUs.

    Without strides each is the transposed one of the kernel turned round. In float32 the ordinary one takes .4 to .9 of
    the time for fewer than 16 channels, unless one image gets fewer still, and up to 14 times as much for more. In
    float64 the transposed one does, as the gradient of a convolution, unless it makes more channels than there are: a
    half to a tenth.
    """
    stride, padding, dilation, transposed, extra, groups = options
    axes = zip(dilation, weight.shape[2:], padding, strict=True)
    around = tuple(d * (k - 1) - p for d, k, p in axes)
    is_single = x.dtype is torch.float32
    can_turn = groups == 1 and {*stride} == {1} and not any(extra) and min(around) >= 0
    # Channels before and after a transposed one; after and before an ordinary one.
    first, second = weight.shape[:2]
    if transposed:
        is_turned = is_single and first < 16 and (len(x) > 1 or first <= second)
    else:
        is_turned = not is_single and first <= second
    if can_turn and is_turned:
        weight = weight.flip(tuple(range(2, weight.ndim))).transpose(0, 1)
        padding, transposed = around, not transposed
    is_gradient = all(e < s for e, s in zip(extra, stride, strict=True))
    if is_single or not (transposed and is_gradient):
        return torch.convolution(x, weight, None, stride, padding, dilation, transposed, extra, groups)  # fmt: skip
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, extra, strict=True)
    space = [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, k, s, p, d, e in sizes]
    image = x.new_empty(()).expand(len(x), weight.shape[1] * groups, *space)  # for its shape
    rest = (stride, padding, dilation, False, (0,) * len(stride), groups, [True, False, False])
    result: Tensor = torch.ops.aten.convolution_backward.default(x, image, weight, None, *rest)[0]
    return result


def by_parts(function: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Return a bilinear function of two tensors; of complex ones by three real products, as PyTorch has only those."""
    if not first.is_complex():
        return function(first, second)
    # (a + ib)(c + id)
    real = function(first.real, second.real)
    imaginary = function(first.imag, second.imag)
    both = function(first.real + first.imag, second.real + second.imag)
    return torch.complex(real - imaginary, both - imaginary - real)
