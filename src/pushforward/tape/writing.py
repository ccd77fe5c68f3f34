"""In-place operators, assignments and ``out=``, as the function calls them.

A write through a view leaves a node that tells nothing, so it is carried out as a copy into the view, whose place is
remembered. What the writes overwrite is kept where a node may have saved it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pushforward.tape.copies import apart_from, base_of, is_data
from pushforward.tape.in_place import COUNTED_TWICE, SAVING_NOTHING
from pushforward.tape.overwritten import Write, kept
from pushforward.tape.private_functorch import (
    add_batch_axis,
    batch_axis_at,
    functorch_level,
    is_functionalized,
    level_of,
    unwrapped,
    without_functorch,
    wrappers,
)
from pushforward.tape.private_torch import (
    Node,
    is_one_of_several,
    is_plain_view,
    next_sequence_number,
    num_function_modes,
    num_holders,
    sequence_number,
)
from pushforward.tape.reader import Geometry
from pushforward.tape.stores import part_of
from pushforward.trees import map_tensors

Taken = dict[int, tuple[Tensor, Tensor]]  # views, and the same taken anew, by id

COPY = Tensor.copy_


class Writes:
    """What is to be known of the writes of one run."""

    __slots__ = (
        "_first", "_own", "_reached", "again", "geometries", "has_helped", "has_views", "kept", "level", "originals",
        "written",
    )  # fmt: skip

    def __init__(self, level: int) -> None:
        """Start; tensors with a higher level of ``torch.func`` than the run's are looked into."""
        self.level = level
        self.geometries: dict[Node, Geometry] = {}  # of the nodes that copies into views left
        self.written: dict[int, Tensor] = {}  # without history before the write, by id
        self.kept: list[Write] = []  # what was overwritten and may have been saved
        # Where the function is run a second time: what takes back the writes that it has made before.
        self.again: list[Callable[[], Tensor]] | None = None
        self._reached: list[Tensor] = []  # there, by the function
        self._first = 0  # the number of the first node of the second run
        self.originals: list[Tensor] = []  # what was detached: others write to its memory
        self.has_helped = False  # and did not just call what was called
        self.has_views = False  # of tensors without history before they were written to
        # What the function made itself, by id: the caller's live longer.
        self._own: set[int] = set()

    def inner(self, tensor: Tensor) -> Tensor:
        """Return the tensor that the run records."""
        if functorch_level() is not None:
            while level_of(tensor) > self.level:
                tensor = unwrapped(tensor)
        return tensor

    def begin(self, target: Tensor, is_ours: bool = False) -> Write | None:
        """Note that ``target`` is about to be written to: it may be the caller's, or saved by a node.

        It ``is_ours`` if it is a view of our own, which the function has not.
        """
        is_ours = is_ours or id(target) in self._own
        now = functorch_level()
        inner = target if now is None else self.inner(target)
        num_wrappers = int(inner is not target)
        base = base_of(inner)
        if self.again is not None and self._is_outside(base):
            self.again.append(functools.partial(base.copy_, base.detach().clone()))
        if not base.requires_grad and id(base) not in self._own:
            self.written[id(base)] = base
            is_view = inner is not base
            if (is_view and not is_ours) or num_holders(base) > 1 + is_view + num_wrappers:
                self.has_views = True
        return self._keep(inner, num_wrappers)

    def _keep(self, inner: Tensor, num_wrappers: int) -> Write | None:
        """Keep what is about to be overwritten, or laid out anew."""
        if self.level and functorch_level() != self.level:
            return None  # what is a level deeper cannot be copied in this one
        write = kept(inner, base_of(inner), num_wrappers)
        if write is not None:
            self.kept.append(write)
        return write

    def take_back(self) -> bool:
        """Undo the writes that a second run repeated, and tell whether there were some."""
        with torch.no_grad():
            for undo in self.again or ():
                undo()
        return bool(self.again)

    def run_again(self, reached: Iterable[Tensor]) -> None:
        """Learn that the function, which has ``reached`` from outside, has run before: it is to write to none of it."""
        self.again, self._first = [], next_sequence_number()
        self._reached = list(reached)

    def reach(self, tensor: Tensor) -> None:
        """Learn of a tensor from outside, if the function has run before."""
        if self.again is not None:
            self._reached.append(tensor)

    def _is_outside(self, base: Tensor) -> bool:
        """Tell whether a tensor that was written to before is not the function's own, as far as that was seen."""
        if id(base) in self.written:
            return False
        if self._is_argument(base):
            base = unwrapped(wrappers(base)[-1])  # which alone counts its versions
        if not base.requires_grad and is_data(base, self._reached):
            return True
        if not base._version:
            return False
        if not base.requires_grad:
            return id(base) not in self._own
        return base.grad_fn is None or sequence_number(base.grad_fn) < self._first

    def begin_unseen(self, target: Tensor) -> None:
        """Note that an operator is about to write to ``target``, maybe without counting that as a version."""
        is_reached = any(each is target for each in self._reached)
        if self.again is not None and (is_reached or self._is_outside(target)):
            self.again.append(functools.partial(target.copy_, target.detach().clone()))

    def _is_argument(self, tensor: Tensor) -> bool:
        return any(each is given for each in wrappers(tensor) for given in self._reached)

    def begin_layout(self, target: Tensor) -> Write | None:
        """Note that ``target`` is about to be laid out anew: a node may have saved it as it lay."""
        if self.again is not None and self._is_argument(target):
            self.again.append(lambda: target)  # of which nobody can tell what it was
        elif self.again is not None and self._is_outside(target):
            place = target.shape, target.stride(), target.storage_offset()
            self.again.append(functools.partial(target.as_strided_, *place))
        inner = self.inner(target)
        return self._keep(inner, int(inner is not target)) if inner.requires_grad else None

    def is_followed(self, tree: Any) -> bool:
        """Tell whether any tensor among arguments has a derivative."""
        if isinstance(tree, Tensor):
            return self.inner(tree).requires_grad
        if isinstance(tree, (tuple, list)):
            for item in tree:  # noqa: SIM110 (a third of the time)
                if self.is_followed(item):
                    return True
            return False
        return isinstance(tree, dict) and bool(tree) and self.is_followed(tuple(tree.values()))

    def remember_place(self, view: Tensor) -> None:
        """Remember where a view lies that was copied into."""
        view = view if functorch_level() is None else self._in_front(view)
        base = view._base
        if base is None or base.dtype is not view.dtype or view.is_conj() or view.is_neg():
            return
        node = base.grad_fn
        if node is not None:
            offset: Any = view.storage_offset() - base.storage_offset()
            self.geometries[node] = (base.shape, base.stride(), view.shape, view.stride(), offset)

    def _in_front(self, tensor: Tensor) -> Tensor:
        """Return the tensor that the run records, with the axes of batches first: ``vmap`` copies so."""
        with torch.no_grad():
            while (level := level_of(tensor)) > self.level:
                axis = batch_axis_at(tensor, level)
                tensor = unwrapped(tensor).movedim(axis, 0) if axis else unwrapped(tensor)
        return tensor

    def fresh(self, tree: Any) -> Any:
        """Take views that were made before their base was written to from the base anew.

        They may be the caller's, and would get a history that nothing can take from them afterwards.
        """
        return map_tensors(self._fresh, tree)

    def _fresh(self, view: Tensor) -> Tensor:
        inner = self.inner(view)
        base = inner._base
        return view if base is None or not self._is_old(view) else self._anew(view, inner, base)

    def _is_old(self, view: Tensor) -> bool:
        """Tell whether a view was made before its base was written to."""
        inner = self.inner(view)
        base = inner._base
        if base is None or id(base) not in self.written or id(view) in self._own:
            return False
        return bool(base.requires_grad) and is_plain_view(inner)

    def lay_out(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> bool:
        """Lay out the first argument anew, if it is a view that is taken from its base anew whenever it is read."""
        if not (args and isinstance(args[0], Tensor) and self._is_old(args[0])):
            return False
        with torch.no_grad():
            func(*args, **(kwargs or {}))
        return True

    def stand_in(self, target: Tensor) -> Tensor:
        """Return what to write to in place of a view that may be the caller's: the same, taken anew."""
        inner = self.inner(target)
        base = inner._base
        if base is None or base.requires_grad or not is_plain_view(inner):
            return target
        if id(target) in self._own or id(base) in self._own:
            return target
        now = functorch_level()
        if now is not None and now > max(self.level, level_of(target)):
            self.written[id(inner)] = inner
            # A transform within may refuse the write; a view made there would hide that
            return target
        new = self._anew(target, inner, base)
        if new is not target:
            self._own.add(id(new))
            self.has_views = True
        return new

    def owns(self, tensor: Tensor) -> bool:
        """Tell whether the function made a tensor itself, as far as that was seen."""
        return id(tensor) in self._own

    def own_new(self, tensor: Tensor) -> None:
        """Remember a tensor that the function made of nothing."""
        self._own.add(id(tensor))

    def own(self, result: Any) -> None:
        """Remember a view that the function made itself."""
        if isinstance(result, Tensor):
            inner = result if functorch_level() is None else self.inner(result)
            if inner._base is not None:
                self._own.add(id(result))
        elif isinstance(result, (tuple, list)):
            for item in result:
                self.own(item)

    def retaken(self, tree: Any, taken: Taken) -> Any:
        """Take views that came from operators with several outputs from their bases anew, each by itself."""
        return map_tensors(lambda view: self._retaken(view, taken), tree)

    def _retaken(self, view: Tensor, taken: Taken) -> Tensor:
        inner = self.inner(view)
        base = inner._base
        if base is None or not is_one_of_several(inner):
            return view
        if id(view) not in taken:
            new = self._anew(view, inner, base)
            if new is view:
                return view
            taken[id(view)] = (view, new)
        return taken[id(view)][1]

    def _anew(self, view: Tensor, inner: Tensor, base: Tensor) -> Tensor:
        is_wrapped = inner is not view
        with without_functorch() if is_wrapped else contextlib.nullcontext():
            new = part_of(base, inner)
        if not is_wrapped:
            return new
        axis = batch_axis_at(view, level_of(view))
        if axis is None or unwrapped(view) is not inner:
            return view
        wrapped: Tensor = add_batch_axis(new, axis, level_of(view))
        return wrapped


def given_back(result: Any, taken: Taken) -> Any:
    """Return the view that the function has, in place of the one that was taken anew."""
    for old, new in taken.values():
        if result is new:
            return old
    return result


def write(
    writes: Writes,
    target: Tensor,
    func: Any,
    twin: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Carry out ``func``, which writes to ``target``, its first argument.

    Args:
        writes: The writes so far.
        target: The tensor.
        func: The in-place operator.
        twin: Gives the new values; None if ``func`` is the only way. For `COPY` it is not asked.
        args: The arguments.
        kwargs: Those by name.
    """
    inner = target if functorch_level() is None else writes.inner(target)
    is_view = (
        inner._base is not None
        and not is_functionalized(target)
        and torch.is_grad_enabled()
        and (inner.requires_grad or writes.is_followed((args, kwargs)))
    )
    # A mode around would retake too late.
    if is_view and num_function_modes() and is_one_of_several(inner):
        taken: Taken = {}
        args, kwargs = writes.retaken((args, kwargs), taken)
        if id(target) in taken:
            result = write(writes, taken[id(target)][1], func, twin, args, kwargs)
            return given_back(result, taken)
    if is_view and not inner.requires_grad:
        new = writes.stand_in(target)
        if new is not target:
            result = write(writes, new, func, twin, (new, *args[1:]), kwargs)
            return target if result is new else result
    is_copied = is_view or (inner is not target and func in COUNTED_TWICE)
    if is_copied and twin is not None and func is not COPY:
        writes.has_helped = True
        if func not in SAVING_NOTHING:
            args = (target.clone(), *args[1:])  # what is saved shall not be overwritten
        func, args, kwargs = COPY, (target, twin(*args, **kwargs)), {}
    elif not is_view and inner.requires_grad:
        apart = (target, *[apart_from(value, target) for value in args[1:]])
        writes.has_helped |= any(a is not b for a, b in zip(apart, args, strict=True))
        args = apart
    begun = writes.begin(target)
    try:
        if not is_view or func is not COPY:
            return func(*args, **kwargs)
        result = copied(target, *args[1:], **kwargs)
        writes.remember_place(target)
        return result
    finally:
        if begun is not None:
            begun.end()


def copied(target: Tensor, value: Any, *rest: Any, **kwargs: Any) -> Tensor:
    """Copy ``value`` to all of ``target``."""
    if isinstance(value, Tensor) and value.shape != target.shape:
        value = value.expand(target.shape)
    return target.copy_(value, *rest, **kwargs)
