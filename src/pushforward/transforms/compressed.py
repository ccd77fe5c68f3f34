"""Jacobians of a pattern that the caller gives: few products with seeds, from which the entries are read."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import ArgumentValueError, UnsupportedError, message
from pushforward.planning.plans import PLANS
from pushforward.sparse.coloring.choice import coloring
from pushforward.sparse.coloring.result import Coloring
from pushforward.sparse.layout import Layout
from pushforward.sparse.pattern import Pattern, pattern_of
from pushforward.sparse.placing import Placement
from pushforward.tape.private_torch import bare, without_modes
from pushforward.transforms.assemble import directions, jacobian_dtype
from pushforward.transforms.record import Tape
from pushforward.transforms.vjp import pulled_batch

COLORING = "coloring"
LAYOUT = "layout"
CHECKED = "checked pattern"
MANY = 8  # colours of columns or rows, above which both together are tried


@dataclasses.dataclass(frozen=True, slots=True)
class Symmetric:
    """A pattern whose matrix is known to be symmetric."""

    pattern: Any


def given_pattern(name: str, given: Any) -> tuple[Pattern, bool] | None:
    """Return the caller's pattern, and whether the matrix is symmetric; None where there is none."""
    if given is None:
        return None
    is_symmetric = isinstance(given, Symmetric)
    pattern = pattern_of(name, given.pattern if isinstance(given, Symmetric) else given)
    if is_symmetric and not pattern.is_symmetric:
        expected, way_out = "a symmetric pattern", "Give pattern | pattern.transpose()."
        raise ArgumentValueError(message(name, "pattern", repr(pattern), expected, way_out))
    return pattern, is_symmetric


def compressed(
    name: str, tape: Tape, given: tuple[Pattern, bool], by_columns: bool
) -> tuple[Tensor, Layout]:
    """Return the values of the one Jacobian of a tape, and the layout in which they stand."""
    pattern, is_symmetric = given
    y, x = _only(name, tape, pattern)
    dtype = jacobian_dtype(y, x)
    with bare():  # a tracer has no part in it
        found = _colored(pattern, is_symmetric)
        columns, rows = found.seeds(dtype, x.device)
        known = _layout(pattern, by_columns, x.device)
    pushed = pulled = None
    if len(columns):
        (whole,) = tape.pushed([columns.reshape(-1, *x.shape).to(x.dtype)], (len(columns),))
        pushed = whole.reshape(len(columns), -1)
    if len(rows):
        (whole,) = pulled_batch(tape, [rows.reshape(-1, *y.shape).to(y.dtype)], (len(rows),))
        pulled = whole.reshape(len(rows), -1)
    values = found.decompress(pushed, pulled).to(dtype)
    _check_once(name, tape, pattern, values)
    if by_columns:
        values = values.index_select(0, pattern.by_columns.to(values.device))
    return values, known


def _layout(pattern: Pattern, by_columns: bool, device: torch.device) -> Layout:
    """Return the layout of a pattern, in tensors of its own: those of others may not be copied when written."""
    key = (pattern, by_columns, device)
    known: Layout | None = PLANS.find(LAYOUT, key)
    if known is None:
        held = pattern.transpose() if by_columns else pattern
        starts, indices = held.indptr.clone().to(device), held.indices.clone().to(device)
        placement = Placement(held.nnz, [], (indices, indices))
        known = Layout(starts, indices, held.shape, placement)
        PLANS.keep(LAYOUT, key, known)
    return known


def _only(name: str, tape: Tape, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Return the one output and the one input that a pattern is of."""
    if len(tape.outputs) != 1 or len(tape.inputs) != 1:
        got = f"{len(tape.outputs)} outputs and {len(tape.inputs)} inputs"
        way_out = "Leave pattern out, or take one function for each."
        raise UnsupportedError(message(name, "pattern", got, "one of each", way_out))
    (y,), (x,) = tape.outputs, tape.inputs
    if y.is_complex() or x.is_complex():
        expected, way_out = "real ones", "Leave pattern out."
        raise UnsupportedError(message(name, "pattern", "complex numbers", expected, way_out))
    size = (y.numel(), torch.Size(directions(x)).numel())
    if pattern.shape != size:
        expected, way_out = f"{size}: (out.numel(), in.numel())", "See pattern(func, *args).shape."
        raise ArgumentValueError(message(name, "pattern", pattern.shape, expected, way_out))
    return y, x


def _colored(pattern: Pattern, is_symmetric: bool) -> Coloring:
    """Return the colouring that takes the fewest products."""
    key = (pattern, is_symmetric)
    known: Coloring | None = PLANS.find(COLORING, key)
    if known is not None:
        return known
    found = _best_coloring(pattern, is_symmetric)
    PLANS.keep(COLORING, key, found)
    return found


def _best_coloring(pattern: Pattern, is_symmetric: bool) -> Coloring:
    if is_symmetric:
        return coloring(pattern, structure="symmetric")
    each = [coloring(pattern, structure=structure) for structure in ("column", "row")]
    found = min(each, key=lambda c: c.num_colors)
    if found.num_colors > MANY:
        both = coloring(pattern, structure="bidirectional")
        found = min((found, both), key=lambda c: c.num_colors)
    return found


def _check_once(name: str, tape: Tape, pattern: Pattern, values: Tensor) -> None:
    """Compare a product with a random direction: a pattern that lacks entries gives wrong numbers elsewhere."""
    key = (tape.signature, pattern)
    if not pattern.shape[0] or PLANS.find(CHECKED, key):
        return
    (x,) = tape.inputs
    generator = torch.Generator().manual_seed(0)
    with without_modes():  # older tracers refuse generators
        drawn = torch.randn(x.numel(), generator=generator, dtype=torch.float64)
    direction = drawn.to(x)
    (expected,) = tape.pushed([direction.reshape(1, *x.shape)], (1,))
    with torch.no_grad(), without_modes():  # a tracer does not see elements
        rows, cols = pattern.rows.to(x.device), pattern.cols.to(x.device)
        terms = values.detach() * direction.to(values.dtype)[cols]
        zeros = torch.zeros(pattern.shape[0], dtype=values.dtype, device=x.device)
        got, size = zeros.index_add(0, rows, terms), zeros.index_add(0, rows, terms.abs())
        expected = expected.detach().reshape(-1).to(values.dtype)
        allowed = torch.finfo(values.dtype).eps ** 0.5 * (size + size.max() + expected.abs())
        wrong = ((got - expected).abs() > allowed).nonzero().reshape(-1)
    if len(wrong):
        row = int(wrong[0])
        raise ArgumentValueError(
            message(
                name,
                "pattern",
                f"one that lacks entries: row {row} times a direction is {float(got[row]):g}",
                f"{float(expected[row]):g}",
                "Leave pattern out, or give the union over the points that you visit.",
            )
        )
    PLANS.keep(CHECKED, key, True)
