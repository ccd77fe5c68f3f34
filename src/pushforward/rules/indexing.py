"""Indexing, joining, padding, and writing into copies: operators whose Jacobian is 0 and 1.

Which position goes where is never worked out by formula twice: the operator itself, run on an array
of positions, says it. Where an operator overwrites, the same run says which of several writes to
one position wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, normalize_axis
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.concat import Concat
from pushforward.linear.kinds.expand import Expand
from pushforward.linear.kinds.gather import Gather
from pushforward.linear.kinds.mask import Mask
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.take_along import TakeAlong
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import nondifferentiable, rule
from pushforward.rules.views import (
    as_strided_index,
    as_strided_map,
    diagonal_map,
    flat_gather,
    identity_map,
    permute_map,
    place_along,
    select_map,
    shape_of,
    slice_map,
    transpose_map,
    unfold_map,
)

aten = torch.ops.aten

Indices = Sequence[Tensor | None]


def _identity(x: Tensor, *_: Any, **__: Any) -> AbstractLinearMap:
    return identity_map(shape_of(x))


def _zero(*_: Any, **__: Any) -> None:
    """Nothing of this argument is left in the output."""


def _masked(x: Tensor, keep: Tensor) -> AbstractLinearMap:
    """Return the map that keeps what ``keep``, which broadcasts to ``x``, says."""
    return Mask(shape_of(x), shape_of(x), keep)


def between(linear_map: AbstractLinearMap, in_shape: Shape, out_shape: Shape) -> AbstractLinearMap:
    """Return the map with reshapes around it: a 0-d tensor is indexed as one of 1 axis."""
    if linear_map.in_shape != in_shape:
        linear_map = compose(Reshape(in_shape, linear_map.in_shape), linear_map)
    if linear_map.out_shape != out_shape:
        linear_map = compose(linear_map, Reshape(linear_map.out_shape, out_shape))
    return linear_map


def vector_shape(shape: Shape) -> Shape:
    """Return the shape, a 0-d one as that of one element."""
    return shape or (1,)


def _along_axis(shape: Shape, axis: int, index: Tensor, is_total: bool = True) -> AbstractLinearMap:
    """Return the map that takes the positions ``index`` along one axis."""
    out_shape = (*shape[:axis], index.shape[0], *shape[axis + 1 :])
    return Gather(shape, out_shape, index, (axis,), (axis,), is_total)


def _one_axis_mask(x: Tensor, axis: int, keep: Tensor) -> AbstractLinearMap:
    return _masked(x, keep.reshape([-1 if i == axis else 1 for i in range(x.ndim)]))


# Advanced indexing


class _Indexing:
    """How ``x[indices]`` splits the axes: those indexed, and those taken whole, which stay tied."""

    def __init__(self, shape: Shape, indices: Indices) -> None:
        axes: list[int] = []
        self.tensors: list[Tensor] = []
        axis = 0
        for index in indices:
            if index is None:
                axis += 1
                continue
            index = index.bool() if index.dtype == torch.uint8 else index
            covered = index.ndim if index.dtype == torch.bool else 1
            axes.extend(range(axis, axis + covered))
            axis += covered
            self.tensors.append(index)
        self.shape = shape
        self.axes = tuple(axes)
        self.sizes = tuple(shape[i] for i in axes)

    def place(self) -> Tensor:
        """Return the flat position, within the indexed axes, of every element taken."""
        size = math.prod(self.sizes)
        place = torch.arange(size, device=self.tensors[0].device).reshape(self.sizes)
        return aten.index.Tensor(place, self.tensors)  # type: ignore[no-any-return]

    def winner(self, taken: Shape) -> Tensor:
        """Return which of the indices writes each position of the indexed axes last, -1 if none."""
        device = self.tensors[0].device
        order = torch.arange(math.prod(taken), device=device).reshape(taken)
        empty = torch.full(self.sizes, -1, device=device)
        return aten.index_put.default(empty, self.tensors, order)  # type: ignore[no-any-return]

    def front(self) -> int:
        """Return where the axes of the indices stand: in place if adjacent, else first."""
        adjacent = self.axes == tuple(range(self.axes[0], self.axes[0] + len(self.axes)))
        return self.axes[0] if adjacent else 0

    def out_shape(self, taken: Shape) -> Shape:
        kept = [n for i, n in enumerate(self.shape) if i not in self.axes]
        front = self.front()
        return (*kept[:front], *taken, *kept[front:])

    def mixed_out(self, taken: Shape) -> tuple[int, ...]:
        return tuple(range(self.front(), self.front() + len(taken)))

    def map(self) -> AbstractLinearMap:
        """Return the map of ``x[indices]``."""
        if not self.tensors:
            return identity_map(self.shape)
        place = self.place()
        taken = shape_of(place)
        shapes = self.shape, self.out_shape(taken)
        return Gather(*shapes, place.reshape(-1), self.axes, self.mixed_out(taken), is_total=True)

    def overwrite(self, taken: Shape) -> AbstractLinearMap:
        """Return the map from ``values`` to what ``x[indices] = values`` leaves of them."""
        index = self.winner(taken).reshape(-1)
        shapes = self.out_shape(taken), self.shape
        return Gather(*shapes, index, self.mixed_out(taken), self.axes)

    def keep(self, taken: Shape) -> Tensor:
        """Return which positions ``x[indices] = values`` leaves alone, broadcasting to ``x``."""
        shape = [n if i in self.axes else 1 for i, n in enumerate(self.shape)]
        return (self.winner(taken) < 0).reshape(shape)


def index_map(x: Tensor, indices: Indices) -> AbstractLinearMap:
    """Return the map of ``x[indices]``."""
    return _Indexing(shape_of(x), indices).map()


def _index_put_self(
    x: Tensor, indices: Indices, values: Tensor, accumulate: bool = False, unsafe: bool = False
) -> AbstractLinearMap | None:
    indexing = _Indexing(shape_of(x), indices)
    if accumulate:
        return identity_map(shape_of(x))
    if not indexing.tensors:
        return None
    return _masked(x, indexing.keep(shape_of(indexing.place())))


def index_put_values_map(
    x: Tensor, indices: Indices, values: Tensor, accumulate: bool = False, unsafe: bool = False
) -> AbstractLinearMap:
    """Return the map from ``values`` to what a write to ``x[indices]`` leaves of them."""
    indexing = _Indexing(shape_of(x), indices)
    if not indexing.tensors:
        return _spread(values, shape_of(x))
    taken = shape_of(indexing.place())
    written = transpose(indexing.map()) if accumulate else indexing.overwrite(taken)
    return compose(_spread(values, written.in_shape), written)


def _spread(values: Tensor, shape: Shape) -> AbstractLinearMap:
    """Return the broadcast to ``shape``, which may also drop leading axes of size 1."""
    own = shape_of(values)
    short = own[max(len(own) - len(shape), 0) :]
    return compose(Reshape(own, short), Expand(short, shape))


rule(aten.index.Tensor, index_map)
rule(aten._unsafe_index.Tensor, index_map)
rule(aten.index_put, _index_put_self, None, index_put_values_map, like=0)
rule(aten._unsafe_index_put, _index_put_self, None, index_put_values_map, like=0)
rule(aten._index_put_impl, _index_put_self, None, index_put_values_map, like=0)


# One index for all: index_select and its writes


def _index_select(x: Tensor, dim: int, index: Tensor, *, out: Tensor) -> AbstractLinearMap:
    shape = vector_shape(shape_of(x))
    axis = normalize_axis(dim, len(shape))
    return between(_along_axis(shape, axis, index.reshape(-1)), shape_of(x), shape_of(out))


def _index_add_source(
    x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: complex = 1
) -> AbstractLinearMap:
    shape = vector_shape(shape_of(x))
    axis = normalize_axis(dim, len(shape))
    added = transpose(_along_axis(shape, axis, index.reshape(-1)))
    scaled = compose(Scale(added.in_shape, added.in_shape, alpha), added)
    return between(scaled, shape_of(source), shape_of(x))


def _winner_along(n: int, index: Tensor) -> Tensor:
    """Return which element of ``index`` writes each of ``n`` positions last, -1 if none does."""
    empty = torch.full((n,), -1, device=index.device)
    return torch.index_copy(empty, 0, index.reshape(-1), place_along(index.numel(), index))


def _index_copy_self(x: Tensor, dim: int, index: Tensor, source: Tensor) -> AbstractLinearMap:
    return _index_fill_self(x, dim, index)


def _index_copy_source(x: Tensor, dim: int, index: Tensor, source: Tensor) -> AbstractLinearMap:
    shape = vector_shape(shape_of(x))
    axis = normalize_axis(dim, len(shape))
    in_shape = (*shape[:axis], index.numel(), *shape[axis + 1 :])
    written = _along_axis(in_shape, axis, _winner_along(shape[axis], index), is_total=False)
    return between(written, shape_of(source), shape_of(x))


def _index_fill_self(x: Tensor, dim: int, index: Tensor, *_: Any) -> AbstractLinearMap:
    shape = vector_shape(shape_of(x))
    axis = normalize_axis(dim, len(shape))
    return _one_axis_mask(x, axis, _winner_along(shape[axis], index) < 0)


def _index_fill_value(x: Tensor, dim: int, index: Tensor, value: Tensor) -> AbstractLinearMap:
    shape = vector_shape(shape_of(x))
    axis = normalize_axis(dim, len(shape))
    filled = _one_axis_mask(x, axis, _winner_along(shape[axis], index) >= 0)
    return compose(Expand(shape_of(value), shape_of(x)), filled)


rule(aten.index_select, _index_select)
rule(aten.index_add, _identity, None, None, _index_add_source, like=0)
rule(aten.index_copy, _index_copy_self, None, None, _index_copy_source, like=0)
rule(aten.index_fill.int_Scalar, _index_fill_self, like=0)
rule(aten.index_fill.int_Tensor, _index_fill_self, None, None, _index_fill_value, like=0)


# An index of its own at every position: gather and scatter


def cropped_map(shape: Shape, wanted: Shape) -> AbstractLinearMap:
    """Return the map that takes the first ``wanted`` positions along each axis."""
    maps = [identity_map(shape)]
    for axis, n in enumerate(wanted):
        if n != maps[-1].out_shape[axis]:
            maps.append(slice_map(maps[-1].out_shape, axis, 0, n))
    return compose(*(maps[1:] or maps))


def at_axis(shape: Shape, axis: int, n: int) -> Shape:
    """Return the shape with size n along one axis."""
    return (*shape[:axis], n, *shape[axis + 1 :])


def _gather(x: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> AbstractLinearMap:
    shape, index_shape = vector_shape(shape_of(x)), vector_shape(shape_of(index))
    axis = normalize_axis(dim, len(shape))
    if 0 in index_shape:
        none = flat_gather(shape, index_shape, index.long())
        return between(none, shape_of(x), shape_of(index))
    cropped = cropped_map(shape, at_axis(index_shape, axis, shape[axis]))
    taken = TakeAlong(
        cropped.out_shape, index_shape, axis, index.reshape(index_shape), is_total=True
    )
    return between(compose(cropped, taken), shape_of(x), shape_of(index))


def _scatter_self(x: Tensor, dim: int, index: Tensor, *_: Any) -> AbstractLinearMap:
    ones = torch.ones(shape_of(x), dtype=torch.bool, device=index.device)
    return _masked(x, torch.scatter(ones, dim, index, False))


def _scatter_src(x: Tensor, dim: int, index: Tensor, src: Tensor) -> AbstractLinearMap:
    return scattered_map(x, dim, index, src, adds=False)


def _scatter_add_src(x: Tensor, dim: int, index: Tensor, src: Tensor) -> AbstractLinearMap:
    return scattered_map(x, dim, index, src, adds=True)


def scattered_map(
    x: Tensor, dim: int, index: Tensor, src: Tensor, *, adds: bool, coef: Tensor | None = None
) -> AbstractLinearMap:
    """Return the map of ``src``: crop to the index, scale, write along the axis, put that into zeros."""
    shape, index_shape = vector_shape(shape_of(x)), vector_shape(shape_of(index))
    axis = normalize_axis(dim, len(shape))
    if 0 in index_shape:
        none = torch.full((math.prod(shape),), -1, device=x.device)
        return flat_gather(shape_of(src), shape_of(x), none)
    index = index.reshape(index_shape)
    inner = at_axis(index_shape, axis, shape[axis])
    if adds:
        written = transpose(TakeAlong(inner, index_shape, axis, index, is_total=True))
    else:
        empty = torch.full(inner, -1, device=index.device)
        order = place_along(index_shape[axis], index)
        order = order.reshape([-1 if i == axis else 1 for i in range(len(index_shape))])
        winner = torch.scatter(empty, axis, index, order.expand(index_shape))
        written = TakeAlong(index_shape, inner, axis, winner)
    first = cropped_map(vector_shape(shape_of(src)), index_shape)
    if coef is not None:
        first = compose(first, Scale(index_shape, index_shape, coef))
    return between(
        compose(first, written, transpose(cropped_map(shape, inner))), shape_of(src), shape_of(x)
    )


rule(aten.gather, _gather)
rule(aten.scatter.src, _scatter_self, None, None, _scatter_src, like=0)
rule(aten.scatter.value, _scatter_self, like=0)
rule(aten.scatter_add, _identity, None, None, _scatter_add_src, like=0)


# Flat indices and masks


def _wrapped(index: Tensor, n: int) -> Tensor:
    return torch.where(index < 0, index + n, index)


def _take(x: Tensor, index: Tensor) -> AbstractLinearMap:
    return flat_gather(shape_of(x), shape_of(index), _wrapped(index, x.numel()), is_total=True)


def _put_winner(x: Tensor, index: Tensor) -> Tensor:
    return _winner_along(x.numel(), _wrapped(index, x.numel()))


def _put_self(
    x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False
) -> AbstractLinearMap:
    if accumulate:
        return identity_map(shape_of(x))
    return _masked(x, (_put_winner(x, index) < 0).reshape(shape_of(x)))


def _put_source(
    x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False
) -> AbstractLinearMap:
    if accumulate:
        flat = _wrapped(index, x.numel())
        return transpose(flat_gather(shape_of(x), shape_of(source), flat, is_total=True))
    return flat_gather(shape_of(source), shape_of(x), _put_winner(x, index))


def _masked_select(x: Tensor, mask: Tensor) -> AbstractLinearMap:
    shape = torch.broadcast_shapes(x.shape, mask.shape)
    index = mask.expand(shape).reshape(-1).nonzero().reshape(-1)
    expand = Expand(shape_of(x), tuple(shape))
    return compose(expand, flat_gather(tuple(shape), shape_of(index), index, is_total=True))


def _masked_scatter_self(
    x: Tensor, mask: Tensor, source: Tensor, *, out: Tensor
) -> AbstractLinearMap:
    return Mask(shape_of(x), shape_of(out), ~mask)


def _masked_scatter_source(
    x: Tensor, mask: Tensor, source: Tensor, *, out: Tensor
) -> AbstractLinearMap:
    return masked_scatter_map(shape_of(out), mask, source)


def masked_scatter_map(shape: Shape, mask: Tensor, source: Tensor) -> AbstractLinearMap:
    """Return the map from ``source``, whose elements go one by one to where the mask is true."""
    flat = mask.expand(shape).reshape(-1)
    index = torch.where(flat, flat.cumsum(0) - 1, -1)
    return flat_gather(shape_of(source), shape, index)


rule(aten.take, _take)
rule(aten.put, _put_self, None, _put_source, like=0)
rule(aten.masked_select, _masked_select)
rule(aten.masked_scatter, _masked_scatter_self, None, _masked_scatter_source)


# Embedding: rows of a table. The row at padding_idx is a constant, as PyTorch documents it.


def _embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> AbstractLinearMap:
    shape = shape_of(weight)
    looked_up = _embedding_map(shape, indices, padding_idx)
    if not scale_grad_by_freq:
        return looked_up
    return compose(_divided_by_uses(weight, indices, shape), looked_up)


def _embedding_map(shape: Shape, indices: Tensor, padding_idx: int) -> AbstractLinearMap:
    index = indices.reshape(-1)
    if padding_idx >= 0:
        index = torch.where(index == padding_idx, -1, index)
    out_shape = shape_of(indices) + shape[1:]
    mixed_out = tuple(range(indices.ndim))
    return Gather(shape, out_shape, index, (0,), mixed_out, is_total=padding_idx < 0)


def _embedding_dense_backward(
    y: Tensor, indices: Tensor, num_weights: int, padding_idx: int, *_: Any, out: Tensor
) -> AbstractLinearMap:
    """Without ``scale_grad_by_freq``: it is not saved, and PyTorch's second derivative leaves it out, too."""
    return transpose(_embedding_map(shape_of(out), indices, padding_idx))


