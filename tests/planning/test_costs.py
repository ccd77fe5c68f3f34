"""Predicted blocks are the blocks that arise; predicted work is that of the products done."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linear import random_maps

from pushforward.linear.block import identity
from pushforward.linear.kinds.contract import Contract
from pushforward.planning.costs import Cost, push_cost, shadow, shadow_tensor

RNG = st.randoms(use_true_random=False)
often = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@given(rng=RNG, forward=st.booleans())
@often
def test_the_predicted_block_is_the_one_that_arises(rng: Random, forward: bool) -> None:
    linear_map = random_maps.any_map(rng, random_maps.shape(rng), torch.float64)
    near = linear_map.in_shape if forward else linear_map.out_shape
    block = random_maps.block(rng, near)
    result = linear_map.push(block) if forward else linear_map.pull(block)
    meta = block.with_values(shadow_tensor(block.values))
    predicted, cost = push_cost(shadow(linear_map), meta, forward)
    assert predicted.structure == result.structure
    assert predicted.values.shape == result.values.shape
    assert predicted.values.is_meta
    assert cost.calls >= 1
    assert cost.flops >= 0
    assert cost.bytes >= 0


@pytest.mark.parametrize(("free", "flops"), [(False, 2 * 5 * 7), (True, 2 * 3 * 5 * 7)])
def test_a_contraction_costs_its_multiplications(free: bool, flops: int) -> None:
    """A tied axis that is contracted copies the matrix; three free columns multiply it three times."""
    linear_map = shadow(Contract((7,), (5,), "a", "ba", "b", torch.zeros(5, 7)))
    block = identity(torch.empty(7, device="meta"), 0)
    if free:
        values = torch.empty(3, 7, device="meta")
        block = type(block)(values, (7,), (3,), (None,))
    assert push_cost(linear_map, block, forward=True)[1].flops == flops


def test_costs_add_up_and_print() -> None:
    total = Cost(1, 2_000_000, 3_000) + Cost(1, 0, 0)
    assert total == Cost(2, 2_000_000, 3_000)
    assert str(total).endswith("2 Mflop, 3 kB")
