"""What it costs to push a block through a map: flops and bytes, read from shapes alone.

Blocks and maps are replaced by shadows: the same objects with tensors of the meta device, which have shapes and no
numbers. The package's own push and pull run on them, so that the predicted structure is the one that arises.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, broadcast
from pushforward.linear.block import Block
from pushforward.linear.kinds.composed import Composed
from pushforward.linear.kinds.contract import Contract
from pushforward.linear.kinds.convolve import Convolve
from pushforward.linear.kinds.gather import Gather, Select, Slice
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.permute import Permute
from pushforward.linear.kinds.pointwise import Pointwise
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scan import Scan
from pushforward.linear.kinds.take_along import TakeAlong
from pushforward.linear.kinds.transposed import Transposed
from pushforward.linear.map import AbstractLinearMap

# Fitted to what repeated calls take (benchmarks/cost_model.py) on one core of a shared EPYC, float32.
SECONDS_PER_CALL = 2.7e-6  # one block through one map
SECONDS_PER_FLOP = 1.2e-11  # products of matrices
SECONDS_PER_BYTE = 1.5e-11  # elementwise, reading and writing

# How many calls the kinds are worth that are more than one product or view.
_CALLS: dict[type, int] = {
    General: 8,
    Convolve: 30,
    Scan: 6,
    Gather: 6,
    TakeAlong: 4,
    Select: 3,
    Slice: 3,
}

# A general map is a pair of functions whose work is not known: this many operations for each number that it touches.
GENERAL_FLOPS_PER_NUMBER = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Work of a pass."""

    calls: int = 0
    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Add up."""
        return Cost(self.calls + other.calls, self.flops + other.flops, self.bytes + other.bytes)

    @property
    def seconds(self) -> float:
        """Return the predicted time on one thread."""
        return (
            self.calls * SECONDS_PER_CALL
            + self.flops * SECONDS_PER_FLOP
            + self.bytes * SECONDS_PER_BYTE
        )

    def __str__(self) -> str:
        """Show time, flops and bytes."""
        return f"{_scaled(self.seconds, 's')}, {_scaled(self.flops, 'flop')}, {_scaled(self.bytes, 'B')}"


def shadow(
    linear_map: AbstractLinearMap, is_recording: bool = False, *, is_whole: bool = False
) -> AbstractLinearMap:
    """Return the map with every tensor replaced by one of the meta device.

    Where autograd ``is_recording`` what is done with them, it follows those that it follows in the map. Maps with
    functions of their own, some of which take shadows, are outlines that tell shapes, unless the map ``is_whole``.
    """
    if isinstance(linear_map, General):
        if is_whole and linear_map.takes_shadows:
            return linear_map
        return dataclasses.replace(
            linear_map,
            push_seeds=_like_shape(linear_map.out_shape, linear_map.kept, 1, is_recording),
            pull_seeds=_like_shape(linear_map.in_shape, linear_map.kept, 0, is_recording),
        )
    if isinstance(linear_map, Pointwise):
        return Pointwise(
            linear_map.in_shape,
            linear_map.out_shape,
            _broadcast(linear_map.out_shape, is_recording),
        )
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(linear_map):
        value = getattr(linear_map, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = shadow_tensor(value, is_recording)
        elif isinstance(value, AbstractLinearMap):
            changes[field.name] = shadow(value, is_recording, is_whole=is_whole)
    return dataclasses.replace(linear_map, **changes) if changes else linear_map


def _broadcast(shape: Shape, is_recording: bool) -> Callable[[Tensor], Tensor]:
    """Return a function of the shapes that a pointwise kernel would have."""

    def function(values: Tensor) -> Tensor:
        result = broadcast(values.shape, shape)
        if is_recording:  # what it is given is kept
            return values.expand(result) * _followed(values)
        return values.new_empty(result)

    return function


def shadow_tensor(tensor: Tensor, is_recording: bool = False) -> Tensor:
    """Return a tensor without numbers, of the same shape and dtype."""
    found = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return found.requires_grad_() if is_recording and tensor.requires_grad else found


def _like_shape(
    shape: Shape, kept: tuple[tuple[int, int], ...], place: int, is_recording: bool
) -> Callable[[Tensor], Tensor]:
    """Return a function of the shapes that a general map's function would have."""

    def function(seeds: Tensor) -> Tensor:
        result = [seeds.shape[0], *shape]
        for pair in kept:
            result[1 + pair[place]] = seeds.shape[1 + pair[1 - place]]
        # A step before the last counts as memory, as large as both ends; where that is recorded, it is kept.
        if is_recording:
            scratch = (seeds.sum() + _followed(seeds)).expand(result).clone()
            return scratch * scratch
        scratch = seeds if seeds.numel() > math.prod(result) else seeds.new_empty(result)
        return torch.empty_like(scratch).new_empty(result)

    return function


