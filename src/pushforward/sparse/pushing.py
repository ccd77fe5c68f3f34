"""How a term is pushed through each kind of linear map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.kinds.composed import Composed
from pushforward.linear.kinds.concat import Concat
from pushforward.linear.kinds.contract import Contract
from pushforward.linear.kinds.convolve import Convolve
from pushforward.linear.kinds.expand import Expand
from pushforward.linear.kinds.gather import Gather, Select, Slice
from pushforward.linear.kinds.mask import Mask
from pushforward.linear.kinds.permute import Permute
from pushforward.linear.kinds.pointwise import Pointwise
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.scan import Scan
from pushforward.linear.kinds.sum import Sum
from pushforward.linear.kinds.take_along import TakeAlong
from pushforward.linear.kinds.transposed import Transposed, transpose
from pushforward.linear.map import AbstractLinearMap, positions
from pushforward.sparse.contracting import (
    pull_contract,
    pull_convolve,
    push_contract,
    push_convolve,
    push_general,
)
from pushforward.sparse.digits import reshaped
from pushforward.sparse.gathering import gathered, scattered
from pushforward.sparse.index import Index, along
from pushforward.sparse.moving import (
    expanded,
    permuted,
    placed,
    selected,
    sliced,
    summed,
    summed_to,
    with_axis,
)
from pushforward.sparse.products import chosen, times
from pushforward.sparse.symbolic import Symbolic
from pushforward.sparse.term import Term
from pushforward.sparse.window import window

Terms = list[Term]


def push(term: Term, linear_map: AbstractLinearMap, symbolic: Symbolic) -> Terms:
    """Return the terms of the output of a map, from one of its input."""
    if not term.size:
        return []
    if isinstance(linear_map, Transposed) and type(linear_map.of) in _TRANSPOSED:
        pushed = _TRANSPOSED[type(linear_map.of)](term, linear_map.of, symbolic)
    else:
        pushed = _PLAIN.get(type(linear_map), push_general)(term, linear_map, symbolic)
    return [t.tidy() for t in pushed if t.size]


def _one(term: Term | None) -> Terms:
    return [] if term is None else [term]


def _scaled(term: Term, coef: Tensor | complex, symbolic: Symbolic) -> Term:
    if not isinstance(coef, Tensor):
        return term if coef == 1 else term.with_values(term.values * coef)
    if coef.numel() == 1:  # modes get a saved number as one of Python's, which has no shape
        return term.with_values(term.values * (coef.reshape(()) if coef.dim() else coef))
    return term.with_values(times(term.values, _near(term, coef, symbolic)))


def _near(term: Term, tensor: Tensor, symbolic: Symbolic) -> Tensor:
    """Return the elements of a tensor that broadcasts to the near shape, one for each entry."""
    added = len(term.shape) - tensor.dim()
    return window(tensor, term.rows[added:], term.lengths, symbolic)


def _scale(term: Term, linear_map: Scale, symbolic: Symbolic) -> Terms:
    term = expanded(term, linear_map.out_shape).tidy()
    if linear_map.conjugate:
        term = term.with_values(term.values.conj().resolve_conj())
    return [_scaled(term, linear_map.coef, symbolic)]


def _scale_back(term: Term, linear_map: Scale, symbolic: Symbolic) -> Terms:
    if linear_map.conjugate:
        term = term.with_values(term.values.conj().resolve_conj())
    return [summed_to(_scaled(term, linear_map.adjoint_coef, symbolic), linear_map.in_shape)]


def _masked(term: Term, mask: Tensor, symbolic: Symbolic) -> Term:
    return term.with_values(chosen(_near(term, mask, symbolic), term.values))


def _mask(term: Term, linear_map: Mask, symbolic: Symbolic) -> Terms:
    return [_masked(expanded(term, linear_map.out_shape).tidy(), linear_map.mask, symbolic)]


def _mask_back(term: Term, linear_map: Mask, symbolic: Symbolic) -> Terms:
    return [summed_to(_masked(term, linear_map.mask, symbolic), linear_map.in_shape)]


def _pointwise(term: Term, linear_map: Pointwise, symbolic: Symbolic) -> Terms:
    is_whole = term.lengths == term.shape and all(
        index.key == (0, ((a, 1, True),)) for a, index in enumerate(term.rows)
    )
    if is_whole:
        return [term.with_values(linear_map.product(term.values))]
    ones = torch.ones((1,) * len(term.shape), dtype=term.values.dtype, device=term.values.device)
    return [_scaled(term, linear_map.product(ones), symbolic)]


def _permute(term: Term, linear_map: Permute, symbolic: Symbolic) -> Terms:
    return [permuted(term, linear_map.dims)]


def _permute_back(term: Term, linear_map: Permute, symbolic: Symbolic) -> Terms:
    dims = linear_map.dims
    return [permuted(term, sorted(range(len(dims)), key=dims.__getitem__))]


def _reshape(term: Term, linear_map: Reshape, symbolic: Symbolic) -> Terms:
    return [reshaped(term, linear_map.out_shape, symbolic)]


def _reshape_back(term: Term, linear_map: Reshape, symbolic: Symbolic) -> Terms:
    return [reshaped(term, linear_map.in_shape, symbolic)]


def _expand(term: Term, linear_map: Expand, symbolic: Symbolic) -> Terms:
    return [expanded(term, linear_map.out_shape)]


def _expand_back(term: Term, linear_map: Expand, symbolic: Symbolic) -> Terms:
    return [summed_to(term, linear_map.in_shape)]


def _sum(term: Term, linear_map: Sum, symbolic: Symbolic) -> Terms:
    return [summed(term, linear_map.axes, linear_map.keepdim)]


def _sum_back(term: Term, linear_map: Sum, symbolic: Symbolic) -> Terms:
    shape = linear_map.in_shape
    if not linear_map.keepdim:
        for axis in sorted(linear_map.axes):
            term = with_axis(term, axis, 0, 1)
    return [expanded(term, shape)]


def _slice(term: Term, linear_map: Slice, symbolic: Symbolic) -> Terms:
    axis, length = linear_map.axis, linear_map.out_shape[linear_map.axis]
    return _one(sliced(term, axis, linear_map.start, linear_map.step, length, symbolic))


def _slice_back(term: Term, linear_map: Slice, symbolic: Symbolic) -> Terms:
    size = linear_map.in_shape[linear_map.axis]
    return [placed(term, linear_map.axis, linear_map.start, linear_map.step, size, symbolic)]


def _select(term: Term, linear_map: Select, symbolic: Symbolic) -> Terms:
    return _one(selected(term, linear_map.axis, linear_map.index, symbolic))


def _select_back(term: Term, linear_map: Select, symbolic: Symbolic) -> Terms:
    size = linear_map.in_shape[linear_map.axis]
    return [with_axis(term, linear_map.axis, linear_map.index, size)]


def _concat(term: Term, linear_map: Concat, symbolic: Symbolic) -> Terms:
    axis, start = linear_map.axis, linear_map.start
    size = linear_map.out_shape[axis]
    if linear_map.new_axis:
        return [with_axis(term, axis, start, size)]
    return [placed(term, axis, start, 1, size, symbolic)]


def _concat_back(term: Term, linear_map: Concat, symbolic: Symbolic) -> Terms:
    axis, start = linear_map.axis, linear_map.start
    if linear_map.new_axis:
        return _one(selected(term, axis, start, symbolic))
    return _one(sliced(term, axis, start, 1, linear_map.in_shape[axis], symbolic))


def _gather(term: Term, linear_map: Gather, symbolic: Symbolic) -> Terms:
    index = symbolic.index(linear_map.index)
    axes = linear_map.mixed_in, linear_map.mixed_out
    return _one(gathered(term, index, *axes, linear_map.out_shape, symbolic))


def _gather_back(term: Term, linear_map: Gather, symbolic: Symbolic) -> Terms:
    index = symbolic.index(linear_map.index)
    axes = linear_map.mixed_out, linear_map.mixed_in
    return _one(scattered(term, index, *axes, linear_map.in_shape, symbolic))


def _flat_index(linear_map: TakeAlong, symbolic: Symbolic) -> Tensor:
    """Return, for each position of the output, the flat position that it takes; -1 for none."""
    index = symbolic.index(linear_map.index)

    def places() -> Tensor:
        whole = index.expand(linear_map.out_shape)
        place = positions(linear_map.in_shape).to(index.device)
        if not place.shape[linear_map.axis]:
            return torch.full((whole.numel(),), -1, device=index.device)
        taken = place.gather(linear_map.axis, whole.clamp(min=0))
        return torch.where(whole < 0, -1, taken).reshape(-1)

    return symbolic.once(places)


def _take_along(term: Term, linear_map: TakeAlong, symbolic: Symbolic) -> Terms:
    axes = tuple(range(len(linear_map.in_shape)))
    index = _flat_index(linear_map, symbolic)
    return _one(gathered(term, index, axes, axes, linear_map.out_shape, symbolic))


def _take_along_back(term: Term, linear_map: TakeAlong, symbolic: Symbolic) -> Terms:
    axes = tuple(range(len(linear_map.in_shape)))
    index = _flat_index(linear_map, symbolic)
    return _one(scattered(term, index, axes, axes, linear_map.in_shape, symbolic))


def _composed(term: Term, linear_map: Composed, symbolic: Symbolic) -> Terms:
    inner = push(term, linear_map.first, symbolic)
    return [t for i in inner for t in push(i, linear_map.second, symbolic)]


def _composed_back(term: Term, linear_map: Composed, symbolic: Symbolic) -> Terms:
    inner = push(term, transpose(linear_map.second), symbolic)
    return [t for i in inner for t in push(i, transpose(linear_map.first), symbolic)]


def _scan(term: Term, linear_map: Scan, symbolic: Symbolic) -> Terms:
    return _cumulated(term, linear_map.axis, symbolic, from_front=True)


def _scan_back(term: Term, linear_map: Scan, symbolic: Symbolic) -> Terms:
    return _cumulated(term, linear_map.axis, symbolic, from_front=False)


def _cumulated(term: Term, axis: int, symbolic: Symbolic, from_front: bool) -> Terms:
    """Copy each row to those behind it (or before it): a triangle of entries."""
    size, index = term.shape[axis], term.rows[axis]
    if len(index.axes) > 1:
        term = term.fused(index.axes, symbolic)
        index = term.rows[axis]
    device = term.values.device
    if not index.parts:
        inner, count = len(term.lengths), size - index.offset if from_front else index.offset + 1
        start = index.offset if from_front else 0
        term = term.with_axis(count)
        place = Index(start, ((inner, 1),))
    else:
        ((inner, at),) = index.parts
        length, offset = term.lengths[inner], index.offset

        def pairs() -> tuple[Tensor, Tensor]:
            held = along(at, length, device) + offset
            counts = size - held if from_front else held + 1
            taken = torch.arange(length, device=device).repeat_interleave(counts)
            before = counts.cumsum(0) - counts
            within = torch.arange(len(taken), device=device) - before[taken]
            return taken, within + held[taken] if from_front else within

        taken, rows = symbolic.once(pairs)
        term = term.picked(inner, taken, symbolic)
        place = Index(0).with_part(inner, *symbolic.line(lambda: rows))
    rows_after = [place if a == axis else i for a, i in enumerate(term.rows)]
    return [term.with_rows(rows_after, term.shape)]


_PLAIN: dict[type, Callable[[Term, Any, Symbolic], Terms]] = {
    Composed: _composed,
    Concat: _concat,
    Contract: push_contract,
    Convolve: push_convolve,
    Expand: _expand,
    Gather: _gather,
    Mask: _mask,
    Permute: _permute,
    Pointwise: _pointwise,
    Reshape: _reshape,
    Scale: _scale,
    Scan: _scan,
    Select: _select,
    Slice: _slice,
    Sum: _sum,
    TakeAlong: _take_along,
}
_TRANSPOSED: dict[type, Callable[[Term, Any, Symbolic], Terms]] = {
    Composed: _composed_back,
    Concat: _concat_back,
    Contract: pull_contract,
    Convolve: pull_convolve,
    Expand: _expand_back,
    Gather: _gather_back,
    Mask: _mask_back,
    Permute: _permute_back,
    Pointwise: _pointwise,
    Reshape: _reshape_back,
    Scale: _scale_back,
    Scan: _scan_back,
    Select: _select_back,
    Slice: _slice_back,
    Sum: _sum_back,
    TakeAlong: _take_along_back,
}
