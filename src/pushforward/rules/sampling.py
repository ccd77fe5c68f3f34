"""Sampling of images at given places: every output is a weighted sum of the taps around its place.

The weight of a tap is a product of one factor for each axis, so that derivatives with respect to the
place replace factors by their slopes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.kinds.contract import Contract
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import rule

aten = torch.ops.aten

BILINEAR, NEAREST, BICUBIC = 0, 1, 2  # at::native::GridSamplerInterpolation
ZEROS, BORDER, REFLECTION = 0, 1, 2  # at::native::GridSamplerPadding
CUBIC = -0.75  # the free coefficient of PyTorch's cubic convolution


@dataclasses.dataclass(frozen=True, slots=True)
class _Axis:
    """The taps along one axis: where they are, and their factors with two derivatives."""

    index: Tensor  # (batch, taps, places)
    factors: tuple[Tensor, Tensor, Tensor]  # each like the index


def _axis(coord: Tensor, size: int, mode: int, padding: int, align_corners: bool) -> _Axis:
    """Return the taps of the normalized coordinate ``coord``, from -1 to 1 across ``size`` positions."""
    stretch = (size - 1) / 2 if align_corners else size / 2
    place = coord * stretch + (size - 1) / 2
    slope = torch.full_like(place, stretch)
    if mode != BICUBIC:
        place, turn = _padded(place, size, padding, align_corners)
        slope = slope * turn
    if mode == NEAREST:
        whole = place.round()
        values = [torch.ones_like(place)], [torch.zeros_like(place)], [torch.zeros_like(place)]
        offsets = torch.zeros(1, device=place.device)
    else:
        whole = place.floor()
        values = (_linear if mode == BILINEAR else _cubic)(place - whole)
        offsets = torch.arange(len(values[0]), device=place.device) - int(mode == BICUBIC)
    taps = whole.detach().unsqueeze(1) + offsets.unsqueeze(-1)
    if mode == BICUBIC:
        taps = _padded(taps, size, padding, align_corners)[0]
    inside = (taps >= 0) & (taps <= size - 1)
    index = torch.where(inside, taps, torch.zeros_like(taps)).long()
    powers = (torch.ones_like(slope), slope, slope * slope)
    zero = place.new_zeros(())
    stacked = [
        torch.where(inside, torch.stack(v, 1) * power.unsqueeze(1), zero)
        for v, power in zip(values, powers, strict=True)
    ]
    return _Axis(index, (stacked[0], stacked[1], stacked[2]))


def _padded(
    place: Tensor, size: int, padding: int, align_corners: bool
) -> tuple[Tensor, Tensor | float]:
    """Return the place inside the image that stands for ``place``, and its slope: 0 on the border."""
    if padding == ZEROS:
        return place, 1.0
    turn: Tensor | float = 1.0
    if padding == REFLECTION:
        low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
        if low == high:
            return torch.zeros_like(place), 0.0
        before = place < low
        distance = torch.where(before, low - place, place - low)
        flips = (distance / (high - low)).floor().detach()
        rest = distance - flips * (high - low)
        even = flips.remainder(2) == 0
        place = torch.where(even, rest + low, high - rest)
        turn = torch.where(before == even, -1.0, 1.0).to(place.dtype)
    edge = torch.where(place > 0, size - 1.0, 0.0).to(place.dtype)
    inside = (place > 0) & (place < size - 1)
    return torch.where(inside, place, edge), torch.where(inside, turn, 0.0).to(place.dtype)


Factors = tuple[list[Tensor], list[Tensor], list[Tensor]]


def _linear(t: Tensor) -> Factors:
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    return [1 - t, t], [-one, one], [zero, zero]


def _cubic(t: Tensor) -> Factors:
    """Return Keys' cubic convolution at the distances t + 1, t, 1 - t, 2 - t."""
    a = CUBIC

    def outer(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return value, (3 * a * x - 10 * a) * x + 8 * a, 6 * a * x - 10 * a

    def inner(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value = ((a + 2) * x - (a + 3)) * x * x + 1
        return value, (3 * (a + 2) * x - 2 * (a + 3)) * x, 6 * (a + 2) * x - 2 * (a + 3)

    left = [outer(t + 1), inner(t)]
    right = [inner(1 - t), outer(2 - t)]
    return (
        [v[0] for v in left] + [v[0] for v in right],
        [v[1] for v in left] + [-v[1] for v in right],
        [v[2] for v in left] + [v[2] for v in right],
    )


class _Taps:
    """All taps of a grid in an image of ``shape``: (batch, channels, *space)."""

    def __init__(self, shape: Shape, grid: Tensor, mode: int, padding: int, align: bool) -> None:
        self.shape = shape
        self.grid_shape = tuple(grid.shape)
        self.sizes = shape[2:]
        self.num_space = len(self.sizes)
        self.places = self.grid_shape[1:-1]
        self.out_shape = (*shape[:2], *self.places)
        # The grid's last axis counts the image's axes from the last.
        self.axes = [
            _axis(grid[..., self.num_space - 1 - d].flatten(1), n, mode, padding, align)
            for d, n in enumerate(self.sizes)
        ]
        index = self.axes[0].index
        for axis, n in zip(self.axes[1:], self.sizes[1:], strict=True):
            index = ((index * n).unsqueeze(2) + axis.index.unsqueeze(1)).flatten(1, 2)
        self.index = index  # (batch, taps, places), flat in space

    def weight(self, *by: int) -> Tensor:
        """Return the weights (batch, taps, places), differentiated by the grid's components ``by``."""
        orders = [by.count(self.num_space - 1 - d) for d in range(self.num_space)]
        weight = self.axes[0].factors[orders[0]]
        for axis, order in zip(self.axes[1:], orders[1:], strict=True):
            weight = (weight.unsqueeze(2) * axis.factors[order].unsqueeze(1)).flatten(1, 2)
        return weight

    def slopes(self) -> Tensor:
        """Return the slopes of the weights: (batch, components, taps, places)."""
        return torch.stack([self.weight(d) for d in range(self.num_space)], 1)

    def take(self, images: Tensor) -> Tensor:
        """Return (..., batch, channels, taps, places) from images (..., batch, channels, *space)."""
        flat = images.flatten(-self.num_space)
        index = self.index.flatten(1).unsqueeze(1).expand((*flat.shape[:-1], -1))
        if flat.shape[-1] == 0:
            return flat.new_zeros((*flat.shape[:-1], *self.index.shape[1:]))
        taken: Tensor = flat.gather(-1, index).unflatten(-1, self.index.shape[1:])
        return taken

    def put(self, values: Tensor) -> Tensor:
        """Add up what `take` would have taken: its adjoint."""
        flat = values.flatten(-2)
        index = self.index.flatten(1).unsqueeze(1).expand(flat.shape)
        zeros = flat.new_zeros((*flat.shape[:-1], math.prod(self.sizes)))
        summed: Tensor = zeros.scatter_add(-1, index, flat).unflatten(-1, self.sizes)
        return summed

    @property
    def letters(self) -> str:
        return "xyz"[: self.num_space]

    def image_map(self) -> AbstractLinearMap:
        """Return the map from the image."""
        weight = self.weight().unsqueeze(1)

        def push(seeds: Tensor) -> Tensor:
            return (self.take(seeds) * weight).sum(-2).reshape(len(seeds), *self.out_shape)

        def pull(seeds: Tensor) -> Tensor:
            return self.put(seeds.flatten(3).unsqueeze(-2) * weight)

        return General(self.shape, self.out_shape, push, pull, ((0, 0), (1, 1)))

    def grid_map(self, image: Tensor) -> AbstractLinearMap:
        """Return the map from the grid: a gradient of the image at every place."""
        slope = torch.einsum("nckp,ndkp->ncpd", self.take(image), self.slopes())
        slope = slope.reshape(*self.out_shape, self.num_space)
        near, out = f"n{self.letters}d", f"nc{self.letters}"
        return Contract(self.grid_shape, self.out_shape, near, f"{out}d", out, slope)


for _operator in (aten.grid_sampler_2d, aten.grid_sampler_3d):
    rule(
        _operator,
        lambda input, grid, *modes: _Taps(tuple(input.shape), grid, *modes).image_map(),
        lambda input, grid, *modes: _Taps(tuple(input.shape), grid, *modes).grid_map(input),
    )

# The backward operator, which functions that call autograd inside use


def _backward_cotangent(
    grad_output: Tensor, input: Tensor, grid: Tensor, *options: Any
) -> tuple[AbstractLinearMap | None, AbstractLinearMap | None]:
    *modes, output_mask = options
    taps = _Taps(tuple(input.shape), grid, *modes)
    image = transpose(taps.image_map()) if output_mask[0] else None
    return image, transpose(taps.grid_map(input)) if output_mask[1] else None


def _backward_image(
    grad_output: Tensor, input: Tensor, grid: Tensor, *options: Any
) -> tuple[None, AbstractLinearMap | None]:
    *modes, output_mask = options
    if not output_mask[1]:
        return None, None
    taps = _Taps(tuple(input.shape), grid, *modes)
    return None, _image_to_grid(taps, grad_output)


def _image_to_grid(taps: _Taps, grad_output: Tensor) -> General:
    """Return the map from the image to the cotangent of the grid; its transpose goes from grid to image."""
    cotangent, slopes = grad_output.flatten(2), taps.slopes()

    def push(seeds: Tensor) -> Tensor:
        result = torch.einsum("snckp,ncp,ndkp->snpd", taps.take(seeds), cotangent, slopes)
        return result.reshape(len(seeds), *taps.grid_shape)

    def pull(seeds: Tensor) -> Tensor:
        flat = seeds.reshape(len(seeds), *cotangent.shape[::2], taps.num_space)
        return taps.put(torch.einsum("snpd,ncp,ndkp->snckp", flat, cotangent, slopes))

    return General(taps.shape, taps.grid_shape, push, pull, ((0, 0),))


def _backward_grid(
    grad_output: Tensor, input: Tensor, grid: Tensor, *options: Any
) -> tuple[AbstractLinearMap | None, AbstractLinearMap | None]:
    *modes, output_mask = options
    taps = _Taps(tuple(input.shape), grid, *modes)
    image_map = transpose(_image_to_grid(taps, grad_output)) if output_mask[0] else None
    grid_map: AbstractLinearMap | None = None
    if output_mask[1]:
        d = range(taps.num_space)
        weighted = torch.einsum("ncp,nckp->nkp", grad_output.flatten(2), taps.take(input))
        curvature = [(weighted * taps.weight(i, j)).sum(1) for i, j in itertools.product(d, d)]
        const = torch.stack(curvature, -1)
        const = const.reshape(*taps.grid_shape, taps.num_space)
        near = f"n{taps.letters}d"
        out = f"n{taps.letters}e"
        grid_map = Contract(taps.grid_shape, taps.grid_shape, near, f"{near}e", out, const)
    return image_map, grid_map


for _operator in (aten.grid_sampler_2d_backward, aten.grid_sampler_3d_backward):
    rule(_operator, _backward_cotangent, _backward_image, _backward_grid)


# Grids of affine maps


def _affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool) -> AbstractLinearMap:
    """Return θ ↦ Σ_j θ_nij base_...j, the base as the operator itself gives it: x, y (and z) and 1."""
    ndim = theta.shape[-1] - 1
    unit = torch.eye(ndim + 1, dtype=theta.dtype, device=theta.device).unsqueeze(1)
    unit = unit.expand(ndim + 1, ndim, ndim + 1)
    base = aten.affine_grid_generator(unit, [ndim + 1, *size[1:]], align_corners)[..., 0]
    space = "dhw"[3 - ndim :]
    shape = (*theta.shape[:1], *size[2:], ndim)
    return Contract(tuple(theta.shape), shape, "nij", f"j{space}", f"n{space}i", base)


rule(aten.affine_grid_generator, _affine_grid)
