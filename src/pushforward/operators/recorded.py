"""Recorded: a function recorded at a point, as a real matrix between the coordinates of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import UnsupportedError, message
from pushforward.operators.csr import csr_of
from pushforward.operators.spaces import Space
from pushforward.tape.copies import owned
from pushforward.tape.private_functorch import functorch_level
from pushforward.tape.private_torch import bare
from pushforward.transforms.arguments import Argnums, Selected, check_function, normalize_argnums
from pushforward.transforms.jacobian import dense_rows
from pushforward.transforms.known_call import TapeKey
from pushforward.transforms.record import Tape
from pushforward.transforms.repeat import learn, repeated
from pushforward.transforms.sparse_output import entries_of, sparse_rows
from pushforward.transforms.unbuilt import built
from pushforward.transforms.vjp import pulled_batch
from pushforward.trees import flatten, unflatten


class Recorded:
    """A function that was called once, and the products of its derivative with any number of vectors.

    Between real coordinates: a complex number counts as two, its real and its imaginary part. Complex vectors are
    multiplied part by part.
    """

    def __init__(
        self,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        argnums: Argnums,
        kwargs: dict[str, Any],
        *,
        has_aux: bool = False,
    ) -> None:
        """Call ``func``."""
        check_function(name, func)
        positions = normalize_argnums(name, argnums, len(args))
        self.name, key = name, None if has_aux else TapeKey(name, is_kept=True, positions=positions)
        known = repeated(key, func, args, kwargs)
        if isinstance(known, Tape):
            tape = known
        else:
            selected = Selected(name, args, positions)
            tape = Tape(
                name, func, selected, kwargs, has_aux=has_aux, is_kept=True, takes_apart=True, begun=known
            )  # fmt: skip
            learn(key, tape, selected, args)
        self.tape = tape
        chosen = args[argnums] if isinstance(argnums, int) else tuple(args[p] for p in positions)
        self.inputs = Space(*flatten(chosen), by_parts=True)
        self.outputs = Space(tape.results, tape.spec, by_parts=True)
        self.value = unflatten(tape.results, tape.spec)

    def push(self, columns: Tensor) -> Tensor:
        """Multiply ``(inputs.size,)`` or ``(inputs.size, k)``."""
        return by_parts(self._push, columns)

    def pull(self, columns: Tensor) -> Tensor:
        """Multiply ``(outputs.size,)`` or ``(outputs.size, k)`` by the transpose."""
        return by_parts(self._pull, columns)

    def _push(self, columns: Tensor) -> Tensor:
        rows = columns if columns.dim() == 1 else columns.mT
        batch = tuple(rows.shape[:-1])
        tangents = self.inputs.split(rows)
        pushed = [owned(t, tangents) for t in self.tape.pushed(tangents, batch)]
        found = self.outputs.join(pushed, len(batch))
        return found if columns.dim() == 1 else found.mT

    def _pull(self, columns: Tensor) -> Tensor:
        rows = columns if columns.dim() == 1 else columns.mT
        batch = tuple(rows.shape[:-1])
        cotangents = self.outputs.split(rows)
        pulled = pulled_batch(self.tape, cotangents, batch)
        found = self.inputs.join(pulled, len(batch))
        return found if columns.dim() == 1 else found.mT

    def to_dense(self, by_parts: bool) -> Tensor:
        """Return the matrix; with ``by_parts`` a complex output has two rows, else one with complex numbers."""
        rows = []
        for y, blocks in zip(self.tape.results, dense_rows(self.tape), strict=True):
            sizes = self.inputs.sizes
            flat = [b.reshape(y.numel(), n) for b, n in zip(blocks, sizes, strict=True)]
            row = torch.cat(flat, 1)
            if by_parts and y.is_complex():
                row = torch.view_as_real(row).movedim(-1, 1).reshape(-1, row.shape[1])
            elif by_parts and row.is_complex():
                row = row.real
            rows.append(row)
        return torch.cat(rows)

    def to_csr(self, by_parts: bool) -> Tensor:
        """Return the matrix as a sparse tensor; with ``by_parts`` a complex output has two rows."""
        if functorch_level() is not None:
            raise UnsupportedError(
                message(
                    self.name,
                    "to_csr",
                    "a transform of torch.func around it",
                    "none, as torch.func knows no sparse tensors",
                    "Use .to_dense() there.",
                )
            )
        tape = self.tape
        ends = (*tape.inputs, *tape.results)
        if len(ends) == 2 and not any(t.is_complex() for t in ends):
            return sparse_rows(self.name, tape, "csr")[0][0]
        values, plan = entries_of(tape)
        rows: list[Tensor] = []
        columns: list[Tensor] = []
        found: list[Tensor] = []
        num_rows = 0
        for y, row, layouts in zip(tape.results, values, plan.layouts, strict=True):
            num_parts = 2 if by_parts and y.is_complex() else 1
            num_columns = 0
            for entries, known in zip(row, layouts, strict=True):
                if by_parts and entries.is_complex():
                    found += torch.view_as_real(entries).unbind(-1)[:num_parts]
                else:
                    found.append(entries)
                with bare():
                    rows += [known.rows * num_parts + num_rows + i for i in range(num_parts)]
                    columns += [known.columns + num_columns] * num_parts
                num_columns += known.shape[1]
            num_rows += num_parts * y.numel()
        shape = (num_rows, self.inputs.size)

        def build(values: Tensor) -> Tensor:
            return csr_of(torch.cat(rows), torch.cat(columns), values, shape)

        matrix: Tensor = built(torch.cat(found), build)
        return matrix


def by_parts(multiply: Callable[[Tensor], Tensor], columns: Tensor) -> Tensor:
    """Multiply columns by a real matrix, which may take real ones only."""
    if not columns.is_complex():
        return multiply(columns)
    parts = torch.view_as_real(columns.resolve_conj())
    if columns.dim() == 1:
        return torch.complex(*multiply(parts).unbind(1))
    size = columns.shape[1]
    products = multiply(parts.movedim(-1, 1).reshape(-1, 2 * size))
    return torch.complex(products[:, :size], products[:, size:])