def _divided_by_uses(like: Tensor, indices: Tensor, shape: Shape) -> AbstractLinearMap:
    """Divide each row by how often it is used: PyTorch's scaling of gradients, here the same in every mode."""
    return Scale(shape, shape, 1 / uses_of(indices, shape[0], like).unsqueeze(-1))


def uses_of(indices: Tensor, num_rows: int, like: Tensor) -> Tensor:
    """Return how often each row is looked up, at least 1."""
    ones = torch.ones((indices.numel(),), dtype=like.dtype, device=like.device)
    counts = torch.zeros((num_rows,), dtype=like.dtype, device=like.device)
    return counts.index_add(0, indices.reshape(-1), ones).clamp(min=1)


rule(aten.embedding, _embedding)
rule(aten.embedding_dense_backward, _embedding_dense_backward)


# Joining: one map for each piece


def _cat(tensors: Sequence[Tensor], dim: int = 0, *, out: Tensor) -> list[AbstractLinearMap | None]:
    axis, out_shape = normalize_axis(dim, out.ndim), shape_of(out)
    maps: list[AbstractLinearMap | None] = []
    start = 0
    for x in tensors:
        if x.ndim != out.ndim:  # an empty tensor of one axis may be joined to anything
            maps.append(None)
            continue
        maps.append(Concat(shape_of(x), out_shape, axis, start))
        start += x.shape[axis]
    return maps


