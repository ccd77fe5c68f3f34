"""Every kind of linear map: push, pull, ties, batches of seeds, patterns."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linear import random_maps
from torch import Tensor

from pushforward.linear.block import Block, complex_identity, identity, seeds
from pushforward.linear.kinds.concat import Concat, join, join_groups
from pushforward.linear.kinds.gather import Slice
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap

RNG = st.randoms(use_true_random=False)
every_kind = pytest.mark.parametrize("maker", random_maps.MAKERS, ids=lambda maker: maker.__name__)
either_dtype = pytest.mark.parametrize("dtype", random_maps.DTYPES, ids=["real", "complex"])
often = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the real inner product."""
    return (a.conj() * b).real.sum()


@every_kind
@either_dtype
@given(rng=RNG)
@often
def test_pull_is_the_adjoint_of_push(
    maker: random_maps.Maker, dtype: torch.dtype, rng: Random
) -> None:
    linear_map = random_maps.a_map(rng, maker, dtype)
    x = random_maps.values(rng, linear_map.in_shape, dtype)
    y = random_maps.values(rng, linear_map.out_shape, dtype)
    pushed = linear_map.push(Block(x, linear_map.in_shape, (), ()))
    pulled = linear_map.pull(Block(y, linear_map.out_shape, (), ()))
    assert pushed.shape == linear_map.out_shape
    assert pulled.shape == linear_map.in_shape
    torch.testing.assert_close(
        inner(y, pushed.expanded_values()), inner(pulled.expanded_values(), x)
    )


@every_kind
@given(rng=RNG)
@often
def test_push_of_the_tied_identity_is_the_matrix(maker: random_maps.Maker, rng: Random) -> None:
    linear_map = random_maps.a_map(rng, maker, torch.float64)
    expected = random_maps.matrix(linear_map, torch.float64)
    pushed = linear_map.push(identity(torch.zeros(linear_map.in_shape, dtype=torch.float64), 3))
    assert pushed.source == 3
    torch.testing.assert_close(pushed.to_dense().reshape(expected.shape), expected)
    torch.testing.assert_close(random_maps.written_out(pushed).reshape(expected.shape), expected)


@every_kind
@given(rng=RNG)
@often
def test_pull_of_the_tied_identity_is_the_transposed_matrix(
    maker: random_maps.Maker, rng: Random
) -> None:
    linear_map = random_maps.a_map(rng, maker, torch.float64)
    matrix = random_maps.matrix(linear_map, torch.float64)
    m, n = math.prod(linear_map.out_shape), math.prod(linear_map.in_shape)
    pulled = linear_map.pull(identity(torch.zeros(linear_map.out_shape, dtype=torch.float64), 0))
    torch.testing.assert_close(pulled.to_dense().reshape(n, m), matrix.reshape(m, n).T)


@every_kind
@either_dtype
@given(rng=RNG)
@often
def test_any_block_is_pushed_as_its_dense_form(
    maker: random_maps.Maker, dtype: torch.dtype, rng: Random
) -> None:
    linear_map = random_maps.a_map(rng, maker, dtype)
    block = random_maps.block(rng, linear_map.in_shape, dtype)
    _assert_same_as_dense(linear_map.push(block), block, linear_map, pull=False)


@every_kind
@either_dtype
@given(rng=RNG)
@often
def test_any_block_is_pulled_as_its_dense_form(
    maker: random_maps.Maker, dtype: torch.dtype, rng: Random
) -> None:
    linear_map = random_maps.a_map(rng, maker, dtype)
    block = random_maps.block(rng, linear_map.out_shape, dtype)
    _assert_same_as_dense(linear_map.pull(block), block, linear_map, pull=True)


