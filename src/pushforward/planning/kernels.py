"""Kernels: noted calls as one straight Python function, without what turned out to be nothing.

Which calls a sweep makes depends on shapes and structure alone. Made again without deciding anew, they also leave out
products with one, views that change nothing, what does not depend on the values, and results that nobody uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.planning.calls import MAKERS, Call, Ref, reached, refs_in, replaced
from pushforward.planning.noting import Noted, Rows, noted
from pushforward.planning.numbers import later
from pushforward.planning.sharing import Sharing, parted
from pushforward.planning.simplifying import (
    in_time,
    may_write,
    targets,
    with_added_products,
    with_stacks,
    with_vectors,
    without_negations,
    without_repetitions,
    without_units,
    without_unused,
)
from pushforward.planning.storage import are_plain, at_their_place, in_place, large_zeros
from pushforward.planning.viewing import without_views
from pushforward.tape.copies import num_bytes
from pushforward.tape.private_functorch import is_wrapped
from pushforward.tape.private_torch import without_frame
from pushforward.trees import is_differentiable

Replay = Callable[[Sequence[Any]], Rows]

_SIMPLIFYING = (
    without_repetitions,
    without_units,
    without_views,
    without_negations,
    with_stacks,
    with_vectors,
)

MIN_TAKEN_BYTES = 2**16  # of a value that is let go of before the end
MAX_CONSTANT_BYTES = 2**20  # of all that a kernel keeps instead of making it at each call


def written(
    values: Sequence[Any],
    compute: Callable[[], Rows],
    num_shared: int | None = None,
    device: torch.device | None = None,
) -> Replay | None:
    """Return the function of values like ``values`` that repeats ``compute()``; None if that depends on elements.

    Of many sweeps over one tape, the first ``num_shared`` values are the same. ``device`` is that of `noting.noted`.
    """
    found = noted(values, compute, device)
    return None if found is None else compiled(found, num_shared, len(values))


def compiled(found: Noted, num_shared: int | None = None, num_values: int = 0) -> Replay:
    """Return one Python function that makes the calls which are needed; two where autograd keeps what these share."""
    calls, rows, tensors = found.calls, found.rows, found.tensors
    for simplify in _SIMPLIFYING:
        calls, same = simplify(calls, refs_in(rows), tensors)
        rows = replaced(rows, same)
    calls = without_unused(calls, refs_in(rows))
    plain = are_plain(tensors)
    made_anew = large_zeros(calls, tensors) if plain else set()
    calls, constants = _without_constants(calls, refs_in(rows), tensors, made_anew)
    calls = without_unused(calls, refs_in(rows))
    numbers = later(calls, rows, constants, tensors) if plain else None
    calls = in_time(calls)
    calls = _with_dtypes(calls, tensors)
    calls = with_added_products(calls, refs_in(rows), tensors, is_followed=not plain)
    if plain:
        calls = at_their_place(calls, refs_in(rows), tensors)
        calls = in_place(calls, refs_in(rows), tensors)
    elif num_shared is not None:
        parts = parted(calls, rows, tensors, constants, num_shared, num_values)
        if parts is not None:
            first = _function(parts.first, [parts.shared], constants, tensors)
            return Sharing(first, _function(parts.rest, parts.rows, constants, parts.tensors))
    replay = _function(calls, rows, constants, tensors)
    return replay if numbers is None else numbers(replay)


def as_they_are(found: Noted) -> Replay:
    """Return one Python function that makes all the calls: where some write to what others read."""
    return _function(found.calls, found.rows, {}, found.tensors)


def _without_constants(
    calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor], made_anew: set[Ref]
) -> tuple[list[Call], dict[Ref, Tensor]]:
    """Leave out what no value has a part in; return those results, made once more, which the kernel keeps."""
    exposed = reached(calls, [*returned, *targets(calls)]) | made_anew
    constants: dict[Ref, Call] = {}
    left = MAX_CONSTANT_BYTES
    kept = []
    for call in calls:
        is_constant = (
            call.result not in exposed
            and not may_write(call)
            and (call.func in MAKERS or bool(call.refs))
            and all(ref.whole in constants for ref in call.refs)
        )
        example = tensors.get(call.result)
        if is_constant and example is not None and _is_keepable(example, left):
            left -= num_bytes(example)
            constants[call.result] = call
        else:
            kept.append(call)
    made: dict[Ref, Tensor] = {}

    def make(ref: Ref) -> Tensor:
        if ref not in made:
            call = constants[ref]
            given: Any = {each: make(each) for each in call.refs}
            kwargs = {name: replaced(value, given) for name, value in call.kwargs.items()}
            made[ref] = call.func(*replaced(call.args, given), **kwargs)
        return made[ref]

    with torch._C.DisableTorchFunction():  # modes of recordings around have no part in it
        used = {ref for call in kept for ref in call.refs if ref in constants}
        return kept, {ref: make(ref) for ref in used}


def _is_keepable(tensor: Tensor, left: int) -> bool:
    """Tell whether a kernel may hold a constant: a small plain tensor."""
    return (
        type(tensor) is Tensor
        and not (is_wrapped(tensor) or tensor.requires_grad)
        and tensor.layout is torch.strided
        and tensor.nbytes <= left
    )


def _with_dtypes(calls: list[Call], tensors: dict[Ref, Tensor]) -> list[Call]:
    """Copy values without axes where nothing of a floating dtype is computed with: in ``x / 3.0`` a number is saved.

    Numbers have no dtype of their own: a product of two, or with a mask, has the default dtype. Copies have one.
    """
    numbers = {r for r, t in tensors.items() if r.is_value and is_differentiable(t) and not t.dim()}
    first = 1 + max((call.result.number for call in calls), default=0)
    copies: dict[Ref, Ref] = {}
    kept = []
    for call in calls:
        found = numbers.intersection(call.refs) if numbers and call.func is not Tensor.to else None
        if found and all(r in numbers or not is_differentiable(tensors.get(r)) for r in call.refs):
            for ref in found - copies.keys():
                copies[ref] = copy = Ref(first + len(copies), False)
                tensors[copy] = tensors[ref]
                kept.append(Call(Tensor.clone, (ref,), {}, copy, [ref]))
            call = call.renamed(copies)
        kept.append(call)
    return kept


def _function(
    calls: list[Call], rows: Any, constants: dict[Ref, Tensor], tensors: dict[Ref, Tensor]
) -> Replay:
    """Return the calls as one Python function, which takes large values out of the list that it is given.

    They may live on elsewhere; where they do not, they are gone once they are not needed any more.
    """
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
    taken = _taken(calls, rows, tensors)
    lines = ["def replay(v):", *(f"    v[{n}] = None" for n, i in taken.items() if i < 0)]
    for i, call in enumerate(calls):
        arguments = [source(a) for a in call.args]
        arguments += [f"{name}={source(a)}" for name, a in call.kwargs.items()]
        func = call.func
        func = without_frame(func) if isinstance(func, torch._ops.OpOverload) else func
        lines.append(f"    t{call.result.number} = {source(func)}({', '.join(arguments)})")
        used = {ref.number for ref in call.refs if ref.is_value}
        ended = {r.number for r in call.refs if not r.is_value and last.get(r.number) == i}
        if ended:
            lines.append(f"    del {', '.join(f't{n}' for n in sorted(ended))}")
        lines += [f"    v[{n}] = None" for n in sorted(used) if taken.get(n) == i]
    lines.append(f"    return {source(rows)}")
    text = "\n".join(lines)
    exec(text, scope)  # the source is ours alone
    replay: Replay = scope["replay"]
    replay.__doc__ = text
    return replay


def _taken(calls: list[Call], rows: Any, tensors: dict[Ref, Tensor]) -> dict[int, int]:
    """Return after which call a large value is not needed, by its number: after -1 where no call needs it.

    If there are such values, also the nodes, which hold what they saved, are let go of where no call needs them.
    """
    values = [(ref, tensors[ref]) for ref in tensors if ref.is_value]
    large = {r.number for r, t in values if r.place is None and num_bytes(t) >= MIN_TAKEN_BYTES}
    if not large:
        return {}
    large.update(ref.number for ref, _ in values if ref.place is not None)
    last = dict.fromkeys(sorted(large), -1)
    for i, call in enumerate(calls):
        last.update({r.number: i for r in call.refs if r.is_value and r.number in large})
    for ref in refs_in(rows):
        if ref.is_value:
            last.pop(ref.number, None)
    return last
