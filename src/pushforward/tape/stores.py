"""Chains of writes into one base: which write a read finds, and what a base consists of in the end.

Places are counted in the base's memory. Where nobody wrote in between, a read takes the value that was written there,
so that what is made of a tensor that was filled element by element depends on the elements alone.
"""

from __future__ import annotations

import array
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import UnsupportedError
from pushforward.tape.node_types import signed
from pushforward.tape.private_torch import Node, bare, output_metadata
from pushforward.tape.reader import Edge, Geometry, Reading

MISSING: Edge = (-1, 0)

# Sizes, strides and offset in the base's memory
Region = tuple[tuple[int, ...], tuple[int, ...], int]


@dataclasses.dataclass(slots=True)
class Store:
    """One write."""

    edge: Edge  # the base after it
    region: Region
    source: Edge
    dtype: torch.dtype  # of the source


class Chain:
    """The writes into one base, in order."""

    def __init__(self, start: Edge, geometry: Geometry, dtype: torch.dtype) -> None:
        """Begin with the base as it was before the first write."""
        self.start, self.dtype = start, dtype
        self.shape, self.stride = geometry[:2]
        self.stores: list[Store] = []
        # Which store wrote each element last: as an array, which is quicker for one of them, and as a tensor.
        self._array = array.array("i", [-1]) * max(self._extent, 1)
        self._owners = torch.frombuffer(self._array, dtype=torch.int32)

    @property
    def _extent(self) -> int:
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))

    def _nobody(self) -> Tensor:
        return torch.full((max(self._extent, 0),), -1, dtype=torch.int32)

    def add(self, store: Store) -> None:
        """Write."""
        sizes, strides, offset = store.region
        end = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
        if 0 not in sizes and not 0 <= offset <= end < len(self._array):
            raise UnsupportedError(
                f"The function wrote to memory around an input: got elements {offset} to {end}, expected them from 0 "
                f"to {len(self._array) - 1}. Give it the whole tensor."
            )
        if sizes:
            self._owners.as_strided(*store.region).fill_(len(self.stores))
        else:
            self._array[offset] = len(self.stores)
        self.stores.append(store)

    def found(self, region: Region, dtype: torch.dtype) -> Edge | None:
        """Return what a read of the region finds now: a source, or nothing; None if that is not one thing."""
        owner = self._owner(region)
        if owner is None:
            return None
        if owner < 0:
            return MISSING if self.start == MISSING else None
        store = self.stores[owner]
        is_same = store.region == region and dtype is self.dtype is store.dtype
        return store.source if is_same or store.source == MISSING else None

    def _owner(self, region: Region) -> int | None:
        """Return which store wrote all of a region last, -1 if none did; None if it was not one."""
        sizes, strides, offset = region
        if 0 in sizes:
            return None
        first = self._array[offset]
        if len(sizes) == 1 and strides[0] > 0:  # an array tells that in a tenth of the time
            step = strides[0]
            written = self._array[offset : offset + (sizes[0] - 1) * step + 1 : step]
            return first if written.count(first) == sizes[0] else None
        if sizes and not bool((self._owners.as_strided(*region) == first).all()):
            return None
        return first

    def owners(self, first: int, last: int) -> Tensor:
        """Return which of the stores ``first`` to ``last`` was the last to write each element, -1 where none did."""
        memory = self._nobody()
        for number in range(first, last + 1):
            memory.as_strided(*self.stores[number].region).fill_(number)
        return memory.as_strided(self.shape, self.stride)

    def positions(self, region: Region) -> Tensor:
        """Return where in the base the elements of a region are, counted row by row."""
        memory = self._nobody().long()
        where = torch.arange(math.prod(self.shape)).reshape(self.shape)
        memory.as_strided(self.shape, self.stride).copy_(where)
        return memory.as_strided(*region).reshape(-1)