def _assert_same_as_dense(
    result: Block, block: Block, linear_map: AbstractLinearMap, pull: bool
) -> None:
    """Compare with the same map on each column of the block written out, one column at a time."""
    dense = _columns(block)
    apply = linear_map.pull if pull else linear_map.push
    columns = [apply(Block(c, block.shape, (), ())).expanded_values() for c in dense.unbind(-1)]
    assert math.prod(result.seed_shape) == math.prod(block.seed_shape)
    written = random_maps.written_out(result).reshape((*result.shape, dense.shape[-1]))
    if columns:
        torch.testing.assert_close(written, torch.stack(columns, -1))
    at_once = apply(seeds(dense.movedim(-1, 0), (dense.shape[-1],), 0))
    torch.testing.assert_close(at_once.to_dense().reshape(written.shape), written)
    assert result.tied.count(None) + len(result.shape) == result.values.ndim


@every_kind
@given(rng=RNG)
@often
def test_pattern_covers_the_matrix_without_repetition(
    maker: random_maps.Maker, rng: Random
) -> None:
    linear_map = random_maps.a_map(rng, maker, torch.float64)
    counts = _counts(linear_map)
    matrix = random_maps.matrix(linear_map, torch.float64).reshape(counts.shape)
    assert bool((counts <= 1).all())
    assert bool((counts[matrix != 0] == 1).all())


@pytest.mark.parametrize(
    "maker",
    [m for m in random_maps.STRUCTURAL if m is not random_maps.mask],
    ids=lambda m: m.__name__,
)
@given(rng=RNG)
@often
def test_pattern_of_a_structural_map_is_exact(maker: random_maps.Maker, rng: Random) -> None:
    linear_map = random_maps.a_map(rng, maker, torch.float64)
    counts = _counts(linear_map)
    matrix = random_maps.matrix(linear_map, torch.float64).reshape(counts.shape)
    assert torch.equal(counts != 0, matrix != 0)


def _counts(linear_map: AbstractLinearMap) -> Tensor:
    m, n = math.prod(linear_map.out_shape), math.prod(linear_map.in_shape)
    rows, cols = linear_map.pattern()
    counts = torch.zeros(m * n)
    return counts.index_add(0, rows * n + cols, torch.ones(len(rows))).reshape(m, n)


@every_kind
@given(rng=RNG)
@often
def test_push_of_no_seeds_gives_no_seeds(maker: random_maps.Maker, rng: Random) -> None:
    linear_map = random_maps.a_map(rng, maker, torch.float64)
    block = seeds(torch.zeros((0, *linear_map.in_shape), dtype=torch.float64), (0,), 0)
    assert linear_map.push(block).to_dense().shape == (*linear_map.out_shape, 0)


@every_kind
@given(rng=RNG)
@often
def test_complex_identity_gives_both_real_directions(maker: random_maps.Maker, rng: Random) -> None:
    dtype = torch.complex128
    linear_map = random_maps.a_map(rng, maker, dtype)
    block = complex_identity(torch.zeros(linear_map.in_shape, dtype=dtype), 0)
    _assert_same_as_dense(linear_map.push(block), block, linear_map, pull=False)


@every_kind
@given(rng=RNG)
@often
def test_push_can_be_mapped_over_the_constants_by_vmap_of_seeds(
    maker: random_maps.Maker, rng: Random
) -> None:
    linear_map = random_maps.a_map(rng, maker, torch.float64)
    batch = random_maps.values(rng, (2, *linear_map.in_shape))

    def push(tangent: Tensor) -> Tensor:
        return linear_map.push(Block(tangent, linear_map.in_shape, (), ())).expanded_values()

    mapped = torch.func.vmap(push)(batch)
    torch.testing.assert_close(mapped, torch.stack([push(tangent) for tangent in batch]))


# ---- Ties: what makes it fast ----


def test_batch_axes_stay_tied() -> None:
    x = torch.zeros(4, 3, dtype=torch.float64)
    block = identity(x, 0)
    kept = {
        "concat": Concat((4, 3), (4, 5), 1, 1),
        "slice": Slice((4, 3), (4, 2), 1, 0),
        "scan": random_maps.Scan((4, 3), (4, 3), 1),
        "take along": random_maps.TakeAlong((4, 3), (4, 1), 1, torch.zeros(4, 1, dtype=torch.long)),
        "gather": random_maps.Gather((4, 3), (4, 2), torch.tensor([0, 2]), (1,), (1,)),
    }
    for name, linear_map in kept.items():
        pushed = linear_map.push(block)
        assert pushed.tied[0] == 0, name
        assert pushed.num_seeds == 3, name


