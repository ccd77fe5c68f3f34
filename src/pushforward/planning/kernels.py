"""Kernels: noted calls as one straight Python function, without what turned out to be nothing.

Which calls a sweep makes depends on shapes and structure alone. Made again without deciding anew, they also leave out
products with one, views that change nothing, what does not depend on the values, and results that nobody uses.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.planning.calls import (
    MAKERS,
    NEGATIONS,
    PLAIN,
    PRODUCTS,
    SUMS,
    VIEWS,
    Call,
    Ref,
    only_read,
    reached,
    refs_in,
    replaced,
)
from pushforward.planning.noting import Noted, Rows, noted
from pushforward.tape.private_torch import is_wrapped

Replay = Callable[[Sequence[Any]], Rows]

MAX_CONSTANT_BYTES = 2**20  # of a tensor that a kernel keeps instead of making it at each call


def written(values: Sequence[Any], compute: Callable[[], Rows]) -> Replay | None:
    """Return the function of values like ``values`` that repeats ``compute()``; None if that depends on elements."""
    found = noted(values, compute)
    return None if found is None else compiled(found)


def compiled(found: Noted) -> Replay:
    """Return one Python function that makes the calls which are needed."""
    calls, rows, tensors = found.calls, found.rows, found.tensors
    for simplify in (_without_repetitions, _without_units, _without_reshapes, _without_negations):
        calls, same = simplify(calls, refs_in(rows), tensors)
        rows = replaced(rows, same)
    calls = _without_unused(calls, refs_in(rows))
    calls, constants = _without_constants(calls, refs_in(rows), tensors)
    calls = _without_unused(calls, refs_in(rows))
    calls = _in_place(calls, refs_in(rows), tensors)
    return _function(calls, rows, constants)


Simplified = tuple[
    list[Call], dict[Ref, Ref]
]  # the calls left, and what stands for the results of the others


def _without_repetitions(
    calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]
) -> Simplified:
    """Leave out calls that were made before with the same arguments, unless the caller gets their results."""
    del tensors
    written_to = reached(calls, [*returned, *_targets(calls)])
    before: dict[Any, Ref] = {}
    same: dict[Ref, Ref] = {}
    kept = []
    for call in calls:
        renamed = call.renamed(same)
        if call.is_harmless and call.result not in written_to:
            key = _hashable((renamed.func, renamed.args, tuple(renamed.kwargs.items())))
            if key in before:
                same[call.result] = before[key]
                same.update(_parts(call.result, before[key], calls))
                continue
            before[key] = call.result
        kept.append(renamed)
    return kept, same


def _parts(old: Ref, new: Ref, calls: list[Call]) -> dict[Ref, Ref]:
    """Return what stands for the parts of a result that is a tuple."""
    parts = {
        ref for call in calls for ref in call.refs if ref.place is not None and ref.whole == old
    }
    return {ref: Ref(new.number, new.is_value, ref.place) for ref in parts}


def _targets(calls: list[Call]) -> list[Ref]:
    """Return what calls may write to."""
    return [ref for call in calls if _may_write(call) for ref in call.refs]


def _may_write(call: Call) -> bool:
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


def _without_units(
    calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]
) -> Simplified:
    """Leave out products with ones, where nobody can tell whether the result is the other factor itself."""
    read, read_or_returned = only_read(calls, returned), only_read(calls, [])
    exposed = reached(calls, [*returned, *_targets(calls)])
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


def _without_reshapes(
    calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]
) -> Simplified:
    """Reshape once where a reshaped tensor is reshaped again; not at all where that leads back."""
    del returned
    before: dict[Ref, Call] = {}
    same: dict[Ref, Ref] = {}
    kept = []
    for call in calls:
        renamed = call.renamed(same)
        if renamed.func is Tensor.reshape and renamed.refs:
            inner = before.get(renamed.refs[0])
            if inner is not None:
                source = inner.refs[0]
                if tensors[source].shape == tensors[call.result].shape:
                    same[call.result] = source
                    continue
                renamed = Call(
                    Tensor.reshape, (source, *renamed.args[1:]), {}, renamed.result, [source]
                )
            before[call.result] = renamed
        kept.append(renamed)
    return kept, same


def _without_negations(
    calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]
) -> Simplified:
    """Subtract what is negated and then added, and nothing else."""
    del tensors
    uses = collections.Counter(ref for call in calls for ref in call.refs)
    uses.update(returned)
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
        elif _may_write(call) and not units.isdisjoint(call.refs):
            return set()
    return units


def _without_unused(calls: list[Call], returned: list[Ref]) -> list[Call]:
    """Leave out results that nobody uses; all calls stay where one might write to its arguments."""
    needed = {ref.number for ref in returned if not ref.is_value}
    kept = []
    for call in reversed(calls):
        if call.result.number in needed or not call.is_harmless:
            kept.append(call)
            needed.update(ref.number for ref in call.refs if not ref.is_value)
    return kept[::-1]


def _without_constants(
    calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]
) -> tuple[list[Call], dict[Ref, Tensor]]:
    """Leave out what no value has a part in; return those results, which the kernel keeps."""
    exposed = reached(calls, [*returned, *_targets(calls)])
    constants: set[Ref] = set()
    kept = []
    for call in calls:
        is_constant = (
            call.result not in exposed
            and not _may_write(call)
            and (call.func in MAKERS or bool(call.refs))
            and all(ref.whole in constants for ref in call.refs)
        )
        if is_constant and _is_keepable(tensors.get(call.result)):
            constants.add(call.result)
        else:
            kept.append(call)
    used = {ref for call in kept for ref in call.refs if ref.whole in constants}
    return kept, {ref: tensors[ref] for ref in used}


def _is_keepable(tensor: Tensor | None) -> bool:
    """Tell whether a kernel may hold a constant: a small plain tensor."""
    return (
        type(tensor) is Tensor
        and not is_wrapped(tensor)
        and not tensor.requires_grad
        and tensor.untyped_storage().nbytes() <= MAX_CONSTANT_BYTES
    )


def _in_place(calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]) -> list[Call]:
    """Write products and sums over their first operand, where it is a temporary that is not needed any more.

    Only where all tensors are plain: autograd would hold on to temporaries.
    """
    is_recording = torch.is_grad_enabled()
    if any(
        isinstance(t, Tensor)
        and (type(t) not in PLAIN or is_wrapped(t) or (is_recording and t.requires_grad))
        for t in tensors.values()
    ):
        return calls
    read = only_read(calls, returned)
    last = {ref: i for i, call in enumerate(calls) for ref in call.refs}
    fresh: set[Ref] = set()
    for i, call in enumerate(calls):
        if call.is_fresh:
            fresh.add(call.result)
        method = (
            Tensor.mul_ if call.func in PRODUCTS else Tensor.add_ if call.func in SUMS else None
        )
        if method is not None and call.is_fresh and isinstance(call.args[0], Ref):
            first = call.args[0]
            if first in fresh and first in read and last[first] == i and first not in call.args[1:]:
                old, new = tensors[first], tensors[call.result]
                if old.shape == new.shape and old.dtype is new.dtype:
                    call.func = method
    return calls


def _function(calls: list[Call], rows: Any, constants: dict[Ref, Tensor]) -> Replay:
    """Return the calls as one Python function."""
    scope: dict[str, Any] = {}
    names: dict[Ref, str] = {}
    by_id: dict[int, str] = {}

    def constant(value: Any) -> str:
        name = by_id.setdefault(id(value), f"c{len(scope)}")
        scope[name] = value
        return name

    for ref, tensor in constants.items():
        names[ref] = constant(tensor)

    def source(tree: Any) -> str:
        if isinstance(tree, Ref):
            return names.get(tree, tree.source)
        if type(tree) in (tuple, list):
            items = "".join(f"{source(item)}, " for item in tree)
            return f"({items})" if type(tree) is tuple else f"[{items}]"
        if type(tree) in (int, bool, str, type(None)):
            return repr(tree)
        return constant(tree)

    last = {
        ref.number: i
        for i, call in enumerate(calls)
        for ref in call.refs
        if not ref.is_value and ref not in names
    }
    for ref in refs_in(rows):
        last.pop(ref.number, None)
    lines = ["def replay(v):"]
    for i, call in enumerate(calls):
        arguments = [source(a) for a in call.args]
        arguments += [f"{name}={source(a)}" for name, a in call.kwargs.items()]
        lines.append(f"    t{call.result.number} = {source(call.func)}({', '.join(arguments)})")
        ended = {r.number for r in call.refs if not r.is_value and last.get(r.number) == i}
        if ended:
            lines.append(f"    del {', '.join(f't{n}' for n in sorted(ended))}")
    lines.append(f"    return {source(rows)}")
    text = "\n".join(lines)
    exec(text, scope)  # the source is ours alone
    replay: Replay = scope["replay"]
    replay.__doc__ = text
    return replay