class Stores:
    """The chains of a reading."""

    def __init__(self, reading: Reading) -> None:
        """Go through the nodes in order."""
        self.versions: dict[Edge, tuple[Chain, int]] = {}
        self.forwarded: dict[Edge, Edge] = {}  # reads to what they find
        self._views: dict[Edge, tuple[Edge, Region]] = {}
        self._parents: dict[Edge, Edge] = {}  # of views
        self._live: set[Edge] = set(reading.hooks)  # what anything but the next write takes
        if reading.geometries:
            with bare():  # places do not depend on what is computed
                self._read(reading)

    def _read(self, reading: Reading) -> None:
        live, geometries = self._live, reading.geometries
        for place, node in enumerate(reading.nodes):
            number = reading.num_inputs + place
            edges = [self.at(edge) for edge in reading.edges(place)]
            if node in geometries:
                self._add_store((number, 0), node, edges, _concrete(geometries[node]))
            elif len(edges) == 1 and (edges[0] in self.versions or edges[0] in self._views):
                self._add_views(reading, number, node, edges[0])
            else:
                live.update(edges)
        live.update(map(self.at, reading.outputs))
        for view in reversed(self._parents):
            if view in live:
                live.add(self._parents[view])

    def at(self, edge: Edge) -> Edge:
        """Return what an edge leads to in the end."""
        return self.forwarded.get(edge, edge)

    def _add_store(self, edge: Edge, node: Node, edges: Sequence[Edge], geometry: Geometry) -> None:
        target, nr = node.next_functions[1]
        dtype = output_metadata(node)[0].dtype
        chain, last = self.versions.get(edges[0], (None, 0))
        if chain is None or last != len(chain.stores) - 1 or chain.stride != geometry[1]:
            chain = Chain(edges[0], geometry, dtype)
            self._live.add(edges[0])
        source_dtype = dtype if target is None else output_metadata(target)[nr].dtype
        chain.add(Store(edge, geometry[2:], edges[1], source_dtype))
        self._live.add(edges[1])
        self.versions[edge] = chain, len(chain.stores) - 1

    def _add_views(self, reading: Reading, number: int, node: Node, edge: Edge) -> None:
        base, region = (edge, None) if edge in self.versions else self._views[edge]
        chain, last = self.versions[base]
        # A view may be read after a later write has been recorded.
        is_late = last != len(chain.stores) - 1
        region = (chain.shape, chain.stride, 0) if region is None else region
        for nr, found in enumerate(_views(node, region)):
            if found is None or is_late:
                self._live.add(edge)
                continue
            view = (number, nr)
            self._parents[view] = edge
            self._views[view] = base, found
            source = chain.found(found, output_metadata(node)[nr].dtype)
            if source is not None and view not in reading.hooks:
                self.forwarded[view] = source

    def since(self, edge: Edge) -> tuple[Edge, Chain, int, int]:
        """Return the last version before that is needed anyway, the chain, and the first and last store since."""
        chain, last = self.versions[edge]
        first = last
        while first and chain.stores[first - 1].edge not in self._live:
            first -= 1
        start = chain.stores[first - 1].edge if first else chain.start
        return start, chain, first, last


def _concrete(geometry: Geometry) -> Geometry:
    """Return a geometry in numbers, also where sizes are traced: places are constants."""
    shape, stride, view_shape, view_stride, offset = geometry
    sizes = [tuple(map(int, each)) for each in (shape, stride, view_shape, view_stride)]
    return sizes[0], sizes[1], sizes[2], sizes[3], int(offset)


def _views(node: Node, region: Region) -> list[Region | None]:
    """Return the region of each output of ``node``, a view of ``region``; None where it is none."""
    shape, stride, offset = region
    name = node.name()
    if name == "SelectBackward0":
        dim, index = signed(node._saved_dim) % len(shape), signed(node._saved_index)
        return [_selected(region, dim, index % shape[dim])]
    if name == "UnbindBackward0":
        dim = signed(node._saved_dim) % len(shape)
        return [_selected(region, dim, index) for index in range(shape[dim])]
    call = _CALLS.get(name)
    if call is None:
        return [None]
    memory = torch.empty(0, device="meta").as_strided(shape, stride, offset)
    try:
        found = call(memory, node)
    except RuntimeError:
        return [None]  # a reshape that copies
    return [(tuple(found.shape), found.stride(), int(found.storage_offset()))]


