"""Simplifying: fewer calls with the same results, where nobody can tell the difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pushforward.planning.calls import (
    NEGATIONS,
    PRODUCTS,
    SUMS,
    VIEWS,
    Call,
    Ref,
    num_uses,
    only_read,
    reached,
)

# The calls left, and what stands for the results of the others.
Simplified = tuple[list[Call], dict[Ref, Ref]]


def without_repetitions(
    calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]
) -> Simplified:
    """Leave out calls that were made before with the same arguments, unless the caller gets their results."""
    del tensors
    written_to = reached(calls, [*returned, *targets(calls)])
    before: dict[Any, Ref] = {}
    parts = _parts(calls)
    same: dict[Ref, Ref] = {}
    kept = []
    for call in calls:
        renamed = call.renamed(same)
        if call.is_harmless and call.result not in written_to:
            key = _hashable((renamed.func, renamed.args, tuple(renamed.kwargs.items())))
            if key in before:
                new = same[call.result] = before[key]
                for part in parts.get(call.result, ()):
                    same[part] = Ref(new.number, new.is_value, part.place)
                continue
            before[key] = call.result
        kept.append(renamed)
    return kept, same


def _parts(calls: list[Call]) -> dict[Ref, set[Ref]]:
    """Return which parts of results that are tuples are used."""
    parts: dict[Ref, set[Ref]] = {}
    for call in calls:
        for ref in call.refs:
            if ref.place is not None:
                parts.setdefault(ref.whole, set()).add(ref)
    return parts


def targets(calls: list[Call]) -> list[Ref]:
    """Return what calls may write to."""
    return [ref for call in calls if may_write(call) for ref in call.refs]


def may_write(call: Call) -> bool:
    """Tell whether a call may write to its arguments."""
    if isinstance(call.func, torch._ops.OpOverload):
        return bool(call.func._schema.is_mutable)
    name = getattr(call.func, "__name__", "_")
    is_in_place = name.endswith("_") and not name.endswith("__")
    is_assignment = name == "__setitem__" or (name.startswith("__i") and name != "__invert__")
    return is_in_place or is_assignment or "out" in call.kwargs


def _hashable(tree: Any) -> Any:
    if type(tree) in (tuple, list):
        return (type(tree), *map(_hashable, tree))
    if type(tree) is slice:
        return (slice, tree.start, tree.stop, tree.step)
    try:
        hash(tree)
    except TypeError:
        return (type(tree), id(tree))
    return (type(tree), tree) if not isinstance(tree, float) else (float, repr(tree))


def without_units(calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]) -> Simplified:
    """Leave out products with ones, where nobody can tell whether the result is the other factor itself."""
    read, read_or_returned = only_read(calls, returned), only_read(calls, [])
    exposed = reached(calls, [*returned, *targets(calls)])
    fresh = {call.result for call in calls if call.is_fresh} & read
    units = _units(calls)
    same: dict[Ref, Ref] = {}
    kept = []
    for call in calls:
        refs = call.refs
        is_product = call.func in PRODUCTS and call.is_fresh and len(refs) == 2
        if is_product and not units.isdisjoint(refs):
            factor = refs[1] if refs[0] in units else refs[0]
            factor = same.get(factor, factor)
            old, new = tensors[factor], tensors[call.result]
            is_hidden = (
                call.result in read
                or call.result not in exposed
                or (call.result in read_or_returned and factor in fresh)
            )
            if is_hidden and old.shape == new.shape and old.dtype is new.dtype:
                same[call.result] = factor
                if call.result not in read and call.result in exposed:
                    fresh.discard(factor)  # it is returned now
                continue
        kept.append(call.renamed(same))
    return kept, same


def order_of(call: Call, tensors: dict[Ref, Tensor]) -> tuple[int, ...] | None:
    """Return the order of the axes that a call makes; None if it does something else."""
    if call.kwargs or not call.refs:
        return None
    given: Any = call.args[1:]
    if call.func is Tensor.t:
        given = (1, 0) if tensors[call.result].dim() == 2 else ()
    elif call.func is not Tensor.permute:
        return None
    elif len(given) == 1 and not isinstance(given[0], int):
        given = tuple(given[0])
    dim = tensors[call.result].dim()
    return tuple(i % dim for i in given) if len(given) == dim else None


def without_negations(
    calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]
) -> Simplified:
    """Subtract what is negated and then added, and nothing else."""
    del tensors
    uses = num_uses(calls, returned)
    negated = {
        call.result: call
        for call in calls
        if call.func in NEGATIONS and len(call.args) == 1 and uses[call.result] == 1
    }
    kept = []
    for call in calls:
        if call.func in SUMS and len(call.refs) == len(call.args) == 2 and not call.kwargs:
            first, second = call.args
            if second in negated:
                refs = [first, negated.pop(second).refs[0]]
                call = Call(torch.sub, tuple(refs), {}, call.result, refs)
            elif first in negated:
                refs = [second, negated.pop(first).refs[0]]
                call = Call(torch.sub, tuple(refs), {}, call.result, refs)
        kept.append(call)
    return kept, {}


def _units(calls: list[Call]) -> set[Ref]:
    """Return what is one everywhere, and stays so: ones and their views, if none of them may be written to."""
    units: set[Ref] = set()
    for call in calls:
        if call.func is torch.ones or (call.func in VIEWS and call.refs and call.refs[0] in units):
            units.add(call.result)
        elif may_write(call) and not units.isdisjoint(call.refs):
            return set()
    return units


def with_stacks(calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]) -> Simplified:
    """Stack what gets a new axis to be joined along it; and at once along the axis where it is to be in the end."""
    del tensors
    uses = num_uses(calls, returned)
    made = {call.result: call for call in calls if uses[call.result] == 1}
    kept = []
    for call in calls:
        if call.func is torch.cat and not call.kwargs and len(call.args) == 2:
            call = _stack(call, made)
        elif call.func is Tensor.permute and call.args[1:] in (((1, 0),), (1, 0)):
            call = _transposed_stack(call, made)
        if call.result in made:
            made[call.result] = call
        kept.append(call)
    return kept, {}


def _stack(call: Call, made: dict[Ref, Call]) -> Call:
    parts, dim = call.args
    sources: list[Any] = []
    for part in parts:
        maker = made.get(part) if isinstance(part, Ref) else None
        if maker is None or maker.func is not Tensor.unsqueeze or maker.args[1:] != (dim,):
            return call
        sources.append(maker.args[0])
    return Call(torch.stack, (sources, dim), {}, call.result, [*sources])


def _transposed_stack(call: Call, made: dict[Ref, Call]) -> Call:
    stack = made.get(call.args[0]) if isinstance(call.args[0], Ref) else None
    if stack is None or stack.func is not torch.stack or stack.kwargs:
        return call
    parts, dim = stack.args
    if dim not in (0, 1):
        return call
    return Call(torch.stack, (parts, 1 - dim), {}, call.result, [*parts])


def with_vectors(calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]) -> Simplified:
    """Multiply by vectors what is multiplied by matrices of one row, as ``linear`` of a vector does."""
    uses = num_uses(calls, returned)
    made: dict[Ref, Call] = {}
    kept = []
    for call in calls:
        kept.append(_vector_product(call, made, uses, tensors))
        made[call.result] = kept[-1]
    return kept, {}


def _vector_product(
    call: Call, made: dict[Ref, Call], uses: Mapping[Ref, int], tensors: dict[Ref, Tensor]
) -> Call:
    if call.func is torch.mm and not call.kwargs and tensors[call.refs[0]].shape[1] == 1:
        return Call(Tensor.mul, call.args, {}, call.result, call.refs)
    product = made.get(call.refs[0]) if call.func is Tensor.reshape and call.refs else None
    if product is None or product.func is not torch.mm or uses[product.result] > 1:
        return call
    row, matrix = product.args
    reshape, transpose = made.get(row), made.get(matrix)
    if reshape is None or reshape.func is not Tensor.reshape:
        return call
    if transpose is None or transpose.func is not Tensor.t:
        return call
    vector, source = reshape.refs[0], transpose.refs[0]
    if tensors[vector].dim() != 1 or tensors[call.result].dim() != 1 or tensors[row].shape[0] != 1:
        return call
    return Call(torch.mv, (source, vector), {}, call.result, [source, vector])


def with_added_products(
    calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor], is_followed: bool
) -> list[Call]:
    """Add a product in one call with making it, where nothing else is done with it.

    Not by a number where autograd follows: its slope is made of numbers alone, and they have the default dtype.
    """
    values = [t for ref, t in tensors.items() if ref.is_value and isinstance(t, Tensor)]
    if any(may_write(call) for call in calls) or len({t.device for t in values}) > 1:
        return calls
    uses = num_uses(calls, returned)
    products: dict[Ref, Call] = {}
    merged: set[Ref] = set()
    kept = []
    for call in calls:
        if not call.kwargs and len(call.refs) == len(call.args) == 2:
            is_by_number = any(not tensors[ref].dim() for ref in call.refs)
            is_product = call.func in PRODUCTS and not (is_followed and is_by_number)
            if is_product and uses[call.result] == 1 and _is_light(call):
                products[call.result] = call
            elif call.func in SUMS:
                call = _with_product(call, products, tensors, merged)
        kept.append(call)
    return [call for call in kept if call.result not in merged]


def _is_light(product: Call) -> bool:
    """Tell whether no more memory is held if a product is made later: one factor is there until the end anyway."""
    return any(ref.is_value for ref in product.refs)


def _with_product(
    total: Call, products: dict[Ref, Call], tensors: dict[Ref, Tensor], merged: set[Ref]
) -> Call:
    """Return a sum that makes one of its terms."""
    dtype = tensors[total.result].dtype
    if not (dtype.is_floating_point or dtype.is_complex):
        return total
    for term, other in (total.refs[::-1], total.refs):
        product = products.get(term)
        if product is not None:
            refs = [other, *product.refs]
            if all(tensors[ref].dtype is dtype for ref in refs):
                merged.add(term)
                return Call(torch.addcmul, tuple(refs), {}, total.result, refs)
    return total


def without_unused(calls: list[Call], returned: list[Ref]) -> list[Call]:
    """Leave out results that nobody uses; all calls stay where one might write to its arguments."""
    needed = {ref.number for ref in returned if not ref.is_value}
    kept = []
    for call in reversed(calls):
        if call.result.number in needed or not call.is_harmless:
            kept.append(call)
            needed.update(ref.number for ref in call.refs if not ref.is_value)
    return kept[::-1]


def in_time(calls: list[Call]) -> list[Call]:
    """Make what is made of the values alone right before it is used: a slope for each node is as much as the tape."""
    if any(may_write(call) for call in calls):
        return calls
    waiting: dict[int, Call] = {}
    ordered: list[Call] = []

    def make(call: Call) -> None:
        for ref in call.refs:
            if not ref.is_value and ref.number in waiting:
                make(waiting.pop(ref.number))
        ordered.append(call)

    for call in calls:
        if call.is_fresh and call.refs and all(ref.is_value for ref in call.refs):
            waiting[call.result.number] = call
        else:
            make(call)
    return ordered + list(waiting.values())  # the last are returned