# ---- Joining pieces ----


@given(rng=RNG)
@often
def test_joined_pieces_are_the_sum_of_the_pieces(rng: Random) -> None:
    parts = _pieces(rng)
    joined = join_groups(parts)
    expected = sum(_columns(linear_map.push(block)) for linear_map, block in parts)
    total = sum(_columns(block) for block in joined)
    torch.testing.assert_close(total, expected)
    assert len(joined) <= len(parts)


def _columns(block: Block) -> Tensor:
    return random_maps.written_out(block).reshape((*block.shape, math.prod(block.seed_shape)))


def _pieces(rng: Random) -> list[tuple[AbstractLinearMap, Block]]:
    """Pieces of one concatenation, or of one stack, whose blocks have one of two structures."""
    lead, behind = random_maps.shape(rng, 0, 1), random_maps.shape(rng, 0, 1)
    axis = len(lead)
    is_stack = rng.random() < 0.5
    lengths = [1 if is_stack else rng.randint(0, 3) for _ in range(rng.randint(1, 4))]
    out_shape = (*lead, sum(lengths) + 1, *behind)
    parts: list[tuple[AbstractLinearMap, Block]] = []
    start = rng.randint(0, 1)
    for n in lengths:
        in_shape = lead + behind if is_stack else (*lead, n, *behind)
        linear_map: AbstractLinearMap = Concat(in_shape, out_shape, axis, start, is_stack)
        if not is_stack and rng.random() < 0.3:
            linear_map = transpose(Slice(out_shape, in_shape, axis, start))
        start += n
        if rng.random() < 0.8:
            tied = (0 if lead else None, None)
            seed_shape = (lead[0] if lead else 2, 2)
            free = tuple(s for s, t in zip(seed_shape, tied, strict=True) if t is None)
            sizes = tuple(1 if rng.random() < 0.3 else s for s in in_shape)
            block = Block(random_maps.values(rng, free + sizes), in_shape, seed_shape, tied)
        else:
            seed_shape = (lead[0] if lead else 2, 2)
            block = seeds(random_maps.values(rng, seed_shape + in_shape), seed_shape, 0)
        parts.append((linear_map, block))
    rng.shuffle(parts)
    return parts


def test_pieces_of_one_structure_join_into_one_block() -> None:
    x = torch.zeros(5, 3, dtype=torch.float64)
    pieces = [Slice((5, 3), (5, 1), 1, i) for i in range(3)]
    blocks = [piece.push(identity(x, 0)) for piece in pieces]
    parts = [(Concat((5, 1), (5, 4), 1, i), block) for i, block in enumerate(blocks)]
    joined = join(parts)
    assert joined is not None
    assert joined.tied == (0, None)
    expected = torch.zeros(5, 4, 5, 3, dtype=torch.float64)
    expected[:, :3] = identity(x, 0).to_dense()
    torch.testing.assert_close(joined.to_dense(), expected)


def test_pieces_of_a_stack_join_into_one_block() -> None:
    x = torch.zeros(5, dtype=torch.float64)
    block = identity(x, 0)
    joined = join([(Concat((5,), (2, 5), 0, i, new_axis=True), block) for i in range(2)])
    assert joined is not None
    assert joined.tied == (1,)
    torch.testing.assert_close(joined.to_dense(), torch.stack([torch.eye(5).double()] * 2))


def test_overlapping_pieces_do_not_join() -> None:
    block = identity(torch.zeros(3, dtype=torch.float64), 0)
    parts = [(Concat((3,), (5,), 0, i), block) for i in range(2)]
    assert join(parts) is None
    assert len(join_groups(parts)) == 2
