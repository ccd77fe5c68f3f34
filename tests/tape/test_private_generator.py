"""What we expect of the memory of the CPU's generator: a new PyTorch breaks here."""

import sys

import pytest
import torch
from torch.nn import functional

from pushforward.tape import private_generator as private

DRAWS = {
    "rand": lambda: torch.rand(1),
    "as many as the twister has": lambda: torch.rand(624),
    "twice as many": lambda: torch.rand(1248),
    "randn": lambda: torch.randn(1),
    "randn of doubles": lambda: torch.randn(3, dtype=torch.float64),
    "randn of halves": lambda: torch.randn(3, dtype=torch.float16),
    "many of randn": lambda: torch.randn(100),
    "normal": lambda: torch.normal(0.0, 1.0, (1,)),
    "complex": lambda: torch.randn(1, dtype=torch.complex64),
    "randint": lambda: torch.randint(5, (1,)),
    "randperm": lambda: torch.randperm(3),
    "bernoulli": lambda: torch.bernoulli(torch.tensor([0.5])),
    "multinomial": lambda: torch.multinomial(torch.ones(3), 1),
    "poisson": lambda: torch.poisson(torch.ones(1)),
    "exponential": lambda: torch.empty(1).exponential_(),
    "log_normal": lambda: torch.empty(1).log_normal_(),
    "gamma": lambda: torch.distributions.Gamma(1.0, 1.0).sample(),
    "dropout": lambda: functional.dropout(torch.ones(1)),
    "another seed": lambda: torch.manual_seed(5),
}


def state_with_single_normal():
    """Return a state with a normal number in single precision that is still to be given."""
    state = torch.get_rng_state()
    state[-8:-4], state[-4] = torch.tensor([0.25]).view(torch.uint8), 1
    return state


@pytest.fixture
def memory():
    found = private.memory_of_cpu()
    assert found is not None
    with torch.random.fork_rng(devices=[]):
        yield found


@pytest.mark.parametrize("name", DRAWS)
def test_every_draw_is_seen(memory, name):
    for _ in range(2):
        torch.rand(1)
        before = memory.raw
        assert memory.raw == before
        DRAWS[name]()
        assert memory.raw != before
        assert torch.equal(private.as_tensor(memory.raw), torch.get_rng_state())


def test_a_normal_number_in_single_precision_is_seen(memory):
    before, state = memory.raw, state_with_single_normal()
    torch.set_rng_state(state)
    assert memory.raw != before
    assert torch.equal(private.as_tensor(memory.raw), state)


@pytest.mark.parametrize("count", [0, 1, 5, 700])
def test_what_was_read_puts_the_generator_back(memory, count):
    torch.randn(count)
    before = memory.raw
    expected = torch.randn(50)
    torch.set_rng_state(private.as_tensor(before))
    assert torch.equal(torch.randn(50), expected)


def test_states_that_differ_between_numbers_alone_are_the_same(memory):
    one = bytearray(memory.raw)
    one[13] ^= 1
    assert bytes(one) != memory.raw
    assert private.is_same(bytes(one), memory.raw)
    for place in (0, 8, 12, 16, 20, 1000, 2515):
        other = bytearray(memory.raw)
        other[place] ^= 1
        assert not private.is_same(bytes(other), memory.raw)


def test_memory_is_read_with_versions_that_were_tested_alone(monkeypatch):
    assert int(torch.__version__.split(".")[1]) in private.TESTED
    monkeypatch.setattr(private, "TESTED", range(0))
    assert private.memory_of_cpu.__wrapped__() is None


def test_memory_is_not_read_by_other_interpreters(monkeypatch):
    monkeypatch.setattr(sys.implementation, "name", "pypy")
    assert private.memory_of_cpu.__wrapped__() is None


@pytest.mark.parametrize("change", [lambda state: state[:-1], lambda state: state + 1])
def test_memory_that_says_otherwise_than_pytorch_is_not_read(monkeypatch, change):
    as_tensor = private.as_tensor
    monkeypatch.setattr(private, "as_tensor", lambda memory: change(as_tensor(memory)))
    assert private.memory_of_cpu.__wrapped__() is None


def test_looking_for_the_memory_draws_nothing(memory):
    before = torch.get_rng_state()
    private.memory_of_cpu.__wrapped__()
    assert torch.equal(torch.get_rng_state(), before)