def _stack(tensors: Sequence[Tensor], dim: int = 0, *, out: Tensor) -> list[AbstractLinearMap]:
    axis, out_shape = normalize_axis(dim, out.ndim), shape_of(out)
    shape = (*out_shape[:axis], *out_shape[axis + 1 :])
    return [Concat(shape, out_shape, axis, i, new_axis=True) for i in range(len(tensors))]


def _block_diag(tensors: Sequence[Tensor], *, out: Tensor) -> list[AbstractLinearMap]:
    maps = []
    top = left = 0
    for x in tensors:
        shape = (1,) * (2 - x.ndim) + shape_of(x)
        wide = (shape[0], out.shape[1])
        maps.append(
            compose(
                Reshape(shape_of(x), shape),
                Concat(shape, wide, 1, left),
                Concat(wide, shape_of(out), 0, top),
            )
        )
        top, left = top + shape[0], left + shape[1]
    return maps


rule(aten.cat, _cat)
rule(aten.stack, _stack)
rule(aten.block_diag, _block_diag)


# Padding: axis by axis, from the last


def _constant_pad(x: Tensor, pad: Sequence[int], value: complex = 0) -> AbstractLinearMap:
    maps = [identity_map(shape_of(x))]
    for axis, before, behind in _pad_axes(x, pad):
        shape = maps[-1].out_shape
        taken = slice_map(shape, axis, max(-before, 0), shape[axis] - max(-behind, 0))
        n = taken.out_shape[axis] + max(before, 0) + max(behind, 0)
        maps.append(taken)
        if before > 0 or behind > 0:
            out_shape = at_axis(shape, axis, n)
            maps.append(Concat(taken.out_shape, out_shape, axis, max(before, 0)))
    return compose(*(maps[1:] or maps))


