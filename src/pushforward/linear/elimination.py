"""Multiplying a linear program out in any order: vertices of its graph are eliminated one at a time.

References:
    Griewank and Walther, Evaluating Derivatives (2008), chapters 9 and 10 (cross-country elimination).
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence

from torch import Tensor

from pushforward.linear.axes import Shape, axis_of
from pushforward.linear.block import Block, identity_like
from pushforward.linear.block_sum import Blocks, add_blocks
from pushforward.linear.kinds.contract import Contract
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scale import Scale, number
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.program import LinearProgram

# An edge from tail to head carries maps as they were recorded, and blocks (near end: head, far end: tail).
Item = AbstractLinearMap | Block
Multiply = Callable[[Item, Item], Item]
Apply = Callable[[AbstractLinearMap, Block, bool], Block]


class Graph:
    """The graph of a linear program: a vertex for each variable, an edge for each term.

    Outputs have vertices of their own (-1, -2, ...), which nothing follows, so that every variable that is no input can
    be eliminated.
    """

    def __init__(self, program: LinearProgram, output_shapes: Sequence[Shape]) -> None:
        """Build the graph."""
        self.into: dict[int, dict[int, list[Item]]] = {}
        self.out_of: dict[int, set[int]] = {}
        self.inputs = program.inputs
        for equation in program.equations:
            for term in equation.terms:
                self._add(term.variable, equation.variable, [term.linear_map])
        for place, (variable, shape) in enumerate(zip(program.outputs, output_shapes, strict=True)):
            if variable is not None:
                self._add(variable, -1 - place, [Reshape(shape, shape)])

    def copy(self) -> Graph:
        """Return a graph that can be eliminated without changing this one."""
        other = Graph.__new__(Graph)
        other.into = {
            head: {tail: list(items) for tail, items in tails.items()}
            for head, tails in self.into.items()
        }
        other.out_of = {tail: set(heads) for tail, heads in self.out_of.items()}
        other.inputs = self.inputs
        return other

    @property
    def vertices(self) -> list[int]:
        """Return what can be eliminated, in order of definition."""
        return sorted(v for v in self.into if v >= 0)

    def degree(self, vertex: int) -> int:
        """Return how many pairs of edges meet at ``vertex`` (Markowitz)."""
        return len(self.into.get(vertex, ())) * len(self.out_of.get(vertex, ()))

    def pairs(self, vertex: int) -> list[tuple[int, int, Item, Item]]:
        """Return (tail, head, edge in, edge out) for everything that meets at ``vertex``."""
        return [
            (tail, head, first, second)
            for head in sorted(self.out_of.get(vertex, ()))
            for second in self.into[head][vertex]
            for tail, firsts in self.into.get(vertex, {}).items()
            for first in firsts
        ]

    def eliminate(self, vertex: int, multiply: Multiply) -> None:
        """Replace a vertex by the products of its edges."""
        products = [
            (tail, head, multiply(first, second))
            for tail, head, first, second in self.pairs(vertex)
        ]
        for head in self.out_of.pop(vertex, set()):
            del self.into[head][vertex]
        for tail in self.into.pop(vertex, {}):
            self.out_of[tail].discard(vertex)
        for tail, head, product in products:
            self._add(tail, head, [product])

    def _add(self, tail: int, head: int, items: list[Item]) -> None:
        self.out_of.setdefault(tail, set()).add(head)
        edge = self.into.setdefault(head, {}).setdefault(tail, [])
        maps = [item for item in (*edge, *items) if not isinstance(item, Block)]
        blocks = [item for item in (*edge, *items) if isinstance(item, Block)]
        edge[:] = [*maps, *(add_blocks(blocks) if len(blocks) > 1 else blocks)]

    def jacobian(self, place: int, source: int, like: Tensor) -> Blocks:
        """Return the blocks of an output with respect to an input, once nothing lies between them."""
        items = self.into.get(-1 - place, {}).get(self.inputs[source], [])
        return add_blocks(item if isinstance(item, Block) else local(item, like) for item in items)


def run_order(
    program: LinearProgram, order: Sequence[int], output_shapes: Sequence[Shape], like: Tensor
) -> Graph:
    """Eliminate the variables of ``program`` in ``order``, which must name all that are no inputs."""
    program.check_residuals()
    graph = Graph(program, output_shapes)
    for vertex in order:
        graph.eliminate(vertex, lambda first, second: multiply(first, second, like))
    return graph


def _apply(linear_map: AbstractLinearMap, block: Block, forward: bool) -> Block:
    return linear_map.push(block) if forward else linear_map.pull(block)


def multiply(first: Item, second: Item, like: Tensor, apply: Apply = _apply) -> Item:
    """Return the block of ``second`` after ``first``; ``apply`` is what pushes (or pulls) a block through a map.

    Two numbers are multiplied at once, and stay a map that scales by a number.
    """
    if isinstance(first, Scale) and isinstance(second, Scale):
        inner, outer = number(first), number(second)
        if inner is not None and outer is not None:
            return Scale(first.in_shape, second.out_shape, inner * outer)
    return _product(first, second, like, apply)


def _product(first: Item, second: Item, like: Tensor, apply: Apply) -> Block:
    if isinstance(first, Block):
        if isinstance(second, Block):
            # Pulled, not pushed: the product is laid out as the rows of a Jacobian.
            linear_map = as_map(first.reshape(second.seed_shape))
            return _flipped(apply(linear_map, second.flipped(), False), second.shape)
        return apply(second, first, True)
    if isinstance(second, Block):
        if second.seed_shape != first.out_shape:
            return _product(local(first, like, apply), second, like, apply)
        return _flipped(apply(first, second.flipped(), False), second.shape)
    if math.prod(first.in_shape) <= math.prod(second.out_shape):
        return apply(second, local(first, like, apply), True)
    cotangent = apply(second, identity_like(second.out_shape, like), False)
    return _flipped(apply(first, cotangent, False), second.out_shape)


def _flipped(cotangent: Block, shape: Shape) -> Block:
    """Return the transpose, whose near end has ``shape``: a pull may have grouped the seeds otherwise."""
    block = cotangent.flipped()
    return block if block.shape == shape else block.reshape(shape)


def local(linear_map: AbstractLinearMap, like: Tensor, apply: Apply = _apply) -> Block:
    """Return the Jacobian of one map as a block."""
    return apply(linear_map, identity_like(linear_map.in_shape, like), True)


def as_map(block: Block) -> AbstractLinearMap:
    """Return the map whose Jacobian is ``block``: a contraction in which tied axes share a letter."""
    block = block.untie_seeds(block.in_part)
    ties = [axis for axis in block.tied if axis is not None]
    if len(set(ties)) != len(ties):
        repeated = [k for k, axis in enumerate(block.tied) if axis in block.tied[:k]]
        block = block.untie_seeds([k for k in repeated if block.tied[k] is not None])
    near = string.ascii_lowercase[: len(block.shape)]
    capitals = iter(string.ascii_uppercase)
    seeds, free = "", ""
    for tie in block.tied:
        if tie is not None:
            seeds += near[axis_of(tie)]
            continue
        letter = next(capitals)
        seeds += letter
        free += letter
    values, num_free = block.values, block.num_free
    const_letters, sizes = free, []
    for axis, (letter, size) in enumerate(zip(near, block.shape, strict=True)):
        is_constant = values.shape[num_free + axis] == 1 and size != 1
        if is_constant and axis in block.tied:
            continue  # a delta and nothing else: the letter passes from the input to the output
        const_letters += letter
        sizes.append(size)
    const = values.reshape(
        values.shape[:num_free]
        + tuple(n for axis, n in enumerate(values.shape[num_free:]) if near[axis] in const_letters)
    )
    const = const.expand(const.shape[:num_free] + tuple(sizes))
    return _lowered(block, seeds, const_letters, near, const)


def _lowered(block: Block, seeds: str, const_letters: str, near: str, const: Tensor) -> Contract:
    """Name the letters anew: `Contract` has lower-case ones, its capitals are for seeds."""
    letters = sorted(set(seeds + near))
    table = str.maketrans({c: string.ascii_lowercase[i] for i, c in enumerate(letters)})
    return Contract(
        block.seed_shape,
        block.shape,
        seeds.translate(table),
        const_letters.translate(table),
        near.translate(table),
        const,
    )
