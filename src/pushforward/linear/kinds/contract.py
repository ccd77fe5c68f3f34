"""Contract: any einsum with constants. mm, bmm, linear, dot, outer and their kin."""

from __future__ import annotations

import dataclasses
import string

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.block import Block
from pushforward.linear.map import AbstractLinearMap, Pattern, positions


@dataclasses.dataclass(slots=True, repr=False)
class Contract(AbstractLinearMap):
    """Multiply by a constant and sum, as ``einsum`` does.

    Math: ẏ = einsum("in,const->out", ẋ, C), x̄ = einsum("out,const->in", ȳ, conj C). Jacobian: a contracted tied
    axis becomes a free one without arithmetic, an axis that input and output share stays tied.

    Letters: distinct lower-case letters within each term; every letter of the input is in the output or in the
    constant, and every letter of the output is in the input or in the constant.
    """

    in_letters: str
    const_letters: str
    out_letters: str
    const: Tensor

    def push(self, block: Block) -> Block:
        """Contract all seeds at once."""
        return _contract(
            block, self.in_letters, self.const_letters, self.out_letters, self.const, self.out_shape
        )

    def pull(self, block: Block) -> Block:
        """Contract with the conjugate, input and output exchanged."""
        const = torch.conj_physical(self.const) if self.const.is_complex() else self.const
        return _contract(
            block, self.out_letters, self.const_letters, self.in_letters, const, self.in_shape
        )

    def pattern(self) -> Pattern:
        """Every choice of all the letters gives one entry; repeated entries are dropped."""
        sizes = dict(zip(self.in_letters, self.in_shape, strict=True))
        sizes.update(zip(self.out_letters, self.out_shape, strict=True))
        letters = list(sizes)

        def spread(shape: Shape, own: str) -> Tensor:
            place = positions(shape).permute(
                sorted(range(len(own)), key=lambda i: letters.index(own[i]))
            )
            full = [sizes[c] if c in own else 1 for c in letters]
            return place.reshape(full).expand([sizes[c] for c in letters]).flatten()

        return spread(self.out_shape, self.out_letters), spread(self.in_shape, self.in_letters)


def _contract(
    block: Block, near: str, const_letters: str, result: str, const: Tensor, out_shape: Shape
) -> Block:
    block = _one_holder(block, near, result)
    num_free = block.num_free
    values = block.values
    sizes = values.shape[num_free:]
    # Name the seed axes: a free one by a capital, one whose tied axis is contracted away by that axis's letter.
    free_letters: list[str] = []  # of the values, in their order
    seed_letters: list[str] = []  # of the result, in the order of the seeds
    tied: list[int | None] = []
    capitals = iter(string.ascii_uppercase)
    for axis in block.tied:
        if axis is None:
            letter = next(capitals)
            free_letters.append(letter)
            seed_letters.append(letter)
            tied.append(None)
        elif near[axis] in result:
            tied.append(result.index(near[axis]))
        else:
            seed_letters.append(near[axis])
            tied.append(None)
    constant = [n == 1 and full != 1 for n, full in zip(sizes, block.shape, strict=True)]
    near_letters = "".join(c for c, same in zip(near, constant, strict=True) if not same)
    if len(near_letters) != len(near):
        values = values.reshape(
            values.shape[:num_free]
            + tuple(n for n, same in zip(sizes, constant, strict=True) if not same)
        )
    present = [c for c in result if c in near_letters or c in const_letters]
    if values.dtype != const.dtype:
        dtype = torch.promote_types(values.dtype, const.dtype)
        if dtype.is_complex or values.dtype.is_complex:
            values, const = values.to(dtype), const.to(dtype)
        else:
            const = const.to(values.dtype)
    terms = "".join(free_letters) + near_letters
    product = _einsum(terms, const_letters, "".join(seed_letters) + "".join(present), values, const)
    if len(present) != len(result):
        shape = list(product.shape[: len(seed_letters)])
        given = iter(product.shape[len(seed_letters) :])
        shape += [next(given) if c in present else 1 for c in result]
        product = product.reshape(shape)
    return Block(product, out_shape, block.seed_shape, tuple(tied), block.source)


def _one_holder(block: Block, near: str, result: str) -> Block:
    """Untie all but one of the seed axes that a contracted axis holds."""
    for axis, letter in enumerate(near):
        if letter not in result:
            holders = [k for k, tie in enumerate(block.tied) if tie == axis]
            if len(holders) > 1:
                block = block.untie_seeds(holders[1:])
    return block


def _einsum(left: str, right: str, result: str, values: Tensor, const: Tensor) -> Tensor:
    """Return the einsum; what is one product goes straight to it, 8 to 18 of 22 microseconds saved."""
    if len(left) == 2 and len(right) == 2 and len(result) == 2:
        if left[0] == result[0] and right[0] == result[1] and left[1] == right[1]:
            return torch.mm(values, const.t())
        if left[0] == result[0] and right[1] == result[1] and left[1] == right[0]:
            return torch.mm(values, const)
    if not left and len(right) == len(result):  # the first product of an identity block: copies
        return values * const.permute([right.index(c) for c in result])
    return torch.einsum(f"{left},{right}->{result}", values, const)
