"""Fourier transforms. All are real-linear, and the same at every place of the other axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Pairs, Shape, kept_axes, normalize_axis
from pushforward.linear.kinds.general import General
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten


def _inner(dim: Sequence[int], ndim: int) -> list[int]:
    """Return the transformed axes behind the axis of seeds."""
    return [normalize_axis(d, ndim) + 1 for d in dim]


def _kept(dim: Sequence[int], ndim: int) -> Pairs:
    return kept_axes(ndim, *[normalize_axis(d, ndim) for d in dim])


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


def _complex(x: Tensor) -> Tensor:
    return x if x.is_complex() else torch.complex(x, torch.zeros_like(x))


def _also_of_none(transform: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Let ``transform`` take no seeds at all, as an empty argument has: the FFT libraries refuse them."""

    def transform_seeds(seeds: Tensor) -> Tensor:
        if seeds.shape[0]:
            return transform(seeds)
        return transform(seeds.new_zeros((1, *seeds.shape[1:])))[:0]

    return transform_seeds


@with_output
def _c2c(
    self: Tensor, dim: Sequence[int], normalization: int, forward: bool, *, out: Tensor
) -> General:
    """The adjoint of a transform is the one in the other direction, with the same factor."""
    inner = _inner(dim, self.ndim)

    @_also_of_none
    def push(seeds: Tensor) -> Tensor:
        result: Tensor = aten._fft_c2c(_complex(seeds), inner, normalization, forward)
        return result

    @_also_of_none
    def pull(seeds: Tensor) -> Tensor:
        result: Tensor = aten._fft_c2c(_complex(seeds), inner, normalization, not forward)
        return result

    shape = tuple(self.shape)
    return General(shape, shape, push, pull, _kept(dim, self.ndim), uniform=True)


def _half_spectrum(seeds: Tensor, axis: int, size: int) -> Tensor:
    """Return ``seeds`` along ``axis`` filled up with zeros to the whole spectrum of ``size``."""
    shape = list(seeds.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([seeds, seeds.new_zeros(shape)], axis)


@with_output
def _r2c(
    self: Tensor, dim: Sequence[int], normalization: int, onesided: bool, *, out: Tensor
) -> General:
    """The adjoint is the real part of the transform back, of the frequencies that are there."""
    inner = _inner(dim, self.ndim)
    last = inner[-1] - 1 if inner else 0
    size = self.shape[last] if inner else 0

    @_also_of_none
    def push(seeds: Tensor) -> Tensor:
        result: Tensor = aten._fft_r2c(_real(seeds), inner, normalization, onesided)
        return result

    @_also_of_none
    def pull(seeds: Tensor) -> Tensor:
        seeds = _half_spectrum(_complex(seeds), last + 1, size) if onesided else _complex(seeds)
        result: Tensor = aten._fft_c2c(seeds, inner, normalization, False).real
        return result

    return General(
        tuple(self.shape), tuple(out.shape), push, pull, _kept(dim, self.ndim), uniform=True
    )


def _middle_doubled(spectrum: Tensor, axis: int, size: int) -> Tensor:
    """Double what stands for two frequencies: not the zeroth, nor the last of an even ``size``."""
    place = torch.arange(spectrum.shape[axis], device=spectrum.device)
    twice = (place > 0) & (2 * place != size)
    factor = torch.where(twice, 2.0, 1.0).to(_real(spectrum).dtype)
    return spectrum * factor.reshape([-1 if a == axis else 1 for a in range(spectrum.ndim)])


@with_output
def _c2r(
    self: Tensor, dim: Sequence[int], normalization: int, last_dim_size: int, *, out: Tensor
) -> General:
    inner = _inner(dim, self.ndim)
    last = inner[-1]
    shape: Shape = tuple(self.shape)
    size = out.shape[last - 1]

    @_also_of_none
    def push(seeds: Tensor) -> Tensor:
        result: Tensor = aten._fft_c2r(_complex(seeds), inner, normalization, size)
        return result

    @_also_of_none
    def pull(seeds: Tensor) -> Tensor:
        spectrum = aten._fft_r2c(_real(seeds), inner, normalization, True)
        return _middle_doubled(spectrum, last, size)

    return General(shape, tuple(out.shape), push, pull, _kept(dim, self.ndim), uniform=True)


rule(aten._fft_c2c, _c2c)
rule(aten._fft_r2c, _r2c)
rule(aten._fft_c2r, _c2r)
