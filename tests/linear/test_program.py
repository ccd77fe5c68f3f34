"""Linear programs: push and pull through chains with several uses of one variable."""

from __future__ import annotations

import math
from random import Random

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linear import random_maps
from torch import Tensor

from pushforward.linear.block import Block, identity
from pushforward.linear.kinds.composed import Composed
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.program import Equation, LinearProgram, Term

F64 = torch.float64
RNG = st.randoms(use_true_random=False)
often = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _program(rng: Random) -> tuple[LinearProgram, list[tuple[int, ...]]]:
    """A random program on two inputs, and the shapes of its variables."""
    shapes = [random_maps.shape(rng), random_maps.shape(rng)]
    equations = []
    for variable in range(2, 2 + rng.randint(0, 5)):
        source = rng.randrange(variable)
        first = random_maps.any_map(rng, shapes[source], F64)
        out_shape = first.out_shape
        terms = [Term(source, first, F64)]
        for other, shape in enumerate(shapes):
            coef = Scale(out_shape, out_shape, random_maps.values(rng, out_shape))
            if other == source and rng.random() < 0.5:
                terms.append(Term(source, Composed(shape, out_shape, first, coef), F64))
            elif shape == out_shape and rng.random() < 0.5:
                terms.append(Term(other, coef, F64))
        shapes.append(out_shape)
        equations.append(Equation(variable, terms, F64))
    outputs = [rng.randrange(len(shapes)), None, len(shapes) - 1]
    return LinearProgram([0, 1], equations, outputs), shapes


def _evaluate(program: LinearProgram, inputs: list[Tensor]) -> list[Tensor | None]:
    """Follow the equations with matrices, nothing else."""
    known = dict(enumerate(inputs))
    for equation in program.equations:
        total = 0
        for term in equation.terms:
            matrix = random_maps.matrix(term.linear_map, F64)
            x = known[term.variable]
            total = total + torch.tensordot(matrix, x, x.ndim)
        known[equation.variable] = total
    return [None if v is None else known[v] for v in program.outputs]


@given(rng=RNG)
@often
def test_push_follows_the_equations(rng: Random) -> None:
    program, shapes = _program(rng)
    tangents = [random_maps.values(rng, shapes[i]) for i in range(2)]
    pushed = program.push([(Block(t, tuple(t.shape), (), (), 0),) for t in tangents])
    for blocks, expected in zip(pushed, _evaluate(program, tangents), strict=True):
        if expected is None:
            assert blocks == ()
        else:
            total = sum((b.expanded_values() for b in blocks), torch.zeros_like(expected))
            torch.testing.assert_close(total, expected)


@given(rng=RNG)
@often
def test_push_of_identities_and_pull_of_identities_are_transposes(rng: Random) -> None:
    program, shapes = _program(rng)
    pushed = program.push([(identity(torch.zeros(shapes[i], dtype=F64), i),) for i in range(2)])
    cotangents = [
        () if v is None else (identity(torch.zeros(shapes[v], dtype=F64), i),)
        for i, v in enumerate(program.outputs)
    ]
    pulled = program.pull(cotangents)
    for i, variable in enumerate(program.outputs):
        if variable is None:
            continue
        for j in range(2):
            m, n = math.prod(shapes[variable]), math.prod(shapes[j])
            forward = _dense(pushed[i], j, m, n)
            backward = _dense(pulled[j], i, n, m)
            torch.testing.assert_close(forward, backward.T)


def _dense(blocks: tuple[Block, ...], source: int, m: int, n: int) -> Tensor:
    total = torch.zeros(m, n, dtype=F64)
    for block in blocks:
        if block.source == source:
            total = total + block.to_dense().reshape(m, n)
    return total


@given(rng=RNG)
@often
def test_program_prints_one_line_an_equation(rng: Random) -> None:
    program, _ = _program(rng)
    assert len(str(program).splitlines()) == 2 + len(program.equations)
