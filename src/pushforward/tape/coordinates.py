"""Places and values of a sparse tensor: all that is computed of one is computed of these, by dense operators."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.errors import UnsupportedError


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """A sparse tensor as places and values; places that occur several times add up."""

    indices: Tensor  # (sparse axes, values): integers, constants
    values: Tensor  # (values, *dense axes): may depend on the inputs
    shape: tuple[int, ...]
    layout: torch.layout = torch.sparse_coo
    is_coalesced: bool = False  # sorted, each place once
    # The dense tensor it was made from: its zeros depend on the inputs, too
    source: Tensor | None = None

    @property
    def num_sparse(self) -> int:
        """How many axes are sparse."""
        return self.indices.shape[0]

    @property
    def flat(self) -> Tensor:
        """Return the flat place of every value within the sparse axes."""
        return ravel(self.indices, self.shape[: self.num_sparse])

    def with_values(self, values: Tensor) -> Coordinates:
        """Return other values at the same places."""
        return dataclasses.replace(self, values=values, source=None)

    def coalesced(self) -> Coordinates:
        """Add up what stands at the same place, and sort."""
        if self.is_coalesced:
            return self
        places, slots = torch.unique(self.flat, return_inverse=True)
        zeros = self.values.new_zeros((places.shape[0], *self.values.shape[1:]))
        indices = unravel(places, self.shape[: self.num_sparse])
        values = zeros.index_add(0, slots, self.values)
        return dataclasses.replace(self, indices=indices, values=values, is_coalesced=True)

    def dense(self) -> Tensor:
        """Return the dense tensor."""
        if self.source is not None:
            return self.source.clone()
        sizes = self.shape[: self.num_sparse]
        zeros = self.values.new_zeros((math.prod(sizes), *self.values.shape[1:]))
        return zeros.index_add(0, self.flat, self.values).reshape(self.shape)

    def matrix(self) -> Coordinates:
        """Return itself if it is a matrix of numbers."""
        if len(self.shape) != 2 or self.num_sparse != 2:
            got = f"a sparse tensor of shape {self.shape}"
            raise refused("a product", got, "a matrix without dense axes")
        return self

    def transposed(self) -> Coordinates:
        """Exchange the two sparse axes of a matrix."""
        self.matrix()
        source = None if self.source is None else self.source.t()
        swapped = {torch.sparse_csr: torch.sparse_csc, torch.sparse_csc: torch.sparse_csr}
        return Coordinates(
            self.indices.flip(0),
            self.values,
            self.shape[::-1],
            swapped.get(self.layout, self.layout),
            source=source,
        )

    def times(self, other: Tensor) -> Tensor:
        """Return the product with a dense matrix or vector."""
        rows, columns = self.matrix().indices
        values = self.values if other.ndim == 1 else self.values.unsqueeze(1)
        terms = values * other.index_select(0, columns)
        zeros = terms.new_zeros((self.shape[0], *terms.shape[1:]))
        return zeros.index_add(0, rows, terms)

    def at_places(self, dense: Tensor) -> Tensor:
        """Return the entries of a dense tensor at the places of the values."""
        return dense.expand(self.shape)[tuple(self.indices)]


def ravel(indices: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return flat places."""
    flat = indices.new_zeros(indices.shape[1:])
    for index, n in zip(indices, sizes, strict=True):
        flat = flat * n + index
    return flat


def unravel(places: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the indices of flat places."""
    rows = []
    for n in reversed(sizes):
        rows.append(places % max(n, 1))
        places = places // max(n, 1)
    return torch.stack(rows[::-1]) if rows else places.new_zeros((0, places.shape[0]))


def refused(operation: str, got: str, expected: str) -> UnsupportedError:
    """Return the error of what is not covered."""
    return UnsupportedError(
        f"sparse: {operation} of a sparse tensor that depends on the inputs: got {got}, expected {expected}. "
        "Use .to_dense() or .coalesce().values() first, or build the sparse tensor afterwards."
    )
