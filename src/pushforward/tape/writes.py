"""Copies into views, as linear maps: of what was there before, and of all that was written."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pushforward.linear.axes import with_size
from pushforward.linear.kinds.concat import Concat
from pushforward.linear.kinds.gather import Gather, Slice
from pushforward.linear.kinds.mask import Mask
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.tables import table
from pushforward.tape.private_torch import bare
from pushforward.tape.reader import Edge
from pushforward.tape.stores import MISSING, Store, Stores, axes_of, flat_position

MAX_NUMBERS = 2**16  # of a constant that is made of a list

Part = tuple[Edge, AbstractLinearMap, torch.dtype]
Variable = tuple[Edge, list[Part], torch.dtype]


def variables(stores: Stores, edge: Edge, device: torch.device) -> list[Variable]:
    """Return a base after writes, as (edge, parts, dtype), behind what its parts need: edges with negative numbers."""
    return _Assembly(stores, edge, device).variables


class _Assembly:
    """One base after several writes."""

    def __init__(self, stores: Stores, edge: Edge, device: torch.device) -> None:
        start, chain, first, last = stores.since(edge)
        self.variables: list[Variable] = []
        self._edge, self._chain, self._device = edge, chain, device
        self._stores = (first, last)
        with bare():
            counts = torch.bincount(
                chain.owners(first, last).reshape(-1) + 1, minlength=last + 2
            ).tolist()
        parts: list[Part] = []
        if start != MISSING and counts[0]:
            parts.append((start, Mask(chain.shape, chain.shape, self._kept()), chain.dtype))
        singles: list[tuple[Store, int]] = []  # elements, and their positions row by row
        for number in range(first, last + 1):
            store, count = chain.stores[number], counts[number + 1]
            if store.source == MISSING or not count:
                continue
            axes = axes_of(chain.shape, chain.stride, store.region)
            if count < math.prod(store.region[0]) or axes is None:
                parts.append((store.source, self._scattered(store, number), store.dtype))
                continue
            position = flat_position(chain.shape, axes)
            if position is not None and len(axes) > 1:
                singles.append((store, position))
            else:
                parts.append(self._placed(store, axes))
        if singles:
            parts.append(self._joined(singles))
        self.variables.append((edge, parts, chain.dtype))

    def _new(self, parts: list[Part]) -> Edge:
        """Add a variable."""
        edge = (self._edge[0], -1 - len(self.variables))
        self.variables.append((edge, parts, self._chain.dtype))
        return edge

    def _joined(self, singles: list[tuple[Store, int]]) -> Part:
        """Join elements to a vector, which becomes the base."""
        shape = self._chain.shape
        flat = (math.prod(shape),)
        pieces: list[Part] = [
            (store.source, Concat((), flat, 0, position, new_axis=True), store.dtype)
            for store, position in singles
        ]
        return self._new(pieces), Reshape(flat, shape), self._chain.dtype

    def _placed(self, store: Store, axes: list[range | int]) -> Part:
        """Put a source into zeros, one axis after the other."""
        edge, dtype, shape = store.source, store.dtype, store.region[0]
        maps: list[AbstractLinearMap] = []
        for axis, (taken, size) in enumerate(zip(axes, self._chain.shape, strict=True)):
            if isinstance(taken, int):
                wide = (*shape[:axis], size, *shape[axis:])
                maps.append(Concat(shape, wide, axis, taken, new_axis=True))
            elif len(taken) == size:
                continue
            else:
                wide = with_size(shape, axis, size)
                if taken.step == 1:
                    maps.append(Concat(shape, wide, axis, taken.start))
                else:
                    maps.append(transpose(Slice(wide, shape, axis, taken.start, taken.step)))
            shape = wide
        if not maps:
            return edge, Reshape(shape, shape), dtype
        for linear_map in maps[:-1]:
            edge, dtype = self._new([(edge, linear_map, dtype)]), self._chain.dtype
        return edge, maps[-1], dtype

    def _kept(self) -> Tensor:
        """Return where nobody wrote."""
        return self._constant(lambda: self._chain.owners(*self._stores) < 0)

    def _scattered(self, store: Store, number: int) -> AbstractLinearMap:
        """Return the map of a write whose place is irregular, or that later ones overwrote in part."""
        chain = self._chain

        def index() -> Tensor:
            places = chain.positions(store.region)
            owners = chain.owners(*self._stores).reshape(-1)[places]
            return torch.where(owners == number, places, -1)

        base, shape = chain.shape, store.region[0]
        axes = tuple(range(len(base))), tuple(range(len(shape)))
        return transpose(Gather(base, shape, self._constant(index), *axes))

    def _constant(self, compute: Callable[[], Tensor]) -> Tensor:
        """Return what is computed of places alone: a small one as numbers, which a kernel keeps."""
        if math.prod(self._chain.shape) > MAX_NUMBERS:
            return table(compute().to(self._device))
        with bare():
            numbers = compute()
            listed, dtype = numbers.tolist(), numbers.dtype
        found = torch.tensor(listed, dtype=dtype, device=self._device).reshape(numbers.shape)
        return table(found)
