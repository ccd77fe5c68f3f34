"""Pushing through pieces of a tape: few tangents as tensors, many as blocks, which keep their structure."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, Tied
from pushforward.linear.block import Block
from pushforward.linear.block_sum import Blocks, tensors_in
from pushforward.planning.noting import Rows
from pushforward.planning.plans import PLANS
from pushforward.tape.pieces import Axes
from pushforward.tape.reader import Reading
from pushforward.transforms.record import Tape

STRUCTURES = "structures"  # what is stored of the blocks at the ends of pieces

# Of each block: the shape of its values, its own, that of its seeds, their ties, and its source.
Structure = tuple[tuple[tuple[Shape, Shape, Shape, Tied, int], ...], ...]


def push_tangents(
    name: str, reading: Reading, variables: Sequence[Tensor], tangents: list[Tensor], axes: Axes
) -> list[Tensor]:
    """Push tangents ``(*axes, *shape)`` through a piece of a tape."""
    with torch.no_grad():
        return Tape.around(name, reading, tangents, variables).pushed(tangents, axes, is_last=True)


def push_blocks(
    name: str, reading: Reading, variables: Sequence[Tensor], blocks: list[Blocks], axes: Axes
) -> list[Blocks]:
    """Push blocks through a piece of a tape."""
    tape = Tape.around(name, reading, tensors_in(blocks), variables)
    with torch.no_grad():
        return pushed_through(tape, blocks, is_last=True)


def pushed_through(
    tape: Tape, blocks: list[Blocks], *, is_last: bool, is_one_of_many: bool = False
) -> list[Blocks]:
    """Push blocks, of which the list is emptied, through a tape; the rest is as in `Tape.swept`."""
    given, structure = tensors_in(blocks), structure_of(blocks)
    blocks.clear()  # the sweep lets go of them
    kind = ("blocks", structure)
    key: Hashable = (kind, tape.signature)

    def compute() -> Rows:
        pushed = tape.program.push(with_structure([given], structure))
        PLANS.keep(STRUCTURES, key, structure_of(pushed))
        return [[block.values for block in each] for each in pushed]

    rows = tape.swept(
        kind,
        compute,
        given=given,
        is_one_of_many=is_one_of_many,
        is_last=is_last,
        lets_go=True,
        may_let_go=lambda: PLANS.find(STRUCTURES, key) is not None,
    )
    found: Structure | None = PLANS.find(STRUCTURES, key)
    if found is None:  # forgotten since
        return tape.program.push(with_structure([given], structure))
    return with_structure(rows, found)


def with_structure(rows: Sequence[Sequence[Tensor]], structure: Structure) -> list[Blocks]:
    """Return blocks with these values, which may stand in rows of any length."""
    values = itertools.chain.from_iterable(rows)
    return [tuple([Block(next(values), *rest[1:]) for rest in each]) for each in structure]


def structure_of(blocks: Sequence[Blocks]) -> Structure:
    """Return all of blocks but their values."""
    return tuple(
        [
            tuple([(b.values.shape, b.shape, b.seed_shape, b.tied, b.source) for b in each])
            for each in blocks
        ]
    )
