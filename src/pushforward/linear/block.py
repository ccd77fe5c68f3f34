"""Block: the Jacobian of one intermediate with respect to one far end, with its Kronecker deltas left unwritten.

The *near* end is the intermediate the block belongs to: ``y`` when tangents are pushed forward, the cotangent's
owner when they are pulled back. The *far* end is the seeds: the input in forward mode, the output in reverse.
Nothing here knows which of the two it is; a map pushes with the same operations with which its transpose pulls.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import (
    Part,
    Shape,
    Tied,
    axis_of,
    moved,
    repeated_axes,
    shape_text,
    with_size,
)
from pushforward.linear.diagonals import digits, on_diagonal, spread
from pushforward.linear.regrouping import regrouping

# Elements up to which constants are written out by a product with ones on a diagonal, which kernels keep: one call.
# Beyond, that takes twice the memory of the result.
MAX_EYE = 2**14


@dataclasses.dataclass(slots=True)
class Block:
    """Values over the near axes and the free seed axes; every other seed axis is tied to a near axis.

    Math: J[near n, seed s] = values[s at free axes, n] · Π_{k tied} δ(s_k, n_{tied[k]})

    A seed axis may be tied to a part of a near axis (`Part`), as that of samples where all their tokens are one axis.

    Not frozen, for speed (a frozen dataclass takes 4 times as long to make); never changed after it is made.
    """

    values: Tensor  # (*free seed axes, *near axes); a near axis may have size 1 and stand for all its positions
    shape: Shape  # of the near end
    seed_shape: Shape  # of the far end, up to a row-major reshape
    tied: Tied  # for each seed axis the near axis or part it is tied to, None where it is free
    source: int = 0  # which far end: the number of the input (forward) or of the output (reverse)

    def __repr__(self) -> str:
        """Show shape and ties on one line."""
        seeds = " ".join(
            str(n) if tie is None else f"{n}~{tie}"
            for n, tie in zip(self.seed_shape, self.tied, strict=True)
        )
        return f"Block({shape_text(self.shape)} ← {seeds or '()'})"

    @property
    def num_free(self) -> int:
        """The number of free seed axes."""
        return self.tied.count(None)

    @property
    def structure(self) -> tuple[int, Shape, Tied]:
        """Blocks with the same structure add by adding their values."""
        return self.source, self.seed_shape, self.tied

    def holders(self, axis: int) -> list[int]:
        """Return the seed axes that are tied to a near axis, or to a part of it."""
        return [k for k, tie in enumerate(self.tied) if tie is not None and axis_of(tie) == axis]

    @property
    def in_part(self) -> list[int]:
        """The seed axes that are tied to parts of near axes."""
        return [k for k, tie in enumerate(self.tied) if isinstance(tie, Part)]

    def split(self, k: int) -> Block:
        """Return the block with the near axis as several, one of them the part that seed axis ``k`` is tied to."""
        tie, size = self.tied[k], self.seed_shape[k]
        assert isinstance(tie, Part)
        axis, within = tie
        sizes = [n for n in (self.shape[axis] // (size * within), size, within) if n != 1]
        return self.reshape((*self.shape[:axis], *sizes, *self.shape[axis + 1 :]))

    @property
    def num_seeds(self) -> int:
        """How many free columns are carried."""
        return math.prod(
            n for n, axis in zip(self.seed_shape, self.tied, strict=True) if axis is None
        )

    def with_values(self, values: Tensor) -> Block:
        """Return the same structure with other values."""
        return Block(values, self.shape, self.seed_shape, self.tied, self.source)

    def expanded_values(self) -> Tensor:
        """Return the values with every near axis at its full size (a view)."""
        num_free = self.num_free
        return self.values.expand(self.values.shape[:num_free] + self.shape)

    def in_batch(self, batch: Shape) -> Block:
        """Return the same block for all members of a batch, whose axes come first at the near end."""
        num_free, count = self.num_free, len(batch)
        sizes = self.values.shape
        values = self.values.reshape(sizes[:num_free] + (1,) * count + sizes[num_free:])
        tied = moved(self.tied, lambda axis: axis + count)
        return Block(values, batch + self.shape, self.seed_shape, tied, self.source)

    def scale(self, coef: Tensor | complex) -> Block:
        """Multiply by ``coef``, which broadcasts to the near shape without enlarging it."""
        return Block(self.values * coef, self.shape, self.seed_shape, self.tied, self.source)

    def permute(self, dims: Sequence[int]) -> Block:
        """Reorder the near axes."""
        num_free = self.num_free
        values = self.values.permute((*range(num_free), *(num_free + d for d in dims)))
        place = {old: new for new, old in enumerate(dims)}
        tied = moved(self.tied, place.__getitem__)
        return Block(values, tuple(self.shape[d] for d in dims), self.seed_shape, tied, self.source)

    def expand(self, shape: Shape) -> Block:
        """Broadcast the near axes to ``shape``, aligned on the right; copies nothing."""
        added = len(shape) - len(self.shape)
        if not added:
            return Block(self.values, shape, self.seed_shape, self.tied, self.source)
        num_free = self.num_free
        values = self.values
        values = values.reshape(values.shape[:num_free] + (1,) * added + values.shape[num_free:])
        tied = moved(self.tied, lambda axis: axis + added)
        return Block(values, shape, self.seed_shape, tied, self.source)

    def sum(self, axes: Sequence[int], keepdim: bool = False) -> Block:
        """Sum near axes away. A tied axis becomes a free one: its delta picks one term of the sum."""
        sizes = self.values.shape[self.num_free :]
        written = [i for i in axes if sizes[i] == self.shape[i] and not self.holders(i)]
        block, left = self, axes
        if len(written) > 1:
            block = self._sum_written(written)
            left = [i - sum(j < i for j in written) for i in axes if i not in written]
        for axis in sorted(left, reverse=True):
            block = block._sum_axis(axis)
        if keepdim:
            shape = tuple(1 if i in axes else n for i, n in enumerate(self.shape))
            return block.reshape(shape)
        return block

    def _sum_written(self, axes: Sequence[int]) -> Block:
        """Sum axes that nothing is tied to, and that the values have at full size, in one call."""
        num_free = self.num_free
        values = self.values.sum([num_free + i for i in axes])
        shape = tuple(n for i, n in enumerate(self.shape) if i not in axes)
        tied = moved(self.tied, lambda axis: axis - sum(i < axis for i in axes))
        return Block(values, shape, self.seed_shape, tied, self.source)

    def _sum_axis(self, axis: int) -> Block:
        holders = self.holders(axis)
        if len(holders) > 1:
            return self.untie_seeds(holders[1:])._sum_axis(axis)
        if holders and isinstance(self.tied[holders[0]], Part):
            split = self.split(holders[0])
            return split.sum(range(axis, axis + 1 + len(split.shape) - len(self.shape)))
        shape = self.shape[:axis] + self.shape[axis + 1 :]
        num_free = self.num_free
        values, tied = self.values, list(self.tied)
        if holders:
            k = holders[0]
            size = self.shape[axis]
            place = self.tied[:k].count(None)
            if values.shape[num_free + axis] != size:
                values = values.expand(with_size(values.shape, num_free + axis, size))
            values = values.movedim(num_free + axis, place)
            tied[k] = None
        elif values.shape[num_free + axis] == self.shape[axis]:
            values = values.sum(num_free + axis)
        else:
            values = values.squeeze(num_free + axis) * self.shape[axis]
        new_tied = moved(tuple(tied), lambda other: other - (other > axis))
        return Block(values, shape, self.seed_shape, new_tied, self.source)

    def sum_to(self, shape: Shape) -> Block:
        """Undo a broadcast from ``shape``: sum the axes along which it was repeated."""
        repeated = repeated_axes(shape, self.shape)
        return self.sum(repeated).reshape(shape) if repeated else self

    def untie_seeds(self, seed_axes: Sequence[int]) -> Block:
        """Write out the deltas of ``seed_axes``: these axes become free."""
        block = self
        for k in seed_axes:
            block = block._untie_seed(k)
        return block

    def _untie_seed(self, k: int) -> Block:
        tie, size = self.tied[k], self.seed_shape[k]
        if tie is None:
            return self
        axis, place = axis_of(tie), self.tied[:k].count(None)
        near, full = self.num_free + axis, self.shape[axis]
        values = self.values
        is_constant = values.shape[near] != full
        is_small = is_constant and size * full <= MAX_EYE
        if is_small or isinstance(tie, Part):
            ones = spread(digits(tie, size, full, values), values.ndim + 1, place, near + 1)
            values = values.unsqueeze(place)
            values = values * ones if is_small else torch.where(ones != 0, values, 0.0)
        else:
            if is_constant:
                values = values.expand(with_size(values.shape, near, full))
            values = on_diagonal(values, near, near + 1, place)
        tied = (*self.tied[:k], None, *self.tied[k + 1 :])
        return Block(values, self.shape, self.seed_shape, tied, self.source)

    def untie(self, axes: Sequence[int]) -> Block:
        """Write out every delta that holds one of the near ``axes``."""
        held = [k for k, tie in enumerate(self.tied) if tie is not None and axis_of(tie) in axes]
        return self.untie_seeds(held) if held else self

    def reshape(self, shape: Shape) -> Block:
        """Reshape the near end, relabelling ties where groups of axes correspond, untying where they do not."""
        if shape == self.shape:
            return self
        num_free = self.num_free
        found = regrouping(
            self.shape, shape, self.seed_shape, self.tied, self.values.shape[num_free:]
        )
        block = self
        if found.untied:
            block = self.untie_seeds(found.untied)
            num_free = block.num_free
        values = block.values
        free_shape, sizes = values.shape[:num_free], values.shape[num_free:]
        if sizes != found.expanded:
            values = values.expand(free_shape + found.expanded)
        values = values.reshape(free_shape + found.reshaped)
        return Block(values, shape, found.seed_shape, found.tied, self.source)

    def apply(
        self,
        function: Callable[[Tensor], Tensor],
        shape: Shape,
        kept: Sequence[tuple[int, int]],
        uniform: bool = False,
    ) -> Block:
        """Apply a linear ``function`` that takes ``(seeds, *self.shape)`` to ``(seeds, *shape)``.

        Args:
            function: Linear, and independent of the first axis.
            shape: The near shape afterwards.
            kept: Pairs (axis before, axis after) along which the function acts position by position; ties on
                these stay, all others are written out.
            uniform: Whether it does the same at every position of the kept axes, so that a kept axis over
                which the values are constant need not be written out.
        """
        place = dict(kept)
        block = self
        if len(place) < len(self.shape):
            block = self.untie([axis for axis in range(len(self.shape)) if axis not in place])
        values, num_free = block.values, block.num_free
        sizes = values.shape
        free_shape = sizes[:num_free]
        near = list(block.shape)
        if uniform:
            for axis, _ in kept:
                near[axis] = sizes[num_free + axis]
        full = (*free_shape, *near)
        if sizes != full:
            values = values.expand(full)
        if num_free == 1:
            result = function(values)
        else:
            result = function(values.reshape((math.prod(free_shape), *near)))
            result = result.reshape(free_shape + result.shape[1:])
        tied = moved(block.tied, place.__getitem__)
        return Block(result, shape, block.seed_shape, tied, block.source)

    def parts(self, axis: int) -> int | None:
        """Return into how many parts after each other one seed axis cuts a near axis; None where ties are otherwise."""
        holders = self.holders(axis)
        if len(holders) != 1:
            return None
        tie, size = self.tied[holders[0]], self.seed_shape[holders[0]]
        is_first = not isinstance(tie, Part) or size * tie.within == self.shape[axis]
        return size if is_first else None

    def apply_to_parts(
        self,
        function: Callable[[Tensor, int], Tensor],
        axis: int,
        parts: int,
        shape: Shape,
        kept: Sequence[tuple[int, int]],
        uniform: bool = False,
    ) -> Block:
        """Do as `apply` with a ``function`` that sums over a tied ``axis``: each of its ``parts`` goes to one seed.

        It takes ``(seeds, *self.shape)`` and their number to ``(seeds, parts, *shape)``.
        """
        full = with_size(self.values.shape, self.num_free + axis, self.shape[axis])
        block = self.with_values(self.values.expand(full))
        pairs = ((axis, 0), *[(before, after + 1) for before, after in kept])
        apart = block.apply(lambda seeds: function(seeds, parts), (parts, *shape), pairs, uniform)
        tied = tuple([0 if t is not None and axis_of(t) == 0 else t for t in apart.tied])
        return Block(apart.values, apart.shape, apart.seed_shape, tied, apart.source).sum((0,))

    def flipped(self) -> Block:
        """Return the transpose: the near end becomes the far one. Ties stay ties; what is not tied becomes free."""
        holders: dict[int, int] = {}
        for k, tie in enumerate(self.tied):
            if tie is None:
                continue
            if isinstance(tie, Part) or tie in holders:
                return self.untie_seeds([k]).flipped()
            holders[tie] = k
        num_free, ndim = self.num_free, len(self.shape)
        free_near = [axis for axis in range(ndim) if axis not in holders]
        values = self.values
        sizes = list(values.shape)
        for axis in free_near:
            sizes[num_free + axis] = self.shape[axis]
        order = [num_free + axis for axis in free_near]
        place = 0
        for tie in self.tied:  # the near axes of the transpose
            if tie is None:
                order.append(place)
                place += 1
            else:
                order.append(num_free + axis_of(tie))
        values = values.expand(sizes).permute(order)
        tied = tuple(holders.get(axis) for axis in range(ndim))
        return Block(values, self.seed_shape, self.shape, tied, self.source)

    def to_structure(self, seed_shape: Shape, tied: Tied) -> Block:
        """Write out the deltas that ``tied`` lacks, reshaping the seeds where they were regrouped."""
        if self.seed_shape != seed_shape:
            block = self.untie_seeds(range(len(self.seed_shape)))
            values = block.values.reshape(seed_shape + block.values.shape[block.num_free :])
            return Block(values, self.shape, seed_shape, (None,) * len(seed_shape), self.source)
        return self.untie_seeds([k for k, tie in enumerate(self.tied) if tie != tied[k]])

    def to_dense(self) -> Tensor:
        """Return the Jacobian with nothing left out: ``(*shape, *seed_shape)``, contiguous."""
        if in_part := self.in_part:
            return self.untie_seeds(in_part).to_dense()
        num_free, ndim = self.num_free, len(self.shape)
        values = self.values
        if values.shape[num_free:] != self.shape:
            values = self.expanded_values()
        if num_free:
            order = (*range(num_free, num_free + ndim), *range(num_free))
            values = values.permute(order)
        for k, tie in enumerate(self.tied):
            if tie is not None:
                values = on_diagonal(values, axis_of(tie), axis_of(tie), ndim + k)
        return values.contiguous()

    def to_rows(self) -> Tensor:
        """Return the same with the seeds first: ``(*seed_shape, *shape)``, contiguous."""
        block = self.untie_seeds([k for k, axis in enumerate(self.tied) if axis is not None])
        values = block.values
        if values.shape[block.num_free :] != block.shape:
            values = block.expanded_values()
        return values.contiguous()


def identity(primal: Tensor, source: int, num_batch: int = 0) -> Block:
    """Return the Jacobian of a real ``primal`` with respect to itself: all ones, all axes tied.

    The first ``num_batch`` axes are a batch: what is done to one of its members is done to all.
    """
    block = identity_like(tuple(primal.shape[num_batch:]), primal, source)
    return block.in_batch(tuple(primal.shape[:num_batch])) if num_batch else block


def identity_like(shape: Shape, like: Tensor, source: int = 0) -> Block:
    """Return the identity of tensors of ``shape``, with the dtype and on the device of ``like``."""
    tied: Tied = tuple([i if n != 1 else None for i, n in enumerate(shape)])
    num_axes = len(shape) + tied.count(None)
    values = torch.ones((1,) * num_axes, dtype=like.dtype, device=like.device)
    return Block(values, shape, shape, tied, source)


def complex_identity(primal: Tensor, source: int, num_batch: int = 0) -> Block:
    """Return the Jacobian of a complex ``primal`` by its real and imaginary parts; a batch as in `identity`.

    Seeds are ``(*primal.shape, 2)``: along the last axis 1 (the real direction) and i (the imaginary one).
    """
    shape = tuple(primal.shape[num_batch:])
    tied = (*(i if n != 1 else None for i, n in enumerate(shape)), None)
    ones = tied[:-1].count(None)
    directions = torch.tensor([1, 1j], dtype=primal.dtype, device=primal.device)
    values = directions.reshape((1,) * ones + (2,) + (1,) * len(shape))
    block = Block(values, shape, (*shape, 2), tied, source)
    return block.in_batch(tuple(primal.shape[:num_batch])) if num_batch else block


def seeds(tangents: Tensor, seed_shape: Shape, source: int) -> Block:
    """Return the block of given tangents ``(*seed_shape, *primal.shape)``: every seed axis is free."""
    shape = tuple(tangents.shape[len(seed_shape) :])
    return Block(tangents, shape, seed_shape, (None,) * len(seed_shape), source)