def _selected(region: Region, dim: int, index: int) -> Region:
    shape, stride, offset = region
    return (
        (*shape[:dim], *shape[dim + 1 :]),
        (*stride[:dim], *stride[dim + 1 :]),
        offset + index * stride[dim],
    )


def _sliced(view: Tensor, node: Any) -> Tensor:
    dim, start, end = signed(node._saved_dim), signed(node._saved_start), signed(node._saved_end)
    return torch.ops.aten.slice.Tensor(view, dim, start, end, node._saved_step)  # type: ignore[no-any-return]


_CALLS: dict[str, Any] = {
    "SliceBackward0": _sliced,
    "ViewBackward0": lambda view, node: view.view(tuple(output_metadata(node)[0].shape)),
    "TBackward0": lambda view, node: view.t(),
    "TransposeBackward0": lambda view, node: view.transpose(
        signed(node._saved_dim0), signed(node._saved_dim1)
    ),
    "PermuteBackward0": lambda view, node: view.permute(signed(node._saved_dims)),
    "UnsqueezeBackward0": lambda view, node: view.unsqueeze(signed(node._saved_dim)),
    "SqueezeBackward0": lambda view, node: view.squeeze(),
    "SqueezeBackward1": lambda view, node: view.squeeze(signed(node._saved_dim)),
    "DiagonalBackward0": lambda view, node: view.diagonal(
        signed(node._saved_offset), signed(node._saved_dim1), signed(node._saved_dim2)
    ),
}


def axes_of(
    shape: Sequence[int], stride: Sequence[int], region: Region
) -> list[range | int] | None:
    """Return which positions a region takes along each axis of a base, or the one; None if it is not so regular."""
    sizes, strides, offset = region
    if any(n > 1 and not s for n, s in zip(shape, stride, strict=True)):
        return None
    order = sorted(range(len(shape)), key=lambda axis: -stride[axis])
    index = [0] * len(shape)
    for axis in order:
        if shape[axis] > 1:
            index[axis], offset = divmod(offset, stride[axis])
    if offset:
        return None
    found: list[range | int] = list(index)
    axis = 0
    for size, step in zip(sizes, strides, strict=True):
        while axis < len(shape) and not _runs_along(
            shape[axis], stride[axis], index[axis], size, step
        ):
            axis += 1
        if axis == len(shape):
            return None
        every = max(step // stride[axis], 1) if stride[axis] else 1
        found[axis] = range(index[axis], index[axis] + (size - 1) * every + 1, every)
        axis += 1
    if any(isinstance(i, int) and i >= n for i, n in zip(found, shape, strict=True)):
        return None
    return found


def part_of(base: Tensor, view: Tensor) -> Tensor:
    """Return the part of a base where a view of it lies; by indices if it can be, as they tell the most."""
    offset = int(view.storage_offset() - base.storage_offset())
    axes = axes_of(base.shape, base.stride(), (view.shape, view.stride(), offset))
    if axes is not None:
        index = [i if isinstance(i, int) else slice(i.start, i.stop, i.step) for i in axes]
        part = base[tuple(index)]
        if part.shape == view.shape and part.stride() == view.stride():
            return part
    return base.as_strided(view.shape, view.stride(), view.storage_offset())


def _runs_along(length: int, stride: int, start: int, size: int, step: int) -> bool:
    """Tell whether an axis of a region runs along an axis of the base."""
    if not stride or step % stride or not step:
        return False
    return start + (size - 1) * (step // stride) < length


def flat_position(shape: Sequence[int], axes: Sequence[int | range]) -> int | None:
    """Return the position of a single element, counted row by row; None of a larger region."""
    position = 0
    for n, taken in zip(shape, axes, strict=True):
        if not isinstance(taken, int):
            return None
        position = position * n + taken
    return position
