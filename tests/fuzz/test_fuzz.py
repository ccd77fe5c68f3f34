"""A short run of the machine, and that it finds, replays and cuts down what is planted."""

import collections

import pytest
import torch

import pushforward
from fuzz import differences, reference, run
from fuzz.__main__ import Late, limited
from fuzz.fresh import Fresh
from fuzz.generate import generate
from fuzz.run import run_program
from fuzz.shrink import shrunk

FIRST, EACH, BLOCKS = 0, 12, 10
SECONDS = 30.0  # for one program, on a machine under load

pytestmark = pytest.mark.filterwarnings("ignore")  # programs call what is deprecated, in beta, ...


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_programs_have_no_wrong_number(block):
    skips: collections.Counter[str] = collections.Counter()
    for seed in range(FIRST + block * EACH, FIRST + (block + 1) * EACH):
        program = generate(seed)
        try:
            with limited(SECONDS):
                failure, _ = run_program(program, skips)
        except Late:
            skips["took too long"] += 1
            continue
        if failure is not None:
            small, failure = shrunk(program, failure, 20.0)
            pytest.fail(f"{small.script()}\n# {failure.kind}\n{failure.details}")
    print(skips)


def test_a_seed_gives_the_same_program_again():
    for seed in (3, 5):
        assert generate(seed) == generate(seed)


def test_what_was_run_before_has_no_part_in_a_program(monkeypatch):
    """Derivatives inside a program were too costly for its generator, once a program before had taken long."""
    seeds = range(735940, 735950)
    fresh = [generate(seed).script() for seed in seeds]
    assert any("P.hessian" in script for script in fresh)
    monkeypatch.setattr(reference, "_since", -1e9)
    assert [generate(seed).script() for seed in seeds] == fresh


def test_differences_see_what_lies_between_elements():
    """An input keeps its strides, so that ``as_strided`` reads the same memory as under autograd."""
    x = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)[:, 0]

    def f(x):
        return x.as_strided((), (), 1) * x.as_strided((), (), 2)

    library = differences.Library(1e-5, lambda: None)
    for expected in (reference.jacrev(f)(x), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)):
        torch.testing.assert_close(library.jacrev(f)(x), expected)


def test_a_planted_fault_is_found_and_cut_down(monkeypatch):
    right = pushforward.jacrev

    def wrong(func, argnums=0, **options):
        return lambda *args: torch.utils._pytree.tree_map(
            lambda y: y + 1, right(func, argnums, **options)(*args)
        )

    monkeypatch.setattr(run.pushforward, "jacrev", wrong)
    for seed in range(20):
        program = generate(seed)
        failure, _ = run_program(program)
        if failure is not None:
            break
    assert failure is not None
    assert failure.kind == "wrong number"
    small, failure = shrunk(program, failure, 20.0)
    assert len(small.calls) == 1
    assert len(small.steps) <= 1
    exec(small.script().replace("for L in (R, P):", "for L in (R,):"), {})


def test_repeated_calls_that_give_something_else_than_first_ones_are_found(monkeypatch):
    right, counts = pushforward.jacrev, [0]

    def forgetful(func, argnums=0, **options):
        def call(*args):
            counts[0] += 1
            result = right(func, argnums, **options)(*args)
            return (
                torch.utils._pytree.tree_map(lambda y: y * 2, result) if counts[0] > 2 else result
            )

        return call

    monkeypatch.setattr(run.pushforward, "jacrev", forgetful)
    fresh = Fresh()
    try:
        found = None
        for seed in range(30):
            found, _ = run_program(generate(seed), fresh=fresh)
            if found is not None:
                break
    finally:
        fresh.close()
    assert found is not None
    assert found.kind == "repeated calls give something else"
