"""How terms are pushed through products: contractions, convolutions, and operators that mix all of an axis."""

from __future__ import annotations

import dataclasses
import itertools
import math
import string
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pushforward.errors import UnsupportedError, message
from pushforward.linear.axes import with_size
from pushforward.linear.block import Block, identity_like
from pushforward.linear.elimination import as_map
from pushforward.linear.kinds.contract import Contract
from pushforward.linear.kinds.convolve import Convolve
from pushforward.linear.kinds.general import General, Resampling
from pushforward.linear.kinds.transposed import Transposed
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.tables import table
from pushforward.sparse.digits import reshaped
from pushforward.sparse.gathering import gathered, scattered
from pushforward.sparse.index import Index
from pushforward.sparse.moving import placed, selected, sliced
from pushforward.sparse.products import summed_product, times
from pushforward.sparse.symbolic import Symbolic
from pushforward.sparse.term import Term
from pushforward.sparse.window import window

MAX_LOCAL = 2**27  # entries of the Jacobian of one operator that mixes all of an axis


def push_contract(term: Term, linear_map: Contract, symbolic: Symbolic) -> list[Term]:
    """Push through a contraction with a constant."""
    return [
        contracted(
            term,
            linear_map.in_letters,
            linear_map.const_letters,
            linear_map.out_letters,
            linear_map.const,
            symbolic,
        )
    ]


def pull_contract(term: Term, linear_map: Contract, symbolic: Symbolic) -> list[Term]:
    """Push through the transpose of a contraction."""
    const = linear_map.const
    const = torch.conj_physical(const) if const.is_complex() else const
    return [
        contracted(
            term,
            linear_map.out_letters,
            linear_map.const_letters,
            linear_map.in_letters,
            const,
            symbolic,
        )
    ]


def contracted(
    term: Term, ins: str, consts: str, outs: str, const: Tensor, symbolic: Symbolic
) -> Term:
    """Multiply by a constant and sum over the letters that are not in ``outs``."""
    sizes = dict(zip(consts, const.shape, strict=True))
    sizes.update(zip(ins, term.shape, strict=True))
    indices = dict(zip(ins, term.rows, strict=True))
    for letter in consts:
        if letter not in indices:
            indices[letter] = Index(0, ((len(term.lengths), 1),)) if sizes[letter] != 1 else Index()
            if sizes[letter] != 1:
                term = term.with_axis(sizes[letter])
    # In order before there are numbers.
    term = term.with_rows(list(indices.values()), tuple([sizes[c] for c in indices])).tidy()
    indices = dict(zip(indices, term.rows, strict=True))
    factor = window(const, [indices[c] for c in consts], term.lengths, symbolic)
    term = term.with_rows([indices[c] for c in outs], tuple([sizes[c] for c in outs]))
    return _summed_product(term, factor)


def _summed_product(term: Term, factor: Tensor) -> Term:
    """Multiply the values by ``factor``, and sum along axes that nothing follows."""
    values, lengths = term.values, term.lengths
    followed = {axis for index in (*term.rows, *term.cols) for axis in index.axes}
    if values.dtype != factor.dtype:
        dtype = torch.promote_types(values.dtype, factor.dtype)
        values, factor = values.to(dtype), factor.to(dtype)
    gone = {
        a
        for a in range(len(lengths))
        if a not in followed and values.shape[a] != 1 and factor.shape[a] != 1
    }
    if not gone:
        return term.with_values(times(values, factor))
    found = summed_product(values, factor, gone)
    new_lengths = tuple([1 if a in gone else n for a, n in enumerate(lengths)])
    return dataclasses.replace(term, values=found, lengths=new_lengths)


def push_convolve(term: Term, linear_map: Convolve, symbolic: Symbolic) -> list[Term]:
    """Push through a convolution: a term for each tap."""
    return list(_taps(term, linear_map, linear_map.weight, linear_map.transposed, symbolic))


def pull_convolve(term: Term, linear_map: Convolve, symbolic: Symbolic) -> list[Term]:
    """Push through the transpose of a convolution."""
    weight = linear_map.weight
    weight = torch.conj_physical(weight) if weight.is_complex() else weight
    return list(_taps(term, linear_map, weight, not linear_map.transposed, symbolic))


def _taps(
    term: Term, linear_map: Convolve, weight: Tensor, transposed: bool, symbolic: Symbolic
) -> Iterator[Term]:
    """Yield a term for each tap: a product of matrices among the channels, and a window of space, shifted.

    Products come first, of all taps in one, unless windows take few of the positions.
    """
    is_forward = transposed == linear_map.transposed
    shape = linear_map.out_shape if is_forward else linear_map.in_shape
    groups, kernel = linear_map.groups, weight.shape[2:]
    grouped = reshaped(
        term, (term.shape[0], groups, term.shape[1] // groups, *term.shape[2:]), symbolic
    )
    # (taps, groups, out, in), the other way round where transposed
    matrices = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).movedim(-1, 0)
    space = string.ascii_lowercase[5 : 5 + len(kernel)]
    letters = ("bdc" if transposed else "bcd"), f"abc{space}"
    is_joint = transposed or all(step == 1 for step in linear_map.stride)
    if is_joint:
        ins, outs = f"abd{space}", f"e{letters[1]}"
        grouped = contracted(grouped, ins, f"e{letters[0]}", outs, matrices, symbolic).tidy()
    for number, tap in enumerate(itertools.product(*[range(k) for k in kernel])):
        moved = selected(grouped, 0, number, symbolic) if is_joint else grouped
        for axis, place in enumerate(tap):
            if moved is None:
                break
            stride = linear_map.stride[axis]
            start = place * linear_map.dilation[axis] - linear_map.padding[axis]
            size = shape[2 + axis]
            if transposed:
                whole = placed(moved, 3 + axis, start, stride, size, symbolic)
                moved = sliced(whole, 3 + axis, 0, 1, size, symbolic)
            else:
                moved = sliced(moved, 3 + axis, start, stride, size, symbolic)
        if moved is None:
            continue
        if not is_joint:
            ins, outs = f"abd{space}", letters[1]
            moved = contracted(moved, ins, letters[0], outs, matrices[number], symbolic)
        yield reshaped(moved.tidy(), shape, symbolic)


