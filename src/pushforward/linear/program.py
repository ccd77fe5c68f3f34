"""LinearProgram: the recorded chain of maps, to be pushed or pulled any number of times."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import ResidualError
from pushforward.linear.block import Block
from pushforward.linear.block_sum import Blocks, add_blocks
from pushforward.linear.kinds.concat import adjoint_concat, join_groups
from pushforward.linear.kinds.gather import Select, Slice
from pushforward.linear.map import AbstractLinearMap


@dataclasses.dataclass(slots=True)
class Term:
    """One summand of an equation: ``linear_map`` applied to the variable ``variable``."""

    variable: Any  # a number; while a graph is read, an edge of it
    linear_map: AbstractLinearMap
    in_dtype: torch.dtype


@dataclasses.dataclass(slots=True)
class Equation:
    """A variable's tangent as a sum of maps of earlier ones. Variables are numbered in order of definition."""

    variable: Any
    terms: list[Term]
    dtype: torch.dtype
    origin: str = ""  # what the maps were made for, and by whom
    place: int = -1  # of the node that they were made of, in the graph that was read


@dataclasses.dataclass(slots=True)
class LinearProgram:
    """Equations in order of definition; single assignment, so each can be pushed or pulled at once."""

    inputs: list[int]
    equations: list[Equation]
    outputs: list[int | None]  # None: an output that does not depend on any input
    residuals: list[tuple[Tensor, int]] = dataclasses.field(default_factory=list)  # with versions

    def check_residuals(self) -> None:
        """Refuse to go on when a tensor that maps may hold was written to since the recording."""
        check_versions(self.residuals)

    def push(self, tangents: Sequence[Blocks]) -> list[Blocks]:
        """Return the blocks of the outputs, from those of the inputs."""
        self.check_residuals()
        last_use = self.last_uses()
        alive: dict[int, Blocks] = dict(zip(self.inputs, tangents, strict=True))
        for position, equation in enumerate(self.equations):
            parts = [
                (alive.get(term.variable, ()), term.linear_map, term.in_dtype)
                for term in equation.terms
            ]
            terms = push_joined(parts, equation.dtype)
            parts.clear()
            for term in equation.terms:  # before sums take memory
                if last_use.get(term.variable) == position:
                    alive.pop(term.variable, None)
            alive[equation.variable] = add_blocks(terms) if len(terms) > 1 else tuple(terms)
        return [() if v is None else alive.get(v, ()) for v in self.outputs]

    def pull(self, cotangents: Sequence[Blocks], look: Look | None = None) -> list[Blocks]:
        """Return the cotangent blocks of the inputs, from those of the outputs; the rest is as in `pulled`."""
        self.check_residuals()
        return pulled(reversed(self.equations), self.inputs, self.outputs, cotangents, look)

    def last_uses(self) -> dict[int, int]:
        """Return the position of the equation that needs a variable last; outputs are always needed."""
        uses = {
            term.variable: position
            for position, equation in enumerate(self.equations)
            for term in equation.terms
        }
        for variable in self.outputs:
            if variable is not None:
                uses.pop(variable, None)
        return uses

    def __str__(self) -> str:
        """Print the equations."""
        lines = [f"inputs {' '.join(f'v{v}' for v in self.inputs)}"]
        for equation in self.equations:
            terms = " + ".join(f"{t.linear_map!r} v{t.variable}" for t in equation.terms)
            lines.append(f"v{equation.variable} = {terms or '0'}")
        shown = " ".join("0" if v is None else f"v{v}" for v in self.outputs)
        return "\n".join([*lines, f"outputs {shown}"])


Look = Callable[[Sequence[Block]], None]


