"""Old values: what nodes saved and the function wrote over afterwards, which autograd refuses to give.

Before a tensor is written to that something else may have saved, what is to be overwritten is copied. A saved tensor is
then had back by undoing the writes that were made after its node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.tape.private_torch import (
    Node,
    expected_version,
    is_refusal,
    is_wrapped,
    next_sequence_number,
    num_owners,
    raw_saved,
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


Restored = dict[Node, RestoredNode]


@dataclasses.dataclass(slots=True)
class Write:
    """One write, and what it overwrote."""

    base: Tensor
    node: Node | None  # of the base, before
    version: int  # of the base, before
    number: int  # the sequence number of the next node
    place: (
        tuple[Any, ...] | None
    )  # shape, strides and offset of the view written to; None: the whole base
    old: Tensor
    after: int = -1  # version after the write; -1: it was not carried out

    def end(self) -> None:
        """Note that the write was carried out."""
        self.after = self.base._version


def kept(target: Tensor, base: Tensor, is_wrapped: bool) -> Write | None:
    """Keep what is about to be overwritten, if anything but the function's own variable may still hold it.

    A tensor that a node saved, or its storage, has more owners than we see. Not so one that ``is_wrapped``.
    """
    if not is_wrapped:
        tensors, storages = num_owners(base)
        if target is base:
            if tensors == 1 and storages == 1:
                return None
        elif tensors == 2 and storages == 2 and target._use_count() == 1:
            return None
    if base.is_inference():
        return None
    place = None
    if target is not base:
        offset = target.storage_offset() - base.storage_offset()
        place = (tuple(target.shape), target.stride(), offset)
    before = torch.is_grad_enabled()
    set_grad_enabled(True)  # the history is needed for derivatives of what is saved
    try:
        old = target.clone()
    finally:
        set_grad_enabled(before)
    return Write(base, base.grad_fn, base._version, next_sequence_number(), place, old)


def restored(made: Iterable[tuple[Node, Sequence[str]]], writes: list[Write]) -> Restored:
    """Return stand-ins for the nodes that saved what was overwritten since.

    What cannot be had back is left out, so that reading it raises autograd's own error.

    Args:
        made: Nodes, and the names of the tensors that they saved.
        writes: All that was kept, in order.
    """
    lost: list[tuple[int, Node, str, Tensor, Tensor]] = []
    for node, names in made:
        for name in names:
            try:
                getattr(node, f"_saved_{name}")
            except RuntimeError as error:
                version = expected_version(error)
                if version is None and not is_refusal(error):
                    raise
                now = raw_saved(node, name)
                base = _base_of(now, node, writes) if isinstance(now, Tensor) else None
                if base is not None:
                    if version is None:
                        version = _version_at(node, base, writes)
                    lost.append((version, node, name, now, base))
    found: Restored = {}
    states: dict[int, _State] = {}
    for version, node, name, now, base in sorted(lost, key=lambda item: -item[0]):
        if id(base) not in states:
            states[id(base)] = _State(base, writes)
        value = states[id(base)].at(version, now)
        if value is not None:
            stand_in = found.setdefault(node, RestoredNode(node, {}))
            stand_in.old[f"_saved_{name}"] = value
    return found


def _base_of(now: Tensor, node: Node, writes: list[Write]) -> Tensor | None:
    """Return the tensor that was written to and that a saved tensor is, or is a view of."""
    for write in reversed(writes):
        base = write.base
        if now is base or now._base is base or write.node is node:
            return base
        if not is_wrapped(now) and not is_wrapped(base) and shares_storage(now, base):
            return base
    return None


def _version_at(node: Node, base: Tensor, writes: list[Write]) -> int:
    """Return the version of a base when a node was made."""
    number = sequence_number(node)
    for write in writes:
        if write.base is base and write.number > number:
            return write.version
    return base._version


class _State:
    """The contents of a base, going back in time."""

    def __init__(self, base: Tensor, writes: list[Write]) -> None:
        self._writes = [write for write in writes if write.base is base and write.after >= 0]
        self._base, self._version = base, base._version
        self._contents: Tensor | None = None  # None: as it is now

    def at(self, version: int, now: Tensor) -> Tensor | None:
        """Return what ``now`` was when the base had a version; None if nobody knows."""
        while self._writes and self._version > version:
            if not self._undo(self._writes.pop()):
                return None
        if self._version != version:
            return None
        contents = self._base if self._contents is None else self._contents
        if now.shape == contents.shape and now.stride() == contents.stride():
            return contents.clone()
        offset = now.storage_offset() - self._base.storage_offset()
        return contents.as_strided(now.shape, now.stride(), offset).clone()

    def _undo(self, write: Write) -> bool:
        if write.after != self._version:
            self._version, self._writes = -1, []  # a write that nobody saw
            return False
        self._version = write.version
        if write.place is None:
            contents = write.old.clone()
        else:
            contents = self._base.clone() if self._contents is None else self._contents
            contents.as_strided(*write.place).copy_(write.old)
        self._contents = contents
        return contents.stride() == self._base.stride()