def _pad_axes(x: Tensor, pad: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (axis, places before, places behind) of the axes that are padded."""
    triples = [(x.ndim - 1 - k, pad[2 * k], pad[2 * k + 1]) for k in range(len(pad) // 2)]
    return [(axis, before, behind) for axis, before, behind in triples if before or behind]


def _pad_by(
    source: Callable[[Tensor, int], Tensor],
) -> Callable[[Tensor, Sequence[int]], AbstractLinearMap]:
    """Return the partial of a padding; ``source`` says which of n positions stands at a place."""

    def partial(x: Tensor, padding: Sequence[int]) -> AbstractLinearMap:
        maps = [identity_map(shape_of(x))]
        for axis, before, behind in _pad_axes(x, padding):
            n = x.shape[axis]
            place = torch.arange(-before, n + behind, device=x.device)
            maps.append(_along_axis(maps[-1].out_shape, axis, source(place, n)))
        return compose(*(maps[1:] or maps))

    return partial


reflection_pad_map = _pad_by(lambda place, n: n - 1 - (n - 1 - place.abs()).abs())
replication_pad_map = _pad_by(lambda place, n: place.clamp(0, n - 1))


rule(aten.constant_pad_nd, _constant_pad)
rule(aten.reflection_pad1d, reflection_pad_map)
rule(aten.reflection_pad2d, reflection_pad_map)
rule(aten.reflection_pad3d, reflection_pad_map)
rule(aten.replication_pad1d, replication_pad_map)
rule(aten.replication_pad2d, replication_pad_map)
rule(aten.replication_pad3d, replication_pad_map)


# Rolls, flips, repetitions


def _roll(
    x: Tensor, shifts: int | Sequence[int], dims: int | Sequence[int] = ()
) -> AbstractLinearMap:
    shape = shape_of(x)
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    axes = [dims] if isinstance(dims, int) else list(dims)
    if not axes:
        n = x.numel()
        rolled = _along_axis((n,), 0, (place_along(n, x) - shifts[0]) % max(n, 1))
        return between(rolled, shape, shape)
    maps = [identity_map(shape)]
    for shift, dim in zip(shifts, axes, strict=True):
        axis = normalize_axis(dim, x.ndim)
        n = shape[axis]
        maps.append(_along_axis(shape, axis, (place_along(n, x) - shift) % max(n, 1)))
    return compose(*maps)


def _flip(x: Tensor, dims: Sequence[int]) -> AbstractLinearMap:
    shape = shape_of(x)
    if not shape:
        return identity_map(shape)
    maps = [identity_map(shape)]
    for dim in dims:
        axis = normalize_axis(dim, x.ndim)
        maps.append(_along_axis(shape, axis, shape[axis] - 1 - place_along(shape[axis], x)))
    return compose(*(maps[1:] or maps))


def _rot90(x: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> AbstractLinearMap:
    first, second = (normalize_axis(d, x.ndim) for d in dims)
    quarter = k % 4
    if quarter == 0:
        return identity_map(shape_of(x))
    if quarter == 2:
        return _flip(x, (first, second))
    flipped = _flip(x, (second,) if quarter == 1 else (first,))
    return compose(flipped, transpose_map(shape_of(x), first, second))


def _repeat(x: Tensor, repeats: Sequence[int]) -> AbstractLinearMap:
    shape = (1,) * (len(repeats) - x.ndim) + shape_of(x)
    paired = tuple(m for n in shape for m in (1, n))
    repeated = tuple(m for r, n in zip(repeats, shape, strict=True) for m in (r, n))
    out_shape = tuple(r * n for r, n in zip(repeats, shape, strict=True))
    return compose(
        Reshape(shape_of(x), paired), Expand(paired, repeated), Reshape(repeated, out_shape)
    )


rule(aten.roll, _roll)
rule(aten.flip, _flip)
rule(aten.rot90, _rot90)
rule(aten.repeat, _repeat)


# Triangles and diagonals


def _tril(x: Tensor, diagonal: int = 0) -> AbstractLinearMap:
    return _masked(x, _ones(x, shape_of(x)[-2:]).tril(diagonal))


def _triu(x: Tensor, diagonal: int = 0) -> AbstractLinearMap:
    return _masked(x, _ones(x, shape_of(x)[-2:]).triu(diagonal))


def _ones(x: Tensor, shape: Shape) -> Tensor:
    return torch.ones(shape, dtype=torch.bool, device=x.device)


def _diag_embed(
    x: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1, *, out: Tensor
) -> AbstractLinearMap:
    return transpose(diagonal_map(x, shape_of(out), offset, dim1, dim2))


rule(aten.tril, _tril)
rule(aten.triu, _triu)
rule(aten.diag_embed, _diag_embed)


# Writes into a copy: the first argument keeps what is not written


def _select_scatter_self(x: Tensor, src: Tensor, dim: int, index: int) -> AbstractLinearMap:
    axis = normalize_axis(dim, x.ndim)
    return _one_axis_mask(x, axis, place_along(x.shape[axis], x) != index % x.shape[axis])


def _select_scatter_src(x: Tensor, src: Tensor, dim: int, index: int) -> AbstractLinearMap:
    axis = normalize_axis(dim, x.ndim)
    written = Concat(shape_of(src), shape_of(x), axis, index % x.shape[axis], new_axis=True)
    return written if x.ndim else identity_map(shape_of(x))


def _slice_scatter_self(
    x: Tensor,
    src: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> AbstractLinearMap:
    axis = normalize_axis(dim, x.ndim)
    keep = torch.ones(x.shape[axis], dtype=torch.bool, device=x.device)
    written = torch.zeros_like(keep)[slice(start, end, step)]
    return _one_axis_mask(x, axis, torch.slice_scatter(keep, written, 0, start, end, step))


def _slice_scatter_src(
    x: Tensor,
    src: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> AbstractLinearMap:
    return between(
        transpose(slice_map(shape_of(x), dim, start, end, step)), shape_of(src), shape_of(x)
    )


def _diagonal_scatter_self(
    x: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> AbstractLinearMap:
    ones = _ones(x, shape_of(x))
    zeros = torch.zeros_like(ones.diagonal(offset, dim1, dim2))
    return _masked(x, torch.diagonal_scatter(ones, zeros, offset, dim1, dim2))


def _diagonal_scatter_src(
    x: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> AbstractLinearMap:
    return transpose(diagonal_map(x, shape_of(x), offset, dim1, dim2))


def _as_strided_scatter_self(
    x: Tensor,
    src: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> AbstractLinearMap:
    index = as_strided_index(x, size, stride, storage_offset)
    keep = torch.ones(x.numel() + 1, dtype=torch.bool, device=x.device)
    keep = keep.index_fill(0, index.remainder(x.numel() + 1), False)[:-1]
    return _masked(x, keep.reshape(shape_of(x)))


def _as_strided_scatter_src(
    x: Tensor,
    src: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> AbstractLinearMap:
    return transpose(as_strided_map(x, size, stride, storage_offset))


rule(aten.select_scatter, _select_scatter_self, _select_scatter_src, like=0)
rule(aten.slice_scatter, _slice_scatter_self, _slice_scatter_src, like=0)
rule(aten.diagonal_scatter, _diagonal_scatter_self, _diagonal_scatter_src, like=0)
rule(aten.as_strided_scatter, _as_strided_scatter_self, _as_strided_scatter_src, like=0)


# Backward operators of views: the views, transposed


def _select_backward(
    y: Tensor, input_sizes: Sequence[int], dim: int, index: int
) -> AbstractLinearMap:
    return transpose(select_map(tuple(input_sizes), dim, index))


def _slice_backward(
    y: Tensor, input_sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> AbstractLinearMap:
    return transpose(slice_map(tuple(input_sizes), dim, start, end, step))


def _diagonal_backward(
    y: Tensor, input_sizes: Sequence[int], offset: int, dim1: int, dim2: int
) -> AbstractLinearMap:
    return transpose(diagonal_map(y, tuple(input_sizes), offset, dim1, dim2))


def _unfold_backward(
    y: Tensor, input_sizes: Sequence[int], dim: int, size: int, step: int
) -> AbstractLinearMap:
    to_input = transpose(unfold_map(y, tuple(input_sizes), dim, size, step))
    if to_input.in_shape == shape_of(y):
        return to_input
    return compose(Expand(shape_of(y), to_input.in_shape), to_input)  # the kernel broadcasts


rule(aten.select_backward, _select_backward)
rule(aten.slice_backward, _slice_backward)
rule(aten.diagonal_backward, _diagonal_backward)
rule(aten.unfold_backward, _unfold_backward)


# Copies over another tensor


def _copy_src(x: Tensor, src: Tensor, non_blocking: bool = False) -> AbstractLinearMap:
    return Expand(shape_of(src), shape_of(x))


def _fill_value(x: Tensor, value: Tensor) -> AbstractLinearMap:
    return Expand(shape_of(value), shape_of(x))


rule(aten.copy, _zero, _copy_src, like=0)
rule(aten.fill.Tensor, _zero, _fill_value, like=0)

nondifferentiable(aten.fill.Scalar)


# Images: channels against pixels, windows against columns


def _pixel_shuffle(x: Tensor, upscale_factor: int) -> AbstractLinearMap:
    return _pixel_shuffle_map(shape_of(x), upscale_factor)


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
