"""Where kernels put their results: over temporaries that are done with, and at once where they stand in the end.

Only where all tensors are plain: autograd would hold on to temporaries, and knows no ``out``, as dual numbers do not.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.differentiated import has_duals
from pushforward.planning.calls import (
    MAKERS,
    PLAIN,
    PRODUCTS,
    SUMS,
    Call,
    Ref,
    functions,
    num_uses,
    only_read,
)
from pushforward.planning.simplifying import order_of
from pushforward.tape.copies import num_bytes
from pushforward.tape.private_functorch import is_wrapped

_DIFFERENCES, _QUOTIENTS = functions("sub", "__sub__"), functions("div", "__truediv__")
_ADDING: dict[Any, Any] = {
    **dict.fromkeys(functions("index_add"), Tensor.index_add_),
    **dict.fromkeys(functions("scatter_add"), Tensor.scatter_add_),
}
# What may write over its first argument.
_IN_PLACE: dict[Any, Any] = {
    **dict.fromkeys(PRODUCTS, Tensor.mul_),
    **dict.fromkeys(SUMS, Tensor.add_),
    **dict.fromkeys(_DIFFERENCES, Tensor.sub_),
    **dict.fromkeys(_QUOTIENTS, Tensor.div_),
    **dict.fromkeys(functions("neg", "__neg__"), Tensor.neg_),
    **_ADDING,
    torch.addcmul: Tensor.addcmul_,
}
# Likewise, element by element: tangents or cotangents times a slope.
_SLOPES: dict[Any, Any] = {
    operator.default: operator.grad_input
    for name in (
        "elu", "gelu", "hardsigmoid", "hardtanh", "leaky_relu", "logit", "sigmoid", "silu", "softplus", "tanh",
        "threshold",
    )
    for operator in [getattr(torch.ops.aten, f"{name}_backward")]
}  # fmt: skip
# Of a temporary that is used for nothing else: as good as a new one.
_REARRANGING = functions(
    "permute", "reshape", "view", "t", "transpose", "movedim", "unsqueeze", "squeeze", "flatten", "unflatten",
)  # fmt: skip
# What may write to memory that is given, in any order of axes, for less than the copy takes that this saves.
_INTO: dict[Any, Any] = {
    **dict.fromkeys(PRODUCTS, torch.mul),
    **dict.fromkeys(SUMS, torch.add),
    **dict.fromkeys(_DIFFERENCES, torch.sub),
    torch.addcmul: torch.addcmul,
    torch.cat: torch.cat,
    torch.stack: torch.stack,
}
# Where pieces are joined, each takes 0.6 microseconds more: as long as a copy of so many bytes takes.
MIN_JOINED, MIN_JOINED_EACH = 2**18, 2**12
# Zeros of as many bytes are made in less time than they are copied.
MIN_ZEROS = 2**16


def are_plain(tensors: dict[Ref, Tensor]) -> bool:
    """Tell whether nobody but the kernel sees what it computes with."""
    is_recording = torch.is_grad_enabled()
    return not has_duals() and not any(
        isinstance(t, Tensor)
        and (type(t) not in PLAIN or is_wrapped(t) or (is_recording and t.requires_grad))
        for t in tensors.values()
    )


def large_zeros(calls: list[Call], tensors: dict[Ref, Tensor]) -> set[Ref]:
    """Return zeros that something is added to: a kernel makes them, and writes to them, and keeps none to copy."""
    added_to = [call.args[0] for call in calls if call.func in _ADDING and call.args]
    begun = {ref for ref in added_to if isinstance(ref, Ref)}
    zeros = {call.result for call in calls if call.func is torch.zeros} & begun
    return {ref for ref in zeros if ref in tensors and num_bytes(tensors[ref]) >= MIN_ZEROS}


def in_place(calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]) -> list[Call]:
    """Write over the first operand, where it is a temporary that is not needed any more."""
    calls = list(_with_makers_apart(calls, returned, tensors))
    read = only_read(calls, returned)
    last = {ref: i for i, call in enumerate(calls) for ref in call.refs}
    uses = num_uses(calls, returned)
    fresh: set[Ref] = set()
    for i, call in enumerate(calls):
        is_view = (
            call.func in _REARRANGING
            and bool(call.refs)
            and call.refs[0] in fresh
            and uses[call.refs[0]] == 1
        )
        if call.is_fresh or call.func in MAKERS or is_view:
            fresh.add(call.result)
        method = _IN_PLACE.get(call.func) or _SLOPES.get(call.func)
        is_given = bool(call.args) and isinstance(call.args[0], Ref)
        if method is not None and call.is_fresh and is_given:
            first = call.args[0]
            if first in fresh and first in read and last[first] == i and first not in call.args[1:]:
                old, new = tensors[first], tensors[call.result]
                if old.shape == new.shape and old.dtype is new.dtype:
                    if call.func in _SLOPES:
                        call.kwargs = {**call.kwargs, "grad_input": first}
                    call.func = method
    return calls


def _with_makers_apart(
    calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]
) -> Iterator[Call]:
    """Make tensors of no elements where they are used, and anew for each call that may write over them."""
    read = only_read(calls, returned)
    makers = {call.result: call for call in calls if call.func in MAKERS and call.result in read}
    waiting = dict(makers)
    last = {ref: i for i, call in enumerate(calls) for ref in call.refs}
    number = 1 + max((call.result.number for call in calls), default=0)
    for i, call in enumerate(calls):
        if call.result in makers:
            continue
        can_be = call.func in _IN_PLACE and call.is_fresh and bool(call.args)
        first = call.args[0] if can_be else None
        maker = makers.get(first) if isinstance(first, Ref) else None
        if maker is not None and last[maker.result] > i and call.refs.count(maker.result) == 1:
            own = Ref(number, False)
            number += 1
            tensors[own] = tensors[maker.result]
            yield Call(maker.func, maker.args, maker.kwargs, own, maker.refs)
            call = call.renamed({maker.result: own})
        for ref in call.refs:
            if ref in waiting:
                yield waiting.pop(ref)
        yield call


def at_their_place(
    calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]
) -> list[Call]:
    """Write what is only permuted and laid out anew where it stands in the end."""
    made = {call.result: call for call in calls}
    uses = num_uses(calls, returned)
    number = 1 + max((call.result.number for call in calls), default=0)
    instead: dict[Ref, list[Call]] = {}
    for call in calls:
        if call.func is not Tensor.contiguous or len(call.args) > 1 or call.kwargs:
            continue
        views = _views_before(call, made, uses)
        maker = made.get((views[0] if views else call).refs[0]) if views else None
        if maker is None or uses[maker.result] > 1:
            continue
        zeros = _zeros_before(maker, made, uses)
        new = _placed(maker, zeros, views, call, number, tensors)
        if new:
            number += len(new)
            instead |= {view.result: [] for view in views} | {call.result: [], maker.result: new}
            if zeros is not None:
                instead[zeros.result] = []
    return [new for call in calls for new in instead.get(call.result, (call,))]


def _views_before(call: Call, made: dict[Ref, Call], uses: collections.Counter[Ref]) -> list[Call]:
    """Return the permutation of which a call makes a copy, and the reshape before that, if there is one."""
    found: list[Call] = []
    for funcs in ((Tensor.permute, Tensor.t), (Tensor.reshape,)):
        view = made.get(call.refs[0])
        if view is not None and view.func in funcs and uses[view.result] == 1:
            found.insert(0, view)
            call = view
        elif not found:
            break
    return found


def _zeros_before(
    maker: Call, made: dict[Ref, Call], uses: collections.Counter[Ref]
) -> Call | None:
    """Return the call that makes the zeros to which a call adds, and nobody else does."""
    first = maker.args[0] if maker.func in _ADDING and maker.args else None
    zeros = made.get(first) if isinstance(first, Ref) else None
    is_lone = zeros is not None and zeros.func is torch.zeros and uses[zeros.result] == 1
    return zeros if is_lone else None


def _placed(
    maker: Call,
    zeros: Call | None,
    views: list[Call],
    copy: Call,
    number: int,
    tensors: dict[Ref, Tensor],
) -> list[Call]:
    """Return calls that make the result and write to it what ``maker`` makes; none where that does not pay."""
    order, function = order_of(views[-1], tensors), _INTO.get(maker.func)
    if order is None or (zeros is None and (function is None or not _pays(maker, tensors))):
        return []
    dtype = tensors[copy.result].dtype
    like = next((ref for ref in maker.refs if tensors[ref].dtype is dtype), None)
    if like is None:
        return []
    shape, own = tuple(tensors[copy.result].shape), tuple(tensors[maker.result].shape)
    back = tuple(order.index(i) for i in range(len(order)))
    whole, place = copy.result, Ref(number, False)
    found = [
        Call(Tensor.new_empty, (like, shape), {}, whole, [like])
        if zeros is None
        else Call(zeros.func, (shape,), zeros.kwargs, whole, []),
        Call(Tensor.permute, (whole, back), {}, place, [whole]),
    ]
    if len(views) > 1:
        try:
            torch.empty(shape, device="meta").permute(back).view(own)
        except RuntimeError:  # the reshape parts what is not side by side there
            return []
        place = Ref(number + 1, False)
        found.append(Call(Tensor.view, (found[-1].result, own), {}, place, [found[-1].result]))
    if zeros is not None:
        args = (place, *maker.args[1:])
        refs = [place, *[ref for ref in maker.refs if ref != zeros.result]]
        return [*found, Call(_ADDING[maker.func], args, maker.kwargs, maker.result, refs)]
    kwargs = {**maker.kwargs, "out": place}
    return [*found, Call(function, maker.args, kwargs, maker.result, [*maker.refs, place])]


def _pays(maker: Call, tensors: dict[Ref, Tensor]) -> bool:
    size = num_bytes(tensors[maker.result])
    if maker.func in (torch.cat, torch.stack):
        return size >= MIN_JOINED and size >= MIN_JOINED_EACH * len(maker.refs)
    if not isinstance(maker.args[0], Ref) or "out" in maker.kwargs:
        return False
    # Of two large temporaries one can be written over, and the other is gone when that is copied.
    large = {ref for ref in maker.refs if not ref.is_value and 2 * num_bytes(tensors[ref]) >= size}
    return len(large) <= 1
