"""Coloring: what a colouring gives, seeds to compress with and the way back."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from pushforward.errors import ArgumentValueError, message
from pushforward.sparse.coloring.decompression import Reading
from pushforward.sparse.pattern import Pattern
from pushforward.tape.private_torch import bare


@dataclasses.dataclass(frozen=True, eq=False)
class Coloring:
    """Which columns, and which rows, of a matrix share a seed, and where each entry is read from.

    Example:
        >>> from pushforward.sparse.coloring.choice import coloring
        >>> matrix = torch.tensor([[1.0, 2, 0], [3, 4, 5], [0, 6, 7]])
        >>> found = coloring(matrix, structure="symmetric", recovery="substitution")
        >>> print(found)
        2 colors (lower bound 2) for 7 entries of 3×3: symmetric, by substitution, order largest_first
        >>> found.column_colors
        tensor([1, 0, 1])
    """

    pattern: Pattern
    structure: str
    recovery: str
    order: str  # the order that won
    column_colors: Tensor  # (columns,); -1: in no seed
    row_colors: Tensor  # (rows,); -1: in no seed
    lower_bound: int  # no colouring of this structure and recovery has fewer colours
    reading: Reading

    @property
    def num_pushed(self) -> int:
        """The number of seeds that combine columns (products with the matrix)."""
        return _count(self.column_colors)

    @property
    def num_pulled(self) -> int:
        """The number of seeds that combine rows (products with its transpose)."""
        return _count(self.row_colors)

    @property
    def num_colors(self) -> int:
        """The number of products that are needed."""
        return self.num_pushed + self.num_pulled

    def seeds(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the seeds as rows of zeros and ones: ``(num_pushed, columns)`` and ``(num_pulled, rows)``.

        Either may have no rows: only a bidirectional colouring has both.
        """
        pushed, pulled = (
            (torch.arange(_count(colors))[:, None] == colors).to(
                device, dtype or torch.get_default_dtype()
            )
            for colors in (self.column_colors, self.row_colors)
        )
        return pushed, pulled

    def decompress(self, pushed: Tensor | None = None, pulled: Tensor | None = None) -> Tensor:
        """Return the entries, ``(nnz, *rest)`` in CSR order, from the products with the seeds.

        Differentiable in both; axes after the first two (of blocks, say) go along.

        Args:
            pushed: ``(num_pushed, rows, *rest)``: the matrix times each seed of columns.
            pulled: ``(num_pulled, columns, *rest)``: its transpose times each seed of rows.

        Raises:
            ArgumentValueError: A product that is needed is missing, or has another shape.

        Example:
            >>> from pushforward.sparse.coloring.choice import coloring
            >>> matrix = torch.tensor([[1.0, 2, 3], [4, 5, 0], [6, 0, 7]])
            >>> found = coloring(matrix, structure="bidirectional")
            >>> columns, rows = found.seeds()
            >>> found.decompress(columns @ matrix.T, rows @ matrix)
            tensor([1., 2., 3., 4., 5., 6., 7.])
        """
        num_rows, num_cols = self.pattern.shape
        parts = [
            _checked("pushed", pushed, (self.num_pushed, num_rows)),
            _checked("pulled", pulled, (self.num_pulled, num_cols)),
        ]
        flat = [part.flatten(0, 1) for part in parts if part is not None] or [torch.zeros(0)]
        compressed = torch.cat(flat) if len(flat) > 1 else flat[0]
        return self._reading_on(compressed.device).entries(compressed)

    @functools.cached_property
    def entry_colors(self) -> Tensor:
        """The seed that each entry is read from, ``(nnz,)``: those of columns first, then those of rows."""
        num_rows, num_cols = self.pattern.shape
        reading = self.reading
        places = reading.places if reading.spread is None else reading.places[reading.spread]
        in_columns = self.num_pushed * num_rows
        pulled = self.num_pushed + (places - in_columns) // max(num_cols, 1)
        return torch.where(places < in_columns, places // max(num_rows, 1), pulled)

    @functools.cached_property
    def _readings(self) -> dict[torch.device, Reading]:
        return {torch.device("cpu"): self.reading}

    def _reading_on(self, device: torch.device) -> Reading:
        if device not in self._readings:
            self._readings[device] = self.reading.to(device)
        return self._readings[device]

    def __repr__(self) -> str:
        """Show what was found on one line."""
        num_rows, num_cols = self.pattern.shape
        colors = "1 color" if self.num_colors == 1 else f"{self.num_colors} colors"
        if self.structure == "bidirectional":
            colors += f" ({self.num_pushed} of columns, {self.num_pulled} of rows)"
        how = "" if self.recovery == "direct" else f", by {self.recovery}"
        return (
            f"{colors} (lower bound {self.lower_bound}) for {self.pattern.nnz} entries of "
            f"{num_rows}×{num_cols}: {self.structure}{how}, order {self.order}"
        )


def _count(colors: Tensor) -> int:
    with bare():  # a tracer has no part in it
        return int(colors.max()) + 1 if len(colors) else 0


def _checked(name: str, product: Tensor | None, expected: tuple[int, int]) -> Tensor | None:
    """Return the product if it has the expected shape; None where none is needed."""
    if expected[0] == 0:
        return None
    if product is None or product.shape[:2] != expected:
        got = None if product is None else tuple(product.shape)
        raise ArgumentValueError(
            message(
                "Coloring.decompress",
                name,
                got,
                f"{expected} and any further axes",
                "It is the product with the seeds of Coloring.seeds, seeds first.",
            )
        )
    return product
