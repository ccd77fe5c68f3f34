"""The algebra of blocks and of their sums, against the definition written out."""

from __future__ import annotations

import math
from random import Random

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linear import random_maps

from pushforward.linear.block import Block, identity
from pushforward.linear.block_sum import add_blocks, to_dense

RNG = st.randoms(use_true_random=False)
often = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _sample(rng: Random) -> Block:
    return random_maps.block(rng, random_maps.shape(rng))


@given(rng=RNG)
@often
def test_dense_form_is_the_definition(rng: Random) -> None:
    block = _sample(rng)
    dense = block.to_dense()
    assert dense.is_contiguous()
    torch.testing.assert_close(dense, random_maps.written_out(block))


@given(rng=RNG)
@often
def test_permute(rng: Random) -> None:
    block = _sample(rng)
    dims = rng.sample(range(len(block.shape)), len(block.shape))
    seeds = range(len(block.shape), len(block.shape) + len(block.seed_shape))
    expected = random_maps.written_out(block).permute((*dims, *seeds))
    torch.testing.assert_close(random_maps.written_out(block.permute(dims)), expected)


@given(rng=RNG)
@often
def test_expand(rng: Random) -> None:
    block = _sample(rng)
    lead = random_maps.shape(rng, 0, 2)
    shape = lead + tuple(rng.choice([1, 3]) if n == 1 else n for n in block.shape)
    expected = random_maps.written_out(block).expand(shape + block.seed_shape)
    torch.testing.assert_close(random_maps.written_out(block.expand(shape)), expected)


@given(rng=RNG)
@often
def test_sum_with_any_number_of_holders(rng: Random) -> None:
    block = _sample(rng)
    axes = [i for i in range(len(block.shape)) if rng.random() < 0.5]
    keepdim = rng.random() < 0.5
    dense = random_maps.written_out(block)
    expected = dense.sum(axes, keepdim) if axes else dense
    result = random_maps.written_out(block.sum(axes, keepdim))
    torch.testing.assert_close(result.reshape(expected.shape), expected)


@given(rng=RNG)
@often
def test_sum_to_undoes_a_broadcast(rng: Random) -> None:
    block = _sample(rng)
    added = rng.randint(0, len(block.shape))
    shape = tuple(rng.choice([1, n]) for n in block.shape[added:])
    dense = random_maps.written_out(block)
    axes = [*range(added), *(i + added for i, n in enumerate(shape) if n != block.shape[i + added])]
    expected = dense.sum(axes) if axes else dense
    result = block.sum_to(shape)
    assert result.shape == shape
    torch.testing.assert_close(random_maps.written_out(result).reshape(-1), expected.reshape(-1))


@given(rng=RNG)
@often
def test_untie_changes_only_the_form(rng: Random) -> None:
    block = _sample(rng)
    axes = [i for i in range(len(block.shape)) if rng.random() < 0.5]
    untied = block.untie(axes)
    assert not set(untied.tied) & set(axes)
    torch.testing.assert_close(random_maps.written_out(untied), random_maps.written_out(block))


@given(rng=RNG)
@often
def test_reshape_merges_and_splits(rng: Random) -> None:
    source, target = random_maps.regrouped(rng)
    block = random_maps.block(rng, source)
    result = block.reshape(target)
    assert result.shape == target
    seeds = math.prod(block.seed_shape)
    assert math.prod(result.seed_shape) == seeds
    torch.testing.assert_close(
        random_maps.written_out(result).reshape(math.prod(target), seeds),
        random_maps.written_out(block).reshape(math.prod(target), seeds),
    )


@given(rng=RNG)
@often
def test_reshape_of_the_identity_stays_tied(rng: Random) -> None:
    source, target = random_maps.regrouped(rng)
    block = identity(torch.zeros(source, dtype=torch.float64), 0).reshape(target)
    assert block.num_seeds == 1


@given(rng=RNG)
@often
def test_empty_blocks_reshape(rng: Random) -> None:
    source = (*random_maps.shape(rng), 0)
    block = random_maps.block(rng, source)
    result = block.reshape((0, 2))
    assert result.shape == (0, 2)
    assert result.to_dense().numel() == 0


@given(rng=RNG)
@often
def test_scale_by_anything_that_broadcasts(rng: Random) -> None:
    block = _sample(rng)
    coef = random_maps.values(rng, tuple(rng.choice([1, n]) for n in block.shape))
    full = coef.expand(block.shape).reshape(block.shape + (1,) * len(block.seed_shape))
    torch.testing.assert_close(
        random_maps.written_out(block.scale(coef)), random_maps.written_out(block) * full
    )


@given(rng=RNG)
@often
def test_sums_of_blocks_are_the_sums_of_their_dense_forms(rng: Random) -> None:
    near = random_maps.shape(rng)
    first = random_maps.block(rng, near)
    terms = [first]
    for _ in range(rng.randint(0, 6)):
        other = random_maps.block(rng, near)
        if math.prod(other.seed_shape) == math.prod(first.seed_shape):
            terms.append(other)
        tied = tuple(t if rng.random() < 0.5 else None for t in first.tied)
        terms.append(first.to_structure(first.seed_shape, tied))
    blocks = add_blocks(terms)
    full = near + first.seed_shape
    expected = sum(random_maps.written_out(t).reshape(full) for t in terms)
    torch.testing.assert_close(to_dense(blocks, near, first.seed_shape, first.values), expected)
    assert len(blocks) <= 5


def test_blocks_of_different_sources_stay_apart() -> None:
    x = torch.zeros(3)
    assert len(add_blocks([identity(x, 0), identity(x, 1), identity(x, 0)])) == 2


def test_no_blocks_are_zero() -> None:
    assert torch.equal(to_dense((), (2,), (3,), torch.zeros(1)), torch.zeros(2, 3))
