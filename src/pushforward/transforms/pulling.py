"""Pulling from the outputs to inputs, some of which have not the batch of a ``vmap``: each of its members by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.block import Block, seeds
from pushforward.linear.block_sum import Blocks, to_rows
from pushforward.transforms.assemble import directions, start
from pushforward.transforms.record import Tape


class _MixedError(Exception):
    """Members of the batch met, so that each is carried along with zeros for all others."""


def pulled_ends(tape: Tape) -> list[Blocks]:
    """Pull the outputs' own blocks to all inputs, and return what arrives there."""
    counts = [tape.num_batch_of(place) for place in range(len(tape.inputs))]
    by_count = {
        n: _pulled(tape) if n < tape.num_batch else tape.pulled(_ends(tape)) for n in {*counts}
    }
    return [by_count[n][place] for place, n in enumerate(counts)]


def _ends(tape: Tape) -> list[Blocks]:
    return [(start(y, i, tape.num_batch),) for i, y in enumerate(tape.outputs)]


def _pulled(tape: Tape) -> list[Blocks]:
    """Pull with the batch as an axis of seeds, which stays tied where members do not meet."""
    size, largest = tape.outputs[0].shape[0], max(x.numel() for x in tape.inputs)

    def look(blocks: Sequence[Block]) -> None:
        for block in blocks:
            num_seeds = math.prod(block.seed_shape)
            apart = num_seeds // max(size, 1) * math.prod(block.shape)
            if block.values.numel() > max(apart, num_seeds * largest):
                raise _MixedError

    try:
        return tape.pulled([(start(y, i),) for i, y in enumerate(tape.outputs)], look)
    except _MixedError:
        tape.note_mixing()
        return _one_by_one(tape)


def _one_by_one(tape: Tape) -> list[Blocks]:
    """Pull one member of the batch after the other."""
    size = len(tape.outputs[0])
    rows: list[list[list[Tensor]]] = [[[] for _ in tape.outputs] for _ in tape.inputs]
    for member in range(size):
        pulled = tape.pulled([(_only(block, member),) for (block,) in _ends(tape)])
        for x, blocks, found in zip(tape.inputs, pulled, rows, strict=True):
            for i, y in enumerate(tape.outputs):
                of_output = tuple(b for b in blocks if b.source == i)
                found[i].append(to_rows(of_output, tuple(x.shape), directions(y, 1), like=x))
    return [
        tuple(
            seeds(torch.stack(each), (size, *directions(y, 1)), i)
            for i, (y, each) in enumerate(zip(tape.outputs, found, strict=True))
        )
        for found in rows
    ]


def _only(block: Block, member: int) -> Block:
    """Return the block with zeros for all other members of the batch, its first near axis."""
    size = block.shape[0]
    mask = torch.zeros(size, dtype=block.values.dtype, device=block.values.device)
    mask[member] = 1
    return block.scale(mask.view(size, *(1,) * (len(block.shape) - 1)))