def push_general(term: Term, linear_map: AbstractLinearMap, symbolic: Symbolic) -> list[Term]:
    """Push through the map's own Jacobian, dense along the axes that it mixes."""
    of = linear_map.of if isinstance(linear_map, Transposed) else linear_map
    kept: set[int] = set()
    if isinstance(of, General) and of.factors is not None:
        return _resampled(term, linear_map, of.factors, symbolic)
    if isinstance(of, General):
        kept = {i for i, _ in of.kept}
        mixed = math.prod(n for i, n in enumerate(of.in_shape) if i not in kept)
        if mixed * math.prod(of.out_shape) > MAX_LOCAL:
            raise UnsupportedError(
                message(
                    "sparse jacobian",
                    "an operator that mixes all of an axis",
                    f"{mixed} × {math.prod(of.out_shape)} entries of its own",
                    f"at most {MAX_LOCAL}",
                    "Write it by operators that mix fewer elements, or ask for products with jvp and vjp.",
                )
            )
    if isinstance(linear_map, General) and linear_map.uniform and len(kept) == len(of.in_shape):
        return [_applied(term, linear_map)]
    shape, dtype = linear_map.in_shape, term.values.dtype
    along_real = _local(linear_map, identity_like(shape, term.values))
    if not dtype.is_complex:
        return push_contract(term, along_real, symbolic)
    # R-linear, so that J v = A v + B conj v, where (A + B) and i (A − B) are the derivatives along 1 and i.
    unit = identity_like(shape, term.values)
    along_imaginary = _local(linear_map, unit.scale(1j))
    straight = (along_real.const - 1j * along_imaginary.const) / 2
    crossed = (along_real.const + 1j * along_imaginary.const) / 2
    conjugate = term.with_values(term.values.conj().resolve_conj())
    return [
        *push_contract(term, dataclasses.replace(along_real, const=straight), symbolic),
        *push_contract(conjugate, dataclasses.replace(along_real, const=crossed), symbolic),
    ]


def _resampled(
    term: Term,
    linear_map: AbstractLinearMap,
    factors: Callable[[], list[Resampling]],
    symbolic: Symbolic,
) -> list[Term]:
    """Push through a map that is one along each of several axes: a term for each input of an output."""
    if 0 in linear_map.out_shape:
        return []
    terms, is_transposed = [term], isinstance(linear_map, Transposed)
    for factor in symbolic.once(factors):
        axis, found = factor.axis, []
        for index, weight in zip(factor.index, factor.weight, strict=True):
            for given in terms:
                size = linear_map.out_shape[axis]
                shape = with_size(given.shape, axis, size)
                moved: Term | None = given
                if is_transposed:
                    given = _weighted(given, axis, weight, symbolic)
                    moved = scattered(given, index, (axis,), (axis,), shape, symbolic)
                else:
                    moved = gathered(given, index, (axis,), (axis,), shape, symbolic)
                    moved = moved and _weighted(moved, axis, weight, symbolic)
                if moved is not None:
                    found.append(moved.tidy())
        terms = found
    return terms


def _weighted(term: Term, axis: int, weight: Tensor, symbolic: Symbolic) -> Term:
    """Multiply by weights along one near axis."""
    same = symbolic.once(lambda: float(weight[0]) if bool((weight == weight[0]).all()) else None)
    if same is not None:
        return term.with_values(term.values * same)
    weight = table(weight).to(term.values.dtype)
    return term.with_values(
        term.values * window(weight, term.rows[axis : axis + 1], term.lengths, symbolic)
    )


def _local(linear_map: AbstractLinearMap, unit: Block) -> Contract:
    """Return the Jacobian of a map, dense along the axes that it mixes, as a contraction."""
    block = linear_map.push(unit)
    if block.seed_shape != linear_map.in_shape:
        block = block.to_structure(linear_map.in_shape, (None,) * len(linear_map.in_shape))
    found = as_map(block)
    assert isinstance(found, Contract)
    return found


def _applied(term: Term, linear_map: General) -> Term:
    """Push through a map that does the same at each position, and may add axes to it."""
    ndim = len(linear_map.in_shape)
    values = term.values
    flat = values.reshape((1, values.numel(), *(1,) * (ndim - 1)) if ndim else (values.numel(),))
    pushed = linear_map.push_seeds(flat)
    place = {j: i for i, j in linear_map.kept}
    new = [a for a in range(len(linear_map.out_shape)) if a not in place]
    sizes = [linear_map.out_shape[a] for a in new]
    order = [1 + a for a in range(len(linear_map.out_shape)) if a in place]
    pushed = pushed.permute(0, *order, *[1 + a for a in new]).reshape((*values.shape, *sizes))
    count = len(term.lengths)
    rows = [
        term.rows[place[a]] if a in place else Index(0, ((count + new.index(a), 1),))
        for a in range(len(linear_map.out_shape))
    ]
    term = Term(
        pushed,
        (*term.lengths, *sizes),
        term.rows,
        term.cols,
        term.shape,
        term.seed_shape,
        term.source,
    )
    return term.with_rows(rows, linear_map.out_shape)
