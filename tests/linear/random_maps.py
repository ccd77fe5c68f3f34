"""Random shapes, blocks and linear maps, made from a `random.Random`, which Hypothesis shrinks."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from pushforward.linear.axes import Part, Tie
from pushforward.linear.block import Block
from pushforward.linear.kinds.composed import Composed
from pushforward.linear.kinds.concat import Concat
from pushforward.linear.kinds.contract import Contract
from pushforward.linear.kinds.convolve import Convolve
from pushforward.linear.kinds.expand import Expand
from pushforward.linear.kinds.gather import Gather, Select, Slice
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.mask import Mask
from pushforward.linear.kinds.permute import Permute
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.scan import Scan
from pushforward.linear.kinds.sum import Sum
from pushforward.linear.kinds.take_along import TakeAlong
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap

Shape = tuple[int, ...]
DTYPES = (torch.float64, torch.complex128)


def values(rng: Random, shape: Shape, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return torch.randn(shape, dtype=dtype, generator=generator)


def shape(rng: Random, least: int = 0, most: int = 3, zero: bool = True) -> Shape:
    sizes = [1, 2, 3, 3, 2, 4] + ([0] if zero else [])
    return tuple(rng.choice(sizes) for _ in range(rng.randint(least, most)))


def block(rng: Random, near: Shape, dtype: torch.dtype = torch.float64) -> Block:
    """A block with tied and free seed axes in any order, several on one near axis.

    Some are tied to parts of axes, some values constant along axes. A seed axis of size 1 is always free, as in
    `identity`.
    """
    seed_shape: list[int] = []
    tied: list[Tie | None] = []
    for _ in range(rng.randint(0, 3)):
        axis = rng.randrange(len(near)) if near and rng.random() < 0.7 else None
        axis = None if axis is not None and near[axis] == 1 else axis
        tied.append(axis)
        size = rng.choice([1, 2, 3]) if axis is None else near[axis]
        if axis is not None and size == 4 and rng.random() < 0.5:
            tied[-1], size = Part(axis, rng.choice([1, 2])), 2
        seed_shape.append(size)
    free = tuple(n for n, axis in zip(seed_shape, tied, strict=True) if axis is None)
    sizes = tuple(1 if rng.random() < 0.3 else n for n in near)
    return Block(values(rng, free + sizes, dtype), near, tuple(seed_shape), tuple(tied))


def written_out(block: Block) -> Tensor:
    """The definition: J[near n, seed s] = values[free s, n] times deltas; (*shape, *seed_shape)."""
    num_free, ndim = block.num_free, len(block.shape)
    result = block.values.expand(block.values.shape[:num_free] + block.shape)
    result = result.permute((*range(num_free, num_free + ndim), *range(num_free)))
    ones = [n if axis is None else 1 for n, axis in zip(block.seed_shape, block.tied, strict=True)]
    result = result.reshape((*block.shape, *ones)).expand(block.shape + block.seed_shape)
    for k, tie in enumerate(block.tied):
        if tie is not None:
            axis, within = tie if isinstance(tie, Part) else (tie, 1)
            size, full = block.seed_shape[k], block.shape[axis]
            delta = [1] * result.ndim
            delta[axis], delta[ndim + k] = full, size
            digits = torch.arange(full) // within % max(size, 1)
            is_same = digits[:, None] == torch.arange(size)
            result = result * is_same.to(result.dtype).reshape(delta)
    return result.clone()


def regrouped(rng: Random) -> tuple[Shape, Shape]:
    """Two shapes that group the same factors differently: axes merge, split, and correspond."""
    factors = [rng.choice([1, 2, 2, 3]) for _ in range(rng.randint(0, 4))]
    return _grouped(rng, factors), _grouped(rng, factors)


def _grouped(rng: Random, factors: list[int]) -> Shape:
    groups: list[list[int]] = []
    for factor in factors:
        if groups and rng.random() < 0.5:
            groups[-1].append(factor)
        else:
            groups.append([factor])
        if rng.random() < 0.15:
            groups.append([1])
    return tuple(math.prod(group) for group in groups)


# ---- Maps: one maker a kind, from an input shape ----

Maker = Callable[[Random, Shape, torch.dtype], AbstractLinearMap]


def scale(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    out = _broadcast(rng, near)
    coef_shape = tuple(1 if rng.random() < 0.3 else n for n in out)
    conjugate = dtype.is_complex and rng.random() < 0.5
    number = complex(1.5, -2) if dtype.is_complex else -1.5
    coef = number if rng.random() < 0.2 else values(rng, coef_shape, dtype)
    return Scale(near, out, coef, conjugate)


def mask(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    out = _broadcast(rng, near)
    return Mask(near, out, values(rng, out) > 0)


def _broadcast(rng: Random, near: Shape) -> Shape:
    lead = shape(rng, 0, 1, zero=False)
    return lead + tuple(rng.choice([1, 2, 3]) if n == 1 else n for n in near)


def expand(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    return Expand(near, _broadcast(rng, near))


def reshape(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    factors = [f for n in near for f in (n, 1)]
    if 0 in near:
        return Reshape(near, (*near[::-1], 2))
    return Reshape(near, _grouped(rng, factors))


def permute(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    dims = rng.sample(range(len(near)), len(near))
    return Permute(near, tuple(near[d] for d in dims), tuple(dims))


def sum_(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    axes = tuple(i for i in range(len(near)) if rng.random() < 0.5)
    keepdim = rng.random() < 0.5
    out = tuple(1 if i in axes else n for i, n in enumerate(near) if keepdim or i not in axes)
    return Sum(near, out, axes, keepdim)


def slice_(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    axis = rng.randrange(len(near))
    start, step = rng.randint(0, near[axis]), rng.randint(1, 2)
    most = len(range(start, near[axis], step))
    n = rng.randint(0, most)
    return Slice(near, (*near[:axis], n, *near[axis + 1 :]), axis, start, step)


def select(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    axes = [i for i, n in enumerate(near) if n]
    if not axes:
        return slice_(rng, near, dtype)
    axis = rng.choice(axes)
    return Select(near, near[:axis] + near[axis + 1 :], axis, rng.randrange(near[axis]))


def gather(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    mixed = tuple(i for i in range(len(near)) if rng.random() < 0.6)
    kept = [n for i, n in enumerate(near) if i not in mixed]
    sizes = shape(rng, 0, 2)
    front = rng.randint(0, len(kept))
    out = (*kept[:front], *sizes, *kept[front:])
    size = math.prod(near[i] for i in mixed)
    index = torch.tensor([rng.randint(-1, size - 1) for _ in range(math.prod(sizes))]).long()
    mixed_out = tuple(range(front, front + len(sizes)))
    is_total = bool((index >= 0).all()) and rng.random() < 0.5
    if len(index) == size and rng.random() < 0.5:
        index = torch.tensor(rng.sample(range(size), size)).long()
        return Gather(near, out, index, mixed, mixed_out, is_total=True, inverse=index.argsort())
    return Gather(near, out, index, mixed, mixed_out, is_total)


def take_along(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    axis = rng.randrange(len(near))
    out = (*near[:axis], rng.randint(0, 3), *near[axis + 1 :])
    flat = [rng.randint(-1, near[axis] - 1) for _ in range(math.prod(out))]
    index = torch.tensor(flat).long().reshape(out)
    return TakeAlong(near, out, axis, index, bool((index >= 0).all()) and rng.random() < 0.5)


def concat(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    before, behind = rng.randint(0, 2), rng.randint(0, 2)
    if not near or rng.random() < 0.5:
        axis = rng.randint(0, len(near))
        out = (*near[:axis], before + 1 + behind, *near[axis:])
        return Concat(near, out, axis, before, new_axis=True)
    axis = rng.randrange(len(near))
    out = (*near[:axis], before + near[axis] + behind, *near[axis + 1 :])
    return Concat(near, out, axis, before)


def contract(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    letters = "abcdefghijklmnop"[: len(near)]
    sizes = dict(zip(letters, near, strict=True))
    const, out = [], []
    for letter in letters:
        role = rng.choice(["batch", "contracted", "kept"])
        if role != "kept":
            const.append(letter)
        if role != "contracted":
            out.append(letter)
    for letter in "xy"[: rng.randint(0, 2)]:
        sizes[letter] = rng.choice([1, 2, 3])
        const.append(letter)
        out.append(letter)
    rng.shuffle(const)
    rng.shuffle(out)
    constant = values(rng, tuple(sizes[c] for c in const), dtype)
    out_shape = tuple(sizes[c] for c in out)
    return Contract(near, out_shape, letters, "".join(const), "".join(out), constant)


def convolve(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    """Its own input shape: (batch, channels, space)."""
    groups = rng.choice([1, 2])
    ins, outs, kernel = rng.choice([1, 2]), rng.choice([1, 3]), rng.choice([1, 2, 3])
    stride, padding, dilation = rng.choice([1, 2]), rng.choice([0, 1]), rng.choice([1, 2])
    weight = values(rng, (groups * outs, ins, kernel), dtype)
    x = torch.zeros(rng.choice([1, 2]), groups * ins, dilation * (kernel - 1) + rng.choice([1, 3]))
    y = torch.nn.functional.conv1d(x, weight.real.float(), None, stride, padding, dilation, groups)
    small, large = tuple(y.shape), tuple(x.shape)
    options = weight, (stride,), (padding,), (dilation,)
    if rng.random() < 0.5:
        return Convolve(large, small, *options, False, groups)
    return Convolve(small, large, *options, True, groups)


def scan(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    return Scan(near, near, rng.randrange(len(near)))


def general(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    """A product with a matrix along the last axis, another one at every position of the others."""
    lead, n, m = near[:-1], near[-1], rng.randint(0, 3)
    matrices = values(rng, (*lead, m, n), dtype)
    adjoint = matrices.conj().transpose(-1, -2)
    return General(
        near,
        (*lead, m),
        lambda t: (matrices @ t.unsqueeze(-1)).squeeze(-1),
        lambda c: (adjoint @ c.unsqueeze(-1)).squeeze(-1),
        tuple((i, i) for i in range(len(lead))),
    )


def composed(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    first = any_map(rng, near, dtype)
    second = any_map(rng, first.out_shape, dtype)
    return Composed(near, second.out_shape, first, second)


def transposed(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    return transpose(any_map(rng, near, dtype))


NEEDS_AXIS: list[Maker] = [slice_, select, take_along, scan, general]
STRUCTURAL: list[Maker] = [
    mask, expand, reshape, permute, sum_, slice_, select, gather, take_along, concat, scan,
]  # fmt: skip
SIMPLE: list[Maker] = [*STRUCTURAL, scale, contract, general]
MAKERS: list[Maker] = [*SIMPLE, convolve, composed, transposed]


def any_map(rng: Random, near: Shape, dtype: torch.dtype) -> AbstractLinearMap:
    makers = SIMPLE if near else [m for m in SIMPLE if m not in NEEDS_AXIS]
    return rng.choice(makers)(rng, near, dtype)


def a_map(rng: Random, maker: Maker, dtype: torch.dtype) -> AbstractLinearMap:
    return maker(rng, shape(rng, least=int(maker in NEEDS_AXIS)), dtype)


def matrix(linear_map: AbstractLinearMap, dtype: torch.dtype) -> Tensor:
    """The Jacobian (*out, *in), from tangents that have one free seed axis, one seed at a time."""
    n = math.prod(linear_map.in_shape)
    columns = []
    for column in torch.eye(n, dtype=dtype):
        tangent = Block(column.reshape(linear_map.in_shape), linear_map.in_shape, (), ())
        columns.append(linear_map.push(tangent).expanded_values())
    if not columns:
        return torch.zeros(linear_map.out_shape + linear_map.in_shape, dtype=dtype)
    return torch.stack(columns, -1).reshape(linear_map.out_shape + linear_map.in_shape)
