"""Pushing the identity through a linear program, as sums of terms."""

from __future__ import annotations

from collections.abc import Sequence

from pushforward.linear.kinds.composed import Composed
from pushforward.linear.kinds.gather import Gather
from pushforward.linear.kinds.take_along import TakeAlong
from pushforward.linear.kinds.transposed import Transposed, transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.program import LinearProgram, before_map, in_dtype
from pushforward.sparse.adding import added, condensed, joined
from pushforward.sparse.pushing import push
from pushforward.sparse.symbolic import Symbolic
from pushforward.sparse.term import Term

Terms = list[Term]

MAX_TERMS = 128  # of one variable, where few entries are hoped for


class TooManyEntriesError(Exception):
    """A variable has more terms, or more entries in these, than were asked for."""


def pushed(
    program: LinearProgram,
    starts: Sequence[Term],
    symbolic: Symbolic,
    max_entries: int | None = None,
) -> list[Terms]:
    """Return the terms of each output, from one of each input.

    Raises:
        TooManyEntriesError: A variable has more than ``max_entries`` in all, or more terms than is worth its while.
    """
    program.check_residuals()
    last_use = program.last_uses()
    alive: dict[int, Terms] = {
        v: [t] if t.size else [] for v, t in zip(program.inputs, starts, strict=True)
    }
    for position, equation in enumerate(program.equations):
        found: Terms = []
        for part in equation.terms:
            for term in alive.get(part.variable, ()):
                term = term.with_values(before_map(term.values, part.in_dtype))
                found += [
                    t.with_values(in_dtype(t.values, equation.dtype))
                    for t in push(term, part.linear_map, symbolic)
                ]
        found = added(found)
        if equation.variable not in program.outputs and any(
            _scatters(part.linear_map) for part in equation.terms
        ):
            found = joined(found, symbolic)
        found = condensed(found, symbolic)
        if max_entries is not None and _are_many(found, max_entries):
            raise TooManyEntriesError
        alive[equation.variable] = found
        for part in equation.terms:
            if last_use.get(part.variable) == position:
                alive.pop(part.variable, None)
    return [[] if v is None else alive.get(v, []) for v in program.outputs]


def _are_many(terms: Terms, max_entries: int) -> bool:
    """Tell whether blocks are likely to be faster: terms may overlap, and each is computed."""
    return len(terms) > MAX_TERMS or sum(t.size for t in terms) > max_entries


def _scatters(linear_map: AbstractLinearMap) -> bool:
    """Tell whether a map may move several entries to one row."""
    if isinstance(linear_map, Composed):
        return _scatters(linear_map.first) or _scatters(linear_map.second)
    if isinstance(linear_map, Transposed):
        of = linear_map.of
        return isinstance(of, (Gather, TakeAlong)) or (
            isinstance(of, Composed) and (_scatters_back(of.first) or _scatters_back(of.second))
        )
    return False


def _scatters_back(linear_map: AbstractLinearMap) -> bool:
    return _scatters(transpose(linear_map))
