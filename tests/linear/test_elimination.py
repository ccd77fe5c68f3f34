"""Vertex elimination: any order multiplies a program out to the same Jacobian; blocks read as maps."""

from __future__ import annotations

from random import Random

import torch
from hypothesis import given
from hypothesis import strategies as st
from linear import random_maps
from linear.test_program import F64, _evaluate, _program, often

from pushforward.linear.block import Block, identity_like
from pushforward.linear.block_sum import to_dense
from pushforward.linear.elimination import Graph, as_map, multiply, run_order
from pushforward.linear.kinds.permute import Permute
from pushforward.linear.kinds.reshape import Reshape

RNG = st.randoms(use_true_random=False)


def _sample(rng: Random) -> Block:
    return random_maps.block(rng, random_maps.shape(rng))


@given(rng=RNG)
@often
def test_flipped_is_the_transpose(rng: Random) -> None:
    block = _sample(rng)
    ndim, num_seeds = len(block.shape), len(block.seed_shape)
    dense = random_maps.written_out(block)
    expected = dense.permute((*range(ndim, ndim + num_seeds), *range(ndim)))
    flipped = block.flipped()
    assert flipped.shape == block.seed_shape
    assert flipped.seed_shape == block.shape
    torch.testing.assert_close(random_maps.written_out(flipped), expected)


@given(rng=RNG)
@often
def test_rows_are_the_transpose_of_the_dense_form(rng: Random) -> None:
    block = _sample(rng)
    ndim, num_seeds = len(block.shape), len(block.seed_shape)
    expected = block.to_dense().permute((*range(ndim, ndim + num_seeds), *range(ndim)))
    rows = block.to_rows()
    assert rows.is_contiguous()
    torch.testing.assert_close(rows, expected)


@given(rng=RNG)
@often
def test_a_block_read_as_a_map_has_the_blocks_jacobian(rng: Random) -> None:
    block = _sample(rng)
    linear_map = as_map(block)
    assert linear_map.in_shape == block.seed_shape
    assert linear_map.out_shape == block.shape
    dense = random_maps.written_out(block)
    torch.testing.assert_close(random_maps.matrix(linear_map, F64), dense)
    inner = random_maps.block(rng, block.seed_shape)
    expected = torch.tensordot(dense, random_maps.written_out(inner), len(block.seed_shape))
    torch.testing.assert_close(random_maps.written_out(linear_map.push(inner)), expected)


@given(rng=RNG)
@often
def test_every_order_of_elimination_gives_the_jacobian(rng: Random) -> None:
    program, shapes = _program(rng)
    output_shapes = [shapes[v] if v is not None else (2,) for v in program.outputs]
    like = torch.empty(0, dtype=F64)
    order = Graph(program, output_shapes).vertices
    rng.shuffle(order)
    graph = run_order(program, order, output_shapes, like)
    tangents = [random_maps.values(rng, shapes[i]) for i in range(2)]
    for place, expected in enumerate(_evaluate(program, tangents)):
        total = torch.zeros(output_shapes[place], dtype=F64)
        for source, tangent in enumerate(tangents):
            blocks = graph.jacobian(place, source, like)
            jacobian = to_dense(blocks, output_shapes[place], shapes[source], like)
            total = total + torch.tensordot(jacobian, tangent, tangent.ndim)
        if expected is not None:
            torch.testing.assert_close(total, expected)
        else:
            assert not total.any()


def test_a_product_ends_at_the_head_of_its_edge() -> None:
    """Also where pulling groups the seeds otherwise, as a reshape of an identity does."""
    like = torch.zeros((), dtype=F64)
    split = Reshape((2, 4), (2, 2, 2))
    after = identity_like((2, 2, 2), like)
    for first, second in ((split, after), (split, Permute((2, 2, 2), (2, 2, 2), (2, 0, 1)))):
        block = multiply(first, second, like)
        assert block.shape == (2, 2, 2)
        matrix = random_maps.written_out(block).reshape(8, 8)
        assert torch.equal(matrix.sum(0), torch.ones(8, dtype=F64))
