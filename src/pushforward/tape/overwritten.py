"""Old values: what nodes saved and the function wrote over afterwards, which autograd refuses to give.

Before a tensor is written to that something else may have saved, what is to be overwritten is copied. A saved tensor is
then had back by undoing the writes that were made after its node.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from pushforward.tape.copies import base_of
from pushforward.tape.node_types import RULED, NodeType
from pushforward.tape.private_functorch import is_wrapped, without_functorch
from pushforward.tape.private_torch import (
    Node,
    expected_version,
    is_refusal,
    keeping_version,
    negated_view,
    next_sequence_number,
    num_holders,
    num_owners,
    raw_saved,
    saved_as_now,
    sequence_number,
    set_grad_enabled,
    shares_storage,
)


class RestoredNode:
    """A node, but for what it saved and was overwritten since."""

    def __init__(self, node: Node, old: dict[str, Tensor]) -> None:
        """Stand in for ``node``; ``old`` are values by the names of its attributes."""
        self.node, self.old = node, old

    def __getattr__(self, name: str) -> Any:
        """Answer for the node."""
        value = self.old.get(name)
        return getattr(self.node, name) if value is None else value

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """All that the node of an ``autograd.Function`` saved."""
        versions: Sequence[int] = self.node.versions
        now = saved_as_now(self.node, versions)
        if any(
            x._version != version and f"_saved_{place}" not in self.old
            for place, (x, version) in enumerate(zip(now, versions, strict=True))
        ):
            now = self.node.saved_tensors  # raises
        return tuple(self.old.get(f"_saved_{place}", x) for place, x in enumerate(now))


Restored = dict[Node, RestoredNode]
Cycle = tuple[Tensor, list[Tensor]]  # what was written to, and views of it that were saved


# Shape, strides and offset in the storage; dtype, and whether elements are read conjugated or negated.
Place = tuple[Any, ...]


@dataclasses.dataclass(slots=True)
class Write:
    """One write, and what it overwrote."""

    base: Tensor  # what was written to, or is a view of
    node: Node | None  # of the base, before
    version: int  # of the base, before
    number: int  # the sequence number of the next node
    place: Place
    base_place: Place  # that of the base, before
    old: Tensor
    after: int = -1  # version after the write; -1: it was not carried out
    is_followed: bool = False  # by autograd
    # That nodes saved before, and that were asked for their history since
    views: list[Tensor] = dataclasses.field(default_factory=list)

    def end(self) -> None:
        """Note that the write was carried out."""
        self.after = self.base._version
        self.is_followed = self.base.grad_fn is not self.node

    def is_of(self, tensor: Tensor) -> bool:
        """Tell whether the write was to the memory of ``tensor``."""
        base = self.base
        if is_wrapped(base) or is_wrapped(tensor):
            return tensor is base or tensor._base is base
        return shares_storage(tensor, base)


def kept(target: Tensor, base: Tensor, num_wrappers: int) -> Write | None:
    """Keep what is about to be overwritten, if anything but the function's own variable may still hold it.

    A tensor that a node saved, or its storage, has more owners than we see: ``num_wrappers`` stand between it and the
    function.
    """
    if not is_wrapped(base):
        tensors, storages = num_owners(base)
        if target is base:
            if tensors == 1 + num_wrappers and storages == 1:
                return None
        elif (
            tensors == 2 + num_wrappers
            and storages == 2
            and num_holders(target) == 1 + num_wrappers
        ):
            return None
    if base.is_inference():
        return None
    before = torch.is_grad_enabled()
    set_grad_enabled(True)  # the history is needed for derivatives of what is saved
    try:
        with without_functorch() if num_wrappers else contextlib.nullcontext():
            old = target.clone()
    finally:
        set_grad_enabled(before)
    number, place = next_sequence_number(), place_of(target)
    base_place = place if target is base else place_of(base)
    return Write(base, base.grad_fn, base._version, number, place, base_place, old)


def cycles(writes: Iterable[Write]) -> list[Cycle]:
    """Return what holds nodes that hold it in turn, and are let go of no more than it is."""
    found: dict[int, Cycle] = {}
    with without_functorch():
        for write in writes:
            if write.is_followed and write.base.grad_fn is not None:
                _, views = found.setdefault(id(write.base), (write.base, []))
                views += write.views
    return list(found.values())


def end_cycles(found: Iterable[Cycle]) -> None:
    """Take the history from what was written to after nodes had saved it, once all is done."""
    with torch._C.DisableTorchFunction(), without_functorch():
        for base, views in found:
            base.detach_()
            if views:
                with keeping_version(base):
                    increment_version(base)
                    for view in views:
                        with contextlib.suppress(RuntimeError):  # where PyTorch replays views
                            _ = view.grad_fn  # made anew: that of the base, which has none


def place_of(tensor: Tensor) -> Place:
    """Return where a tensor lies in its storage, and how it is read there."""
    layout = tensor.shape, tensor.stride(), tensor.storage_offset()
    return (*layout, tensor.dtype, tensor.is_conj(), tensor.is_neg())


def restored(
    made: Iterable[tuple[Node, NodeType]], writes: list[Write], originals: Sequence[Tensor]
) -> Restored:
    """Return stand-ins for the nodes that saved what was overwritten since.

    What cannot be had back is left out, so that reading it raises autograd's own error.

    Args:
        made: Nodes and their types.
        writes: All that was kept, in order.
        originals: Tensors that the function detached; the others may have been written to.
    """
    lost: list[tuple[int, Node, str, Tensor, bool, _State]] = []
    states: list[_State] = []
    first = {id(write.base): write for write in reversed(writes)}
    for node, kind in made:
        for name, known, now, is_output, is_followed in _refused(node, kind, first):
            state = _state_of(now, node if is_output else None, writes, originals, states)
            if state is not None:
                state.note(now)
                version = state.version_at(sequence_number(node)) if known is None else known
                lost.append((version, node, name, now, is_followed, state))
    found: Restored = {}
    for version, node, name, now, is_followed, state in sorted(lost, key=lambda item: -item[0]):
        value = state.at(version, now)
        if value is not None and (value.requires_grad or not is_followed):
            stand_in = found.setdefault(node, RestoredNode(node, {}))
            stand_in.old[f"_saved_{name}"] = value
    return found


def gives_history(writes: Iterable[Write]) -> bool:
    """Tell whether any write was followed, to what had no history before: nodes may have saved that, or its views."""
    return any(write.is_followed and write.node is None for write in writes)


def _refused(
    node: Node, kind: NodeType, first: dict[int, Write]
) -> Iterator[tuple[str, int | None, Tensor, bool, bool]]:
    """Yield what autograd refuses to give: name, version when saved, tensor, whether it is an output, and was followed.

    Autograd does not always tell the version: None. ``first`` has the first write to each base, by its `id`: what had
    no history before is not asked for, as autograd's error, which names the node of a view, would give it one.
    """
    if kind is RULED:
        versions = node.versions
        for place, now in enumerate(saved_as_now(node, versions)):
            if now._version != versions[place]:
                is_output = place >= len(node.call.places)
                yield str(place), versions[place], now, is_output, is_output or now.requires_grad
        return
    for name in kind.tensor_names:
        before = _saved_before(node, name, first)
        if before is not None:
            yield name, None, before, False, False
            continue
        try:
            getattr(node, f"_saved_{name}")
        except RuntimeError as error:
            version = expected_version(error)
            if version is None and not is_refusal(error):
                raise
            now = raw_saved(node, name)
            if isinstance(now, Tensor):
                is_output = name in kind.outputs
                yield name, version, now, is_output, is_output or now.requires_grad


def _saved_before(node: Node, name: str, first: dict[int, Write]) -> Tensor | None:
    """Return what a node saved if that had no history then, and was written to later."""
    now = raw_saved(node, name)
    write = first.get(id(base_of(now))) if isinstance(now, Tensor) else None
    is_before = write is not None and write.node is None and sequence_number(node) < write.number
    return now if is_before else None


def _state_of(
    now: Tensor,
    maker: Node | None,
    writes: list[Write],
    originals: Sequence[Tensor],
    states: list[_State],
) -> _State | None:
    """Return the state of the memory of what a node saved; None if nobody saw a write to it.

    ``maker`` is the node if it made that itself: under ``torch.func`` memory is not told otherwise.
    """
    for state in states:
        if state.is_of(now, maker):
            return state
    mine = [write for write in writes if _is_of(write, now, maker)]
    if mine:
        base = mine[-1].base
        mine = [write for write in writes if write.is_of(base)]
        states.append(_State(mine, [t for t in originals if mine[-1].is_of(t)]))
    return states[-1] if mine else None


def _is_of(write: Write, now: Tensor, maker: Node | None) -> bool:
    """Tell whether a write was to what a node saved."""
    return (maker is not None and write.node is maker) or write.is_of(now)


class _State:
    """Memory that was written to, going back in time."""

    def __init__(self, writes: list[Write], originals: list[Tensor]) -> None:
        self._seen = writes
        self._writes = [write for write in writes if write.after >= 0]
        # The whole, with its history: others are its aliases.
        bases = [write.base for write in writes] + originals
        self._base = max(bases, key=lambda base: (base.numel(), base.requires_grad))
        self._version = self._base._version
        self._contents: Tensor | None = None  # None: as it is now
        self._place = place_of(self._base)  # which the function may have changed

    def is_of(self, now: Tensor, maker: Node | None) -> bool:
        """Tell whether a saved tensor lies in this memory."""
        return any(_is_of(write, now, maker) for write in self._seen)

    def note(self, now: Tensor) -> None:
        """Remember a saved view."""
        if now._base is not None:
            self._seen[-1].views.append(now)

    def version_at(self, number: int) -> int:
        """Return the version that nodes with a sequence number saw."""
        for write in self._seen:
            if write.number > number:
                return write.version
        return self._base._version

    def at(self, version: int, now: Tensor) -> Tensor | None:
        """Return what ``now`` was when the memory had a version; None if nobody knows."""
        while self._writes and self._version > version:
            if not self._undo(self._writes.pop()):
                return None
        if self._version != version:
            return None
        contents = self._base if self._contents is None else self._contents
        place = self._place if now is self._base else place_of(now)
        return _view(contents, self._base, place).clone()

    def _undo(self, write: Write) -> bool:
        if write.after != self._version:
            self._version, self._writes = -1, []  # a write that nobody saw
            return False
        self._version = write.version
        contents = _copied(self._base, self._base) if self._contents is None else self._contents
        if contents.stride() != self._base.stride():
            return False
        old = write.old
        if write.base is self._base:
            self._place = write.base_place
        part = _view(contents, self._base, write.place)
        if not write.is_followed and part.requires_grad:
            old = old.detach() + (part - part.detach())  # its derivative is what it was
        if part is contents:
            contents = _copied(old, self._base)
        else:
            part.copy_(old)
        self._contents = contents
        return True


def _copied(value: Tensor, base: Tensor) -> Tensor:
    """Return a copy of ``value`` that lies as ``base`` does, which `clone` does not do for what has gaps."""
    if is_wrapped(base) or base.is_contiguous():
        return value.clone()
    return base.new_empty_strided(base.shape, base.stride()).copy_(value)


def _view(contents: Tensor, base: Tensor, place: Place) -> Tensor:
    """Return the part of ``contents`` that lies where ``place`` is in the memory of ``base``."""
    if place == place_of(base):
        return contents
    shape, stride, offset, dtype, is_conj, is_neg = place
    start = base.storage_offset()
    if dtype.is_complex == base.is_complex():
        part = contents.as_strided(shape, stride, offset - start)
    elif base.is_complex():
        part = torch.view_as_real(contents).as_strided(shape, stride, offset - 2 * start)
    else:
        doubled = (*[2 * step for step in stride], 1)
        numbers = contents.as_strided((*shape, 2), doubled, 2 * offset - start)
        part = torch.view_as_complex(numbers)
    part = part.conj() if is_conj else part
    return negated_view(part) if is_neg else part
