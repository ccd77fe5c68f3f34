"""Space: a pytree of tensors, seen as one vector."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import ArgumentTypeError, ArgumentValueError, message
from pushforward.trees import LEAF, TreeSpec, flatten, unflatten

NAME = "Space"


class Space:
    """A pytree of tensors, seen as one vector: the rows or the columns of an operator.

    Leaves follow one another as PyTorch flattens the pytree, each row by row. With ``by_parts``, a complex number is
    two coordinates, its real and its imaginary part; else one. Leaves that are no tensors do not count.
    """

    __slots__ = (
        "_has_constants",
        "_leaves",
        "by_parts",
        "device",
        "dtype",
        "size",
        "sizes",
        "spec",
    )

    def __init__(
        self, leaves: Sequence[Any], spec: TreeSpec = LEAF, *, by_parts: bool = False
    ) -> None:
        """Describe a pytree by its leaves."""
        self.spec, self.by_parts = spec, by_parts
        self._has_constants = False
        found: list[tuple[tuple[int, ...], torch.dtype] | None] = []
        device = None
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                found.append((tuple(leaf.shape), leaf.dtype))
                device = leaf.device if device is None else device
            else:
                found.append(None)
                self._has_constants = True
        self._leaves = found
        self.device = torch.device("cpu") if device is None else device
        self.sizes = [
            math.prod(shape) * (2 if self._is_halved(dtype) else 1)
            for shape, dtype in self._tensors()
        ]
        self.size = sum(self.sizes)
        dtypes = [
            dtype.to_real() if self._is_halved(dtype) else dtype for _, dtype in self._tensors()
        ]
        self.dtype = functools.reduce(torch.promote_types, dtypes or [torch.get_default_dtype()])

    def _tensors(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [leaf for leaf in self._leaves if leaf is not None]

    def _is_halved(self, dtype: torch.dtype) -> bool:
        return self.by_parts and dtype.is_complex

    def split(self, vectors: Tensor) -> list[Tensor]:
        """Return the tensors whose coordinates are ``vectors`` ``(*batch, size)``, in their own dtypes."""
        batch = vectors.shape[:-1]
        tensors = self._tensors()
        pieces = vectors.split(self.sizes, -1) if len(tensors) > 1 else (vectors,)
        found = []
        for piece, (shape, dtype) in zip(pieces, tensors, strict=True):
            if self._is_halved(dtype):
                parts = piece.to(dtype.to_real()).reshape((*batch, *shape, 2)).contiguous()
                found.append(torch.view_as_complex(parts))
            else:
                found.append(piece.to(dtype).reshape((*batch, *shape)))
        return found

    def join(self, tensors: Sequence[Tensor], num_batch: int = 0) -> Tensor:
        """Return the coordinates ``(*batch, size)`` of ``tensors``, whose first ``num_batch`` axes are the batch."""
        pieces = []
        for tensor, size, (_, dtype) in zip(tensors, self.sizes, self._tensors(), strict=True):
            if self._is_halved(dtype):
                tensor = torch.view_as_real(tensor.resolve_conj())
            pieces.append(tensor.reshape((*tensor.shape[:num_batch], size)))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)

    def flatten(self, tree: Any) -> Tensor:
        """Return the coordinates ``(size,)`` of a pytree of this structure.

        Raises:
            TypeError: The structure is another, or a leaf is no tensor.
            ValueError: A leaf has another shape.
        """
        leaves, spec = flatten(tree)
        if spec != self.spec:
            raise ArgumentTypeError(
                message(
                    NAME, "structure", spec, str(self.spec), "Give a tensor for every tensor there."
                )
            )
        tensors = []
        for leaf, known in zip(leaves, self._leaves, strict=True):
            if known is None:
                continue
            shape, dtype = known
            if not isinstance(leaf, Tensor):
                raise ArgumentTypeError(
                    message(NAME, "leaf", type(leaf).__name__, "a tensor", "Use torch.zeros.")
                )
            if leaf.shape != shape:
                raise ArgumentValueError(
                    message(NAME, "shape", tuple(leaf.shape), f"{shape}", "Broadcast it first.")
                )
            if leaf.is_complex() and not dtype.is_complex:
                raise ArgumentTypeError(
                    message(NAME, "dtype", leaf.dtype, f"{dtype}, which is real", "Use .real.")
                )
            tensors.append(leaf.to(dtype))
        return self.join(tensors)

    def unflatten(self, vector: Tensor) -> Any:
        """Return the pytree with the coordinates ``(size,)``; None where a leaf is no tensor.

        Raises:
            TypeError: A complex number is given for a real coordinate.
            ValueError: The vector has another length.
        """
        if vector.shape != (self.size,):
            raise ArgumentValueError(
                message(NAME, "shape", tuple(vector.shape), f"({self.size},)", "Give one vector.")
            )
        if vector.is_complex() and not all(
            dtype.is_complex and not self.by_parts for _, dtype in self._tensors()
        ):
            raise ArgumentTypeError(
                message(
                    NAME,
                    "dtype",
                    vector.dtype,
                    "real coordinates",
                    "Where real and complex numbers meet, multiply flat vectors instead of pytrees.",
                )
            )
        tensors = self.split(vector)
        if not self._has_constants:
            return unflatten(tensors, self.spec)
        rest = iter(tensors)
        return unflatten(
            [None if known is None else next(rest) for known in self._leaves], self.spec
        )

    def __repr__(self) -> str:
        """Show the number of coordinates and the shapes of the leaves."""
        shapes = ", ".join(str(shape) for shape, _ in self._tensors())
        return f"Space({self.size}: {shapes})"