def _followed(like: Tensor) -> Tensor:
    """Return a number that autograd follows."""
    return like.new_empty(()).requires_grad_()


def push_cost(linear_map: AbstractLinearMap, block: Block, forward: bool) -> tuple[Block, Cost]:
    """Push (or pull) a shadow; return the block that arises and what it costs."""
    if isinstance(linear_map, Transposed):
        return push_cost(linear_map.of, block, not forward)
    if isinstance(linear_map, Composed):
        steps = (linear_map.first, linear_map.second)
        total = Cost()
        for step in steps if forward else steps[::-1]:
            block, cost = push_cost(step, block, forward)
            total = total + cost
        return block, total
    result = linear_map.push(block) if forward else linear_map.pull(block)
    moved = 0
    if not isinstance(linear_map, (Permute, Reshape)) and result.values is not block.values:
        moved = (_held(block.values) + _held(result.values)) * result.values.element_size()
    return result, Cost(
        _CALLS.get(type(linear_map), 1), _flops(linear_map, block, result, forward), moved
    )


def dense_cost(linear_map: AbstractLinearMap, num_seeds: int) -> Cost:
    """Return what it costs to push so many seeds that have no structure, at most and without a shadow."""
    size = math.prod(linear_map.in_shape) + math.prod(linear_map.out_shape)
    flops = GENERAL_FLOPS_PER_NUMBER * size
    if isinstance(linear_map, Contract):
        letters = dict(zip(linear_map.in_letters, linear_map.in_shape, strict=True))
        letters.update(zip(linear_map.const_letters, linear_map.const.shape, strict=True))
        flops = 2 * math.prod(letters.values())
    elif isinstance(linear_map, Convolve):
        taps = linear_map.weight.numel() // max(linear_map.weight.shape[0], 1)
        flops = 2 * size * taps
    return Cost(_CALLS.get(type(linear_map), 1), num_seeds * flops, num_seeds * 8 * size)


def _flops(linear_map: AbstractLinearMap, block: Block, result: Block, forward: bool) -> int:
    if isinstance(linear_map, Contract):
        near = linear_map.in_letters if forward else linear_map.out_letters
        shape = block.shape
        sizes = block.values.shape[block.num_free :]
        present = {c for c, n, full in zip(near, sizes, shape, strict=True) if n == full}
        new = 1
        for c, n in zip(linear_map.const_letters, linear_map.const.shape, strict=True):
            new *= 1 if c in present else n
        return 2 * block.values.numel() * new
    if isinstance(linear_map, Convolve):
        taps = linear_map.weight.numel() // max(linear_map.weight.shape[0], 1)
        return 2 * max(block.values.numel(), result.values.numel()) * taps
    if isinstance(linear_map, General):
        return GENERAL_FLOPS_PER_NUMBER * (block.values.numel() + result.values.numel())
    return 0


def _held(values: Tensor) -> int:
    """Return how many numbers lie in memory: an expanded axis holds one."""
    size = 1
    for n, stride in zip(values.shape, values.stride(), strict=True):
        size *= n if stride else 1
    return size


def _scaled(value: float, unit: str) -> str:
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0), ("m", 1e-3)):
        if value >= factor:
            return f"{three_digits(value / factor)} {prefix}{unit}"
    return f"{three_digits(value / 1e-6)} µ{unit}" if value else f"0 {unit}"


def three_digits(value: float) -> str:
    """Return a number in short, and never as a power of ten where it is a thousand."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"
