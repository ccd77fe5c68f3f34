"""Dense Jacobians that have few entries: these are computed one by one and written into zeros, where that pays."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from torch import Tensor

from pushforward.errors import UnsupportedError
from pushforward.linear.kinds.composed import Composed
from pushforward.linear.kinds.concat import Concat
from pushforward.linear.kinds.convolve import Convolve
from pushforward.linear.kinds.gather import Gather, Select, Slice
from pushforward.linear.kinds.scan import Scan
from pushforward.linear.kinds.take_along import TakeAlong
from pushforward.linear.kinds.transposed import Transposed
from pushforward.linear.map import AbstractLinearMap
from pushforward.planning.calls import PLAIN
from pushforward.planning.plans import PLANS
from pushforward.sparse.layout import Layout
from pushforward.sparse.sweep import TooManyEntriesError
from pushforward.sparse.symbolic import DependentError
from pushforward.tape.private_functorch import functorch_level
from pushforward.tape.private_torch import num_dispatch_modes
from pushforward.transforms.assemble import directions
from pushforward.transforms.record import Tape
from pushforward.transforms.sparse_output import Few, SparsePlan, dense_of, entries_of
from pushforward.transforms.unbuilt import is_put_off

MIN_ENTRIES = 2**16  # of a Jacobian, below which blocks are as fast
MIN_COMPILED = 2**13  # where it is compiled
MAX_DENSITY = 1 / 16
MAX_OVERLAP = 2  # how often an entry is computed, on average

FEW = "few entries"  # of a structure: how many, where they are computed one by one
_SEEN, _NO = -1, -2

# Blocks write out the ties of axes that these act on; terms keep them.
_MOVING = (Concat, Convolve, Gather, Scan, Select, Slice, TakeAlong)


def by_entries(tape: Tape) -> list[list[Tensor]] | None:
    """Return the dense Jacobians of a tape by their entries; None where blocks are the better way.

    Decided at the second call of a structure: what is called once does not pay for it. At once where it is compiled.
    """
    size = _size(tape)
    if tape.batch is not None or size < (MIN_COMPILED if is_put_off() else MIN_ENTRIES):
        return None
    if functorch_level() is not None or tape.reading.calls_back:
        return None
    if is_put_off():
        found = _few(tape, size)
    elif num_dispatch_modes() or not all(type(t) in PLAIN for t in (*tape.inputs, *tape.outputs)):
        return None
    elif PLANS.find(FEW, tape.signature) is None:
        moves = any(_moves(t.linear_map) for e in tape.program.equations for t in e.terms)
        PLANS.keep(FEW, tape.signature, _SEEN if moves else _NO)
        return None
    else:
        found = _decided(tape)
    return None if found is None else _dense(tape, *found)


def num_known(tape: Tape) -> int | None:
    """Return how many entries of a tape are computed one by one; None where that is not known, or not so."""
    if PLANS.find(FEW, tape.signature) == _SEEN and not tape.reading.calls_back:
        _decided(tape)
    state: int | None = PLANS.find(FEW, tape.signature)
    return None if state is None or state < 0 else state


def _decided(tape: Tape) -> tuple[list[list[Tensor]], SparsePlan] | None:
    """Return the entries of a tape that was seen before, and where they stand, if they are few; note whether."""
    key = tape.signature
    state = PLANS.find(FEW, key)
    if state == _NO:
        return None
    found = _few(tape, _size(tape))
    if state == _SEEN or found is None:
        PLANS.keep(FEW, key, _NO if found is None else _count(found[0]))
    return found


def _size(tape: Tape) -> int:
    return sum(y.numel() * math.prod(directions(x)) for y in tape.outputs for x in tape.inputs)


def _count(values: list[list[Tensor]]) -> int:
    return sum(v.numel() for row in values for v in row)


def _few(tape: Tape, size: int) -> tuple[list[list[Tensor]], SparsePlan] | None:
    """Return the entries and where they stand; None where they are not few, or that depends on what is compiled."""
    try:
        values, plan = entries_of(tape, Few(size, int(MAX_OVERLAP * MAX_DENSITY * size)))
    except (TooManyEntriesError, DependentError, UnsupportedError):
        return None
    return (values, plan) if _count(values) <= MAX_DENSITY * size else None


def _dense(tape: Tape, values: list[list[Tensor]], plan: SparsePlan) -> list[list[Tensor]]:
    places = [
        [(known, (*y.shape, *directions(x))) for known, x in zip(layouts, tape.inputs, strict=True)]
        for layouts, y in zip(plan.layouts, tape.outputs, strict=True)
    ]
    if not plan.answers.indices:  # else these have to be looked at
        tape.finish = functools.partial(_written, places)
    return _written(places, values)


def _written(
    places: list[list[tuple[Layout, tuple[int, ...]]]], values: Sequence[Sequence[Tensor]]
) -> list[list[Tensor]]:
    """Return dense Jacobians of entries; what is behind ``values`` of the last output is left out."""
    return [
        [dense_of(found, known, shape) for found, (known, shape) in zip(row, each, strict=True)]
        for row, each in zip(values, places, strict=False)
    ]


def _moves(linear_map: AbstractLinearMap) -> bool:
    if isinstance(linear_map, Composed):
        return _moves(linear_map.first) or _moves(linear_map.second)
    if isinstance(linear_map, Transposed):
        return _moves(linear_map.of)
    return isinstance(linear_map, _MOVING)
