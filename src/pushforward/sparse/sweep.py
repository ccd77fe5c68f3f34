"""Pushing the identity through a linear program, as sums of terms."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pushforward.linear.program import LinearProgram
from pushforward.sparse.pushing import push
from pushforward.sparse.symbolic import Symbolic
from pushforward.sparse.term import Term

Terms = list[Term]


def pushed(program: LinearProgram, starts: Sequence[Term], symbolic: Symbolic) -> list[Terms]:
    """Return the terms of each output, from one of each input."""
    program.check_residuals()
    last_use = program.last_uses()
    alive: dict[int, Terms] = {
        v: [t] if t.size else [] for v, t in zip(program.inputs, starts, strict=True)
    }
    for position, equation in enumerate(program.equations):
        found: Terms = []
        for part in equation.terms:
            for term in alive.get(part.variable, ()):
                term = _before(term, part.in_dtype)
                found += [
                    _in_dtype(t, equation.dtype) for t in push(term, part.linear_map, symbolic)
                ]
        alive[equation.variable] = added(found)
        for part in equation.terms:
            if last_use.get(part.variable) == position:
                alive.pop(part.variable, None)
    return [[] if v is None else alive.get(v, []) for v in program.outputs]


def added(terms: Terms) -> Terms:
    """Return the sum of ``terms``: those of the same structure become one."""
    if len(terms) < 2:
        return terms
    found: dict[object, Term] = {}
    for term in terms:
        key = term.structure
        other = found.get(key)
        found[key] = term if other is None else term.with_values(other.values + term.values)
    return list(found.values())


def _before(term: Term, dtype: torch.dtype) -> Term:
    """Convert to ``dtype`` before the map, unless that would drop an imaginary part."""
    values = term.values
    if values.dtype is dtype or (values.dtype.is_complex and not dtype.is_complex):
        return term
    return term.with_values(values.to(dtype))


def _in_dtype(term: Term, dtype: torch.dtype) -> Term:
    values = term.values
    if values.dtype is dtype:
        return term
    if values.dtype.is_complex and not dtype.is_complex:
        values = values.real
    return term.with_values(values.to(dtype))
