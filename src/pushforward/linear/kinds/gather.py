"""Gather: outputs that are copies of chosen inputs. Slice is its regular form along one axis."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pushforward.linear.axes import Pairs, Shape, Tied, kept_axes, moved, with_size
from pushforward.linear.block import MAX_EYE, Block
from pushforward.linear.map import AbstractLinearMap, Pattern, positions


def into_zeros(
    values: Tensor, axis: int, size: int, start: int, stop: int, step: int = 1
) -> Tensor:
    """Write ``values`` along one axis into zeros of ``size``."""
    if step == 1:  # by half the work
        behind = [0, 0] * (values.ndim - 1 - axis)
        return torch.constant_pad_nd(values, [*behind, start, size - stop])
    if values.is_complex():  # which PyTorch does not differentiate a second time
        pairs = torch.view_as_real(values.resolve_conj())
        return torch.view_as_complex(into_zeros(pairs, axis, size, start, stop, step))
    shape = list(values.shape)
    shape[axis] = size
    zeros = torch.zeros(shape, dtype=values.dtype, device=values.device)
    return torch.slice_scatter(zeros, values, axis, start, stop, step)


@dataclasses.dataclass(slots=True, repr=False)
class Slice(AbstractLinearMap):
    """Take every ``step``-th position along ``axis``.

    Math: ẏ = ẋ[..., start::step, ...], x̄ = ȳ written into zeros. Jacobian: 0/1; the other axes
    stay tied.
    """

    axis: int
    start: int
    step: int = 1

    def push(self, block: Block) -> Block:
        """Slice; a tied axis of n positions, m of them taken, becomes m × n numbers, not n × n."""
        holder = _only_holder(block, self.axis)
        if holder is not None:
            return self._push_tied(block, holder)
        block, near = _written_along(block, self.axis)
        values = block.values[(slice(None),) * near + (slice(self.start, self._stop, self.step),)]
        return Block(values, self.out_shape, block.seed_shape, block.tied, block.source)

    def _push_tied(self, block: Block, holder: int) -> Block:
        near, place = block.num_free + self.axis, block.tied[:holder].count(None)
        values, size = block.values, block.shape[self.axis]
        if values.shape[near] == size:
            index = [slice(None)] * near + [slice(self.start, self._stop, self.step)]
            values = values[tuple(index)]
        inner_seeds = list(block.seed_shape)
        inner_seeds[holder] = self.out_shape[self.axis]
        inner = Block(values, self.out_shape, tuple(inner_seeds), block.tied, block.source)
        free = inner.untie_seeds((holder,)).values
        values = into_zeros(free, place, size, self.start, self._stop, self.step)
        tied = (*block.tied[:holder], None, *block.tied[holder + 1 :])
        return Block(values, self.out_shape, block.seed_shape, tied, block.source)

    def pull(self, block: Block) -> Block:
        """Write into zeros."""
        return block.apply(self._put, self.in_shape, self._kept, uniform=True)

    @property
    def _stop(self) -> int:
        return min(self.start + self.out_shape[self.axis] * self.step, self.in_shape[self.axis])

    def _take(self, tangent: Tensor) -> Tensor:
        index = [slice(None)] * (self.axis + 1) + [slice(self.start, self._stop, self.step)]
        return tangent[tuple(index)]

    def _put(self, cotangent: Tensor) -> Tensor:
        axis = self.axis + 1
        size = self.in_shape[self.axis]
        return into_zeros(cotangent, axis, size, self.start, self._stop, self.step)

    @property
    def _kept(self) -> Pairs:
        return kept_axes(len(self.in_shape), self.axis)

    def pattern(self) -> Pattern:
        """Run on positions."""
        cols = self._take(positions(self.in_shape).unsqueeze(0)).flatten()
        return positions(self.out_shape).flatten(), cols


@dataclasses.dataclass(slots=True, repr=False)
class Select(AbstractLinearMap):
    """Take one position along ``axis``, and drop the axis.

    Math: ẏ = ẋ[..., index, ...], x̄ = ȳ written into zeros. Jacobian: 0/1; the other axes stay tied.
    """

    axis: int
    index: int

    def push(self, block: Block) -> Block:
        """Select; a tied axis becomes a free one with a single nonzero position."""
        holder = _only_holder(block, self.axis)
        if holder is not None:
            return self._push_tied(block, holder)
        block, near = _written_along(block, self.axis)
        values, tied = block.values.select(near, self.index), self._tied(block.tied)
        return Block(values, self.out_shape, block.seed_shape, tied, block.source)

    def pull(self, block: Block) -> Block:
        """Write into zeros."""
        kept = tuple((j, i) for i, j in self._kept)
        return block.apply(self._put, self.in_shape, kept, uniform=True)

    def _push_tied(self, block: Block, holder: int) -> Block:
        near, place = block.num_free + self.axis, block.tied[:holder].count(None)
        size = block.shape[self.axis]
        constant = block.values.shape[near] != size
        values = block.values.select(near, 0 if constant else self.index).unsqueeze(place)
        values = into_zeros(values, place, size, self.index, self.index + 1)
        tied = self._tied((*block.tied[:holder], None, *block.tied[holder + 1 :]))
        return Block(values, self.out_shape, block.seed_shape, tied, block.source)

    def _tied(self, tied: Tied) -> Tied:
        """Return ties as they are without the axis."""
        return moved(tied, lambda axis: axis - (axis > self.axis))

    def _take(self, tangent: Tensor) -> Tensor:
        return tangent.select(self.axis + 1, self.index)

    def _put(self, cotangent: Tensor) -> Tensor:
        # Not select_scatter, whose derivative is wrong under vmap: that writes as often as the axis is long (2.13).
        axis, size = self.axis + 1, self.in_shape[self.axis]
        return into_zeros(cotangent.unsqueeze(axis), axis, size, self.index, self.index + 1)

    @property
    def _kept(self) -> Pairs:
        return kept_axes(self.axis) + tuple(
            (i, i - 1) for i in range(self.axis + 1, len(self.in_shape))
        )

    def pattern(self) -> Pattern:
        """Run on positions."""
        cols = self._take(positions(self.in_shape).unsqueeze(0)).flatten()
        return positions(self.out_shape).flatten(), cols


MIN_ROLLED = 2**10  # elements from which on `roll` is faster than an index: 6 times for 20000


@dataclasses.dataclass(slots=True, repr=False)
class Gather(AbstractLinearMap):
    """Copy chosen positions of the ``mixed`` axes: ``index`` says which; the others are kept.

    The input is viewed as ``(*kept, mixed)`` with the mixed axes flattened, likewise the output.

    Math: ẏ[…, i] = ẋ[…, index_i], x̄[…, j] = Σ_{i: index_i = j} ȳ[…, i]. Jacobian: 0/1; kept axes
    stay tied.
    """

    index: Tensor  # (mixed size of the output,), flat positions in the mixed axes; -1 gives 0
    mixed_in: tuple[int, ...]  # in increasing order
    mixed_out: tuple[int, ...]
    is_total: bool = False  # whether the index is known to have no -1
    inverse: Tensor | None = None  # of an index that is a permutation
    shift: int = 0  # of one that rolls the mixed axes; which is written out all the same

    def push(self, block: Block) -> Block:
        """Gather."""
        return block.apply(self._take, self.out_shape, self._kept, uniform=True)

    def pull(self, block: Block) -> Block:
        """Add up at the positions taken; of a tied axis what belongs to one seed, with nothing large untied."""
        kept = tuple((j, i) for i, j in self._kept)
        first = self.mixed_out[0] if self.mixed_out and self.inverse is None else -1
        parts = block.parts(first)
        if parts is None or parts * block.values.numel() <= MAX_EYE:
            return block.apply(self._put, self.in_shape, kept, uniform=True)
        return block.apply_to_parts(
            self._put_parts, first, parts, self.in_shape, kept, uniform=True
        )

    @property
    def _kept(self) -> Pairs:
        ins = (i for i in range(len(self.in_shape)) if i not in self.mixed_in)
        outs = (i for i in range(len(self.out_shape)) if i not in self.mixed_out)
        return tuple(zip(ins, outs, strict=True))

    def _take(self, tangent: Tensor) -> Tensor:
        flat = _mixed_last(tangent, self.mixed_in)
        if flat.shape[-1] == 0:
            taken = flat.new_zeros(flat.shape[:-1] + self.index.shape)
        elif self.is_total:
            taken = self._permuted(flat, self.index, self.shift)
        else:  # a zero behind the end: derivatives of this see that it comes from nowhere
            index = torch.where(self.index < 0, flat.shape[-1], self.index)
            zero = torch.zeros((*flat.shape[:-1], 1), dtype=flat.dtype, device=flat.device)
            taken = torch.cat((flat, zero), -1).index_select(-1, index)
        sizes = tuple(self.out_shape[i] for i in self.mixed_out)
        return _mixed_back(taken, self.mixed_out, sizes)

    def _put(self, cotangent: Tensor) -> Tensor:
        if self.inverse is None:
            return self._put_parts(cotangent, 1).squeeze(1)
        flat = _mixed_last(cotangent, self.mixed_out)  # half the time of adding into zeros
        taken = self._permuted(flat, self.inverse, -self.shift)
        return _mixed_back(taken, self.mixed_in, self._mixed_sizes)

    def _put_parts(self, cotangent: Tensor, parts: int) -> Tensor:
        """Add up each of so many parts of the mixed axes by itself: ``(seeds, parts, *in_shape)``."""
        flat = _mixed_last(cotangent, self.mixed_out)
        size = 1
        for n in self._mixed_sizes:
            size *= n
        index, num_places = self.index, size
        if not self.is_total:  # what comes from nowhere goes behind the end
            index, num_places = torch.where(index < 0, size, index), size + 1
        if parts > 1:
            firsts = torch.arange(parts, device=index.device) * num_places
            index = (index.reshape(parts, -1) + firsts.unsqueeze(1)).reshape(-1)
        full = (*flat.shape[:-1], parts * num_places)
        zeros = torch.zeros(full, dtype=flat.dtype, device=flat.device)
        if num_places:
            zeros = torch.index_add(zeros, -1, index, flat)
        found = zeros.unflatten(-1, (parts, num_places))[..., :size].movedim(-2, 1)
        return _mixed_back(found, tuple(i + 1 for i in self.mixed_in), self._mixed_sizes)

    @property
    def _mixed_sizes(self) -> Shape:
        return tuple(self.in_shape[i] for i in self.mixed_in)

    def _permuted(self, flat: Tensor, index: Tensor, shift: int) -> Tensor:
        if shift and flat.numel() >= MIN_ROLLED:
            return flat.roll(shift, -1)
        return flat.index_select(-1, index)

    def pattern(self) -> Pattern:
        """Run on positions."""
        here = dataclasses.replace(self, index=self.index.cpu())
        cols = here._take(positions(self.in_shape).unsqueeze(0) + 1).flatten() - 1
        rows = positions(self.out_shape).flatten()
        return rows[cols >= 0], cols[cols >= 0]


def _only_holder(block: Block, axis: int) -> int | None:
    """Return the seed axis tied to ``axis``, all of it, if no other is tied to it or to a part."""
    holders = block.holders(axis)
    return holders[0] if len(holders) == 1 and block.tied[holders[0]] == axis else None


def _written_along(block: Block, axis: int) -> tuple[Block, int]:
    """Return the block with one near axis untied and at its full size, and which axis of its values that is.

    As a view, where `Block.apply` would copy all of it to give functions one axis of seeds.
    """
    block = block.untie((axis,))
    near, values = block.num_free + axis, block.values
    if values.shape[near] != block.shape[axis]:
        block = block.with_values(values.expand(with_size(values.shape, near, block.shape[axis])))
    return block, near


def _mixed_last(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Move the given near axes (counted behind the seeds) to the end and flatten them."""
    if axes == (values.ndim - 2,):
        return values  # nearly always
    near = tuple(a + 1 for a in axes)
    moved = values.movedim(near, tuple(range(-len(near), 0))) if near else values
    size = 1
    for n in moved.shape[moved.ndim - len(near) :]:
        size *= n
    return moved.reshape((*moved.shape[: moved.ndim - len(near)], size))


def _mixed_back(values: Tensor, axes: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
    if axes == (values.ndim - 2,):
        return values
    near = tuple(a + 1 for a in axes)
    values = values.reshape(values.shape[:-1] + sizes)
    return values.movedim(tuple(range(-len(near), 0)), near) if near else values