def pulled(
    backwards: Iterable[Equation],
    inputs: Iterable[Hashable],
    outputs: Iterable[Hashable | None],
    cotangents: Sequence[Blocks],
    look: Look | None = None,
) -> list[Blocks]:
    """Return the cotangent blocks of ``inputs``, from those of ``outputs``; the last equation comes first.

    Equations may be made as they are asked for, so that their maps need not live all at once. What is pulled through
    each is shown to ``look``.
    """
    waiting: dict[Hashable, list[Block]] = {}
    pieces: dict[Hashable, list[tuple[AbstractLinearMap, Block]]] = {}  # of what was cut up
    dtypes: dict[Hashable, torch.dtype] = {}
    for end, given in zip(outputs, cotangents, strict=True):
        if end is not None:
            waiting.setdefault(end, []).extend(given)

    def arrived(variable: Hashable) -> Blocks:
        found = waiting.pop(variable, None) or []
        if variable in pieces:
            joined = join_groups(pieces.pop(variable))
            found = found + [_after(b, dtypes[variable]) for b in joined]
        return add_blocks(found) if len(found) > 1 else tuple(found)

    for equation in backwards:
        found = waiting.pop(equation.variable, None)
        if found is not None and len(found) == 1 and not pieces:  # nearly always
            blocks: Sequence[Block] = found
        else:
            waiting[equation.variable] = found or []
            blocks = arrived(equation.variable)
        if not blocks:
            continue
        if look is not None:
            look(blocks)
        for term in equation.terms:
            variable, linear_map, dtype = term.variable, term.linear_map, term.in_dtype
            if type(linear_map) in (Slice, Select):
                adjoint = adjoint_concat(linear_map)
                if adjoint is not None:
                    dtypes[variable] = dtype
                    pieces.setdefault(variable, []).extend(
                        (adjoint, _before(b, dtype)) for b in blocks
                    )
                    continue
            found = pull_blocks(blocks, linear_map, dtype)
            others = waiting.get(variable)
            waiting[variable] = found if others is None else others + found
        blocks, found = (), None  # before the next sum takes memory
    return [arrived(variable) for variable in inputs]


def check_versions(residuals: Iterable[tuple[Tensor, int]]) -> None:
    """Refuse tensors that were written to since they had the version beside them."""
    for tensor, version in residuals:
        if tensor._version != version:
            raise ResidualError(
                f"linear program: a tensor of shape {tuple(tensor.shape)} that the derivative needs was written to "
                f"in place: got version {tensor._version}, expected {version}. Use .clone() before the write, or "
                "record again."
            )


def push_blocks(blocks: Blocks, linear_map: AbstractLinearMap, dtype: torch.dtype) -> list[Block]:
    """Push each block; values come out in ``dtype``, that of the output (its real part where that is real)."""
    if len(blocks) == 1 and blocks[0].values.dtype is dtype:  # nearly always
        pushed = linear_map.push(blocks[0])
        return [pushed if pushed.values.dtype is dtype else _after(pushed, dtype)]
    return [_after(linear_map.push(_before(b, dtype)), dtype) for b in blocks]


def push_joined(
    parts: Sequence[tuple[Blocks, AbstractLinearMap, torch.dtype]], dtype: torch.dtype
) -> list[Block]:
    """Push the blocks of several inputs; pieces of one concatenation are written at once."""
    if len(parts) == 1:
        blocks, linear_map, _ = parts[0]
        return push_blocks(blocks, linear_map, dtype)
    pairs = [(linear_map, _before(b, dtype)) for blocks, linear_map, _ in parts for b in blocks]
    return [_after(block, dtype) for block in join_groups(pairs)]


def pull_blocks(
    blocks: Sequence[Block], linear_map: AbstractLinearMap, dtype: torch.dtype
) -> list[Block]:
    """Pull each block; values come out in ``dtype``, that of the input."""
    if len(blocks) == 1 and blocks[0].values.dtype is dtype:  # nearly always
        pulled = linear_map.pull(blocks[0])
        return [pulled if pulled.values.dtype is dtype else _after(pulled, dtype)]
    return [_after(linear_map.pull(_before(b, dtype)), dtype) for b in blocks]


def _before(block: Block, dtype: torch.dtype) -> Block:
    return _with(block, before_map(block.values, dtype))


def _after(block: Block, dtype: torch.dtype) -> Block:
    return _with(block, in_dtype(block.values, dtype))


def _with(block: Block, values: Tensor) -> Block:
    return block if values is block.values else block.with_values(values)


def before_map(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to ``dtype`` before a map, unless that would drop an imaginary part."""
    if values.dtype is dtype or (values.dtype.is_complex and not dtype.is_complex):
        return values
    return values.to(dtype)


def in_dtype(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to ``dtype``; of a complex tensor a real one takes the real part."""
    if values.dtype is dtype:
        return values
    if values.dtype.is_complex and not dtype.is_complex:
        values = values.real
    return values.to(dtype)
