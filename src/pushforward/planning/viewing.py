"""Viewing: fewer views with the same elements in the same order."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.planning.calls import VIEWS, Call, Ref, functions
from pushforward.planning.simplifying import Simplified, may_write
from pushforward.tape.private_torch import bare

_LOGICAL = VIEWS - functions("as_strided")  # views that do not depend on how tensors lie in memory
_PLAIN = (int, slice, type(None), type(...))


def without_views(calls: list[Call], returned: list[Ref], tensors: dict[Ref, Tensor]) -> Simplified:
    """View at once what is viewed again; not at all where that leads back."""
    if any(may_write(call) for call in calls):
        return calls, {}
    found, handed_over = _Arrangements(tensors), set(returned)
    same: dict[Ref, Ref] = {}
    kept = []
    with bare():  # places do not depend on what is computed
        for call in calls:
            call = call.renamed(same)
            if _is_view(call) and found.add(call):
                before = found.before(call.result)
                is_visible = call.result in handed_over
                if before is None or (is_visible and (before.is_value or before in handed_over)):
                    call = found.at_once(call)
                else:
                    same[call.result] = before
                    if is_visible:
                        handed_over.add(before)
                    continue
            kept.append(call)
    return kept, same


def _is_view(call: Call) -> bool:
    if call.func not in _LOGICAL or not call.args or call.refs != [call.args[0]]:
        return False
    return all(map(_is_plain, (*call.args[1:], *call.kwargs.values())))


def _is_plain(option: Any) -> bool:
    if isinstance(option, (tuple, list)):
        return all(map(_is_plain, option))
    return isinstance(option, _PLAIN)


class _Arrangements:
    """Which elements of which tensor views have.

    A tensor that is no view stands for its elements in order, however it lies in memory. Where they went is read off
    what the same views make of a tensor without memory.
    """

    def __init__(self, tensors: dict[Ref, Tensor]) -> None:
        self._tensors = tensors
        self._placed: dict[Ref, Tensor] = {}
        self._sources: dict[Ref, Ref] = {}  # of views
        self._copied: dict[Ref, Ref] = {}  # what was laid out anew to be reshaped
        self._first: dict[Hashable, Ref] = {}  # by the elements

    def add(self, view: Call) -> bool:
        """Note a view, and tell whether it is one: to reshape what does not lie side by side is to copy it."""
        source, result = view.refs[0], view.result
        if source not in self._placed:
            placed = torch.empty(self._tensors[source].shape, device="meta")
            self._placed[source] = placed
            self._first[_elements(source, placed)] = source
        try:
            made = view.func(self._placed[source], *view.args[1:], **view.kwargs)
        except RuntimeError:  # ``view`` of what lies otherwise than in order
            return False
        if not isinstance(made, Tensor):
            return False
        if _memory(made) != _memory(self._placed[source]):
            if view.func is Tensor.reshape:
                self._copied[result] = source
            return False
        self._placed[result], self._sources[result] = made, source
        return True

    def before(self, result: Ref) -> Ref | None:
        """Return what has the elements of a view in the same order, if anything had them before."""
        root, made = self._chain(result)[-1], self._placed[result]
        origin = self._origin(result)
        if origin is not None and self._tensors[origin].shape == made.shape:
            return origin
        first = self._first.setdefault(_elements(root, made), result)
        return None if first is result else first

    def at_once(self, view: Call) -> Call:
        """Return one call that does what several views do, if there is one."""
        made, origin = self._placed[view.result], self._origin(view.result)
        if origin is not None:
            return _call(Tensor.reshape, origin, made.shape, view)
        for earlier in reversed(self._chain(view.result)[2:]):
            placed = self._placed[earlier]
            if _is_reshaped(placed, made):
                return _call(Tensor.reshape, earlier, made.shape, view)
            order = _order(placed, made)
            if order is not None:
                return _call(Tensor.permute, earlier, order, view)
        return view

    def _chain(self, ref: Ref) -> list[Ref]:
        """Return a view, what it is a view of, and so on."""
        found = [ref]
        while found[-1] in self._sources:
            found.append(self._sources[found[-1]])
        return found

    def _origin(self, result: Ref) -> Ref | None:
        """Return what was copied to be reshaped, and then reshaped to ``result``."""
        root, made = self._chain(result)[-1], self._placed[result]
        is_whole = made.is_contiguous() and made.numel() == self._placed[root].numel()
        return self._copied.get(root) if is_whole else None


def _call(func: Any, source: Ref, sizes: Sequence[int], view: Call) -> Call:
    return Call(func, (source, tuple(sizes)), {}, view.result, [source])


def _memory(placed: Tensor) -> int:
    memory: int = placed.untyped_storage()._cdata
    return memory


def _strides(placed: Tensor) -> list[tuple[int, int]]:
    """Return the size and the stride of each axis; a stride along which nothing can move is none."""
    pairs = zip(placed.shape, placed.stride(), strict=True)
    return [(n, step if n > 1 else 0) for n, step in pairs]


def _elements(root: Ref, placed: Tensor) -> Hashable:
    return root, placed.storage_offset(), *_strides(placed)


def _is_reshaped(before: Tensor, after: Tensor) -> bool:
    if before.numel() != after.numel():
        return False
    made = before.reshape(after.shape)
    is_view = _memory(made) == _memory(after) and made.storage_offset() == after.storage_offset()
    return is_view and _strides(made) == _strides(after)


def _order(before: Tensor, after: Tensor) -> list[int] | None:
    """Return how axes were permuted; None if something else was done."""
    if before.dim() != after.dim() or before.storage_offset() != after.storage_offset():
        return None
    left = dict(enumerate(_strides(before)))
    order = []
    for axis in _strides(after):
        place = next((i for i, found in left.items() if found == axis), None)
        if place is None:
            return None
        order.append(place)
        del left[place]
    return order
