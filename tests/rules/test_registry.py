"""Every rule in the registry, on calls from PyTorch's operator database: a new rule is covered by being registered."""

import warnings
from typing import Any

import pytest
from rules.checks import CONSTANT_ARGUMENTS, differentiated, failures
from rules.extra_samples import NOT_ON_CPU, OF_STATISTICS, WITHOUT_NODE
from rules.samples import Sample, collect

import pushforward.rules.families  # noqa: F401
from pushforward.rules.registry import Rule, all_rules

# Those of the package: other tests declare some of their own.
RULES = [rule for rule in all_rules() if rule.is_own]


@pytest.fixture(scope="module")
def samples() -> dict[Any, list[Sample]]:
    """Calls of every operator that has a rule, made once."""
    return collect()


@pytest.mark.parametrize("rule", RULES, ids=[str(r.operator) for r in RULES])
def test_maps_of_a_rule_are_the_derivative(rule: Rule, samples: dict[Any, list[Sample]]) -> None:
    """Push, pull, ties, pattern, batches of seeds, and order 2, on every sample and argument."""
    if str(rule.operator) in NOT_ON_CPU:
        pytest.skip("no CPU kernel")
    if str(rule.operator) in WITHOUT_NODE:
        pytest.skip("no derivative in this version of PyTorch, either")
    if str(rule.operator) in OF_STATISTICS:
        pytest.skip("see test_backward_formulas.py: saved statistics move with the input")
    usable = [s for s in samples.get(rule.operator, []) if differentiated(rule, s)]
    assert usable, f"no sample leaves a node of {rule.operator}: see tests/rules/extra_samples.py"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = [line for sample in usable for line in failures(rule, sample)]
    assert not lines, f"{len(lines)} failures\n" + "\n".join(lines)


def test_every_partial_of_every_rule_is_reached(samples: dict[Any, list[Sample]]) -> None:
    """No argument's formula goes unchecked."""
    missing = []
    for rule in RULES:
        if str(rule.operator) in NOT_ON_CPU | OF_STATISTICS | WITHOUT_NODE:
            continue
        reached = {
            key for s in samples.get(rule.operator, []) for key, _ in differentiated(rule, s)
        }
        reached_partials = {id(rule.partials[key]) for key in reached}
        missing += [
            f"{rule.operator}: argument {key}"
            for key, partial in rule.partials.items()
            if isinstance(key, int)
            and id(partial) not in reached_partials
            and (_name(rule), key) not in CONSTANT_ARGUMENTS
        ]
    assert not missing, "no sample differentiates\n" + "\n".join(missing)


def _name(rule: Rule) -> str:
    """As the schema has it: aten::sin for torch.ops.aten.sin."""
    return "::".join(str(rule.operator).split(".")[:2])
