"""Known calls: what is remembered of a call by heart, and is compared with the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pushforward.planning.noting import Rows
from pushforward.planning.replay import Known
from pushforward.tape.likeness import Check
from pushforward.tape.private_functorch import batch_axis_at, unwrapped, without_functorch
from pushforward.tape.private_torch import Node, sequence_number, set_grad_enabled
from pushforward.tape.scripts import End, Script
from pushforward.tape.surroundings import Surroundings
from pushforward.transforms.arguments import Argnums, Structure
from pushforward.transforms.record import Recall, Tape
from pushforward.trees import LEAF, TreeSpec, flatten, unflatten

Found = list[Any]  # lists of outputs, of what nodes saved, and of nodes
# What a function returned, the copies it was called on, their nodes, and what tells how many nodes it made.
Ran = tuple[Any, list[Tensor], list[Node], int, set[int]]


@dataclasses.dataclass(slots=True)
class Answer:
    """What a transform makes its result of."""

    rows: list[list[Any]]  # a pytree for each output and argument
    outputs: list[Tensor]  # as the caller may have them
    spec: TreeSpec

    @property
    def value(self) -> Any:
        """What the function returned."""
        return unflatten(self.outputs, self.spec)

    def jacobian(self, argnums: Argnums) -> Any:
        """Return the Jacobians in the caller's structure."""
        if self.spec is LEAF:
            return self.gradient(argnums)
        is_one = isinstance(argnums, int)
        return unflatten([row[0] if is_one else tuple(row) for row in self.rows], self.spec)

    def gradient(self, argnums: Argnums) -> Any:
        """Return what belongs to the arguments."""
        return self.rows[0][0] if isinstance(argnums, int) else tuple(self.rows[0])


@dataclasses.dataclass(slots=True)
class Repeat:
    """What came before."""

    num_args: int
    positions: Sequence[int]  # of those to differentiate
    structure: Structure  # of these
    is_flat: bool  # whether they are tensors
    inputs: list[tuple[torch.Size, torch.dtype, torch.device, bool]]  # that may require grad
    are_alike: Check  # the inputs of a call
    outputs: list[tuple[torch.Size, tuple[int, ...], torch.dtype]]
    outputs_are_alike: Check
    spec: TreeSpec
    surroundings: Surroundings
    is_counted: bool  # whether one thread makes all nodes, and counts them
    script: Script
    recall: Recall
    kernels: Known | None  # None where a tape is asked for
    is_recording: bool
    finish: Callable[[Rows], Rows] | None  # that of the tape

    def is_ready(self, surroundings: Surroundings | None) -> bool:
        """Whether calls in these surroundings, None if they never are, may be answered."""
        kernels = self.kernels
        is_alive = kernels is None or (
            kernels.replay is not None and kernels.answered < kernels.lifetime
        )
        return is_alive and surroundings == self.surroundings

    def leaves(self, args: tuple[Any, ...]) -> list[Tensor] | None:
        """Return the arguments to differentiate as autograd sees them, None if they are not like those of before."""
        if len(args) != self.num_args:
            return None
        found: list[Tensor] = []
        if self.is_flat:
            found = [*map(args.__getitem__, self.positions)]
        else:
            for position, spec in zip(self.positions, self.structure.specs, strict=True):
                leaves, given = flatten(args[position])
                if given is not spec and given != spec:
                    return None
                found += leaves
        batch = self.surroundings[-1]
        if batch is not None:
            for i, x in enumerate(found):
                if type(x) is not Tensor or batch_axis_at(x, batch.level) != 0:
                    return None
                found[i] = unwrapped(x)
        if self.are_alike(*found):
            return found
        for x, (shape, dtype, device, is_followed) in zip(found, self.inputs, strict=True):
            if type(x) is not Tensor or x.dtype is not dtype or x.shape != shape:
                return None
            if x.requires_grad is not is_followed or x.device != device or x.is_inference():
                return None
        return found

    def arguments(self, args: tuple[Any, ...], leaves: list[Tensor]) -> Sequence[Any]:
        """Return the arguments with ``leaves`` in place of those to differentiate."""
        trees: Sequence[Any] = leaves if self.is_flat else self.structure.trees(leaves)
        if len(args) == 1:
            return trees
        given = list(args)
        for position, x in zip(self.positions, trees, strict=True):
            given[position] = x
        return given

    def found(
        self,
        result: Any,
        tracked: list[Tensor],
        starts: list[Node],
        end: int,
        num_beside: set[int],
    ) -> Found | None:
        """Return the outputs, what nodes saved, and the nodes.

        None if the outputs, the graph, or how many nodes are beside it, are not as before; these are those before the
        number ``end``, which is 0 where other runs made some of them.
        """
        leaves, spec = ([result], LEAF) if type(result) is Tensor else flatten(result)
        if spec is not self.spec and spec != self.spec:
            return None
        batch = self.surroundings[-1]
        if batch is None:
            return self._found(leaves, tracked, starts, end, num_beside)
        if any(type(y) is not Tensor or batch_axis_at(y, batch.level) is None for y in leaves):
            return None
        with without_functorch():
            leaves = [batch.physical(y) for y in leaves]
            return self._found(leaves, tracked, starts, end, num_beside)

    def _found(
        self,
        leaves: list[Tensor],
        tracked: list[Tensor],
        starts: list[Node],
        end: int,
        num_beside: set[int],
    ) -> Found | None:
        if not (self.outputs_are_alike(*leaves) or self._are_outputs(leaves)):
            return None
        for x in tracked:
            if x._version:
                return None
        ends: list[End] = [(y.grad_fn, y.output_nr) for y in leaves]
        oldest = sequence_number(starts[0]) if self.is_counted else 0
        found = self.script.found(starts, ends, oldest, {})
        if found is None:
            return None
        saved, nodes = found
        if end and self.is_counted and end - oldest - len(nodes) not in num_beside:
            return None
        return [leaves, saved, nodes]

    def _are_outputs(self, leaves: list[Tensor]) -> bool:
        """Tell the same one by one."""
        return all(
            type(y) is Tensor and y.dtype is dtype and y.shape == shape and y.stride() == stride
            for y, (shape, stride, dtype) in zip(leaves, self.outputs, strict=True)
        )

    def tape(self, key: TapeKey, tracked: list[Tensor], found: Found) -> Tape:
        """Return the tape of a call."""
        outputs, saved, nodes = found
        reading = self.script.reading(saved, nodes, {})
        reading.is_followed = reading.is_followed or any(each[-1] for each in self.inputs)
        reading.anchors = outputs
        results = outputs if self.is_recording else [y.detach() for y in outputs]
        return Tape.recalled(key.name, reading, tracked, outputs, results, self.recall, key.is_kept)

    @property
    def may_answer(self) -> bool:
        """Whether there are kernels, and they still stand."""
        return self.kernels is not None and self.kernels.replay is not None

    def answer(self, found: Found) -> Answer:
        """Run the kernels on what was ``found``, and on nothing else: they let go of what nodes saved."""
        batch = self.surroundings[-1]
        if batch is None:
            rows, outputs = self._computed(found)
        else:
            with without_functorch():
                rows, outputs = self._computed(found)
                rows = [[batch.wrapped(t) for t in row] for row in rows]
                outputs = [batch.wrapped(y) for y in outputs]
        if not self.is_flat:
            rows = [self.structure.trees(row) for row in rows]
        return Answer(rows, outputs, self.spec)

    def _computed(self, found: Found) -> tuple[Rows, list[Tensor]]:
        kernels: Any = self.kernels
        outputs, values, nodes = found
        found.clear()
        values.append(nodes)
        del nodes
        set_grad_enabled(self.is_recording)
        if not self.is_recording:
            outputs = [*map(Tensor.detach, outputs)]
        rows: Rows = kernels.replay(values)
        kernels.answered += 1
        return (rows if self.finish is None else self.finish(rows)), outputs


class Key(NamedTuple):
    """What tells calls of a transform from those of others."""

    name: str
    argnums: Argnums
    randomness: str
    mode: str


class TapeKey(NamedTuple):
    """Likewise, where a tape is asked for."""

    name: str
    is_kept: bool  # beyond the call
    positions: tuple[int, ...] = ()  # of the arguments; empty: all


def key_of(
    name: str,
    argnums: Argnums,
    randomness: str,
    is_whole: bool,
    has_aux: bool,
    mode: str = "",
) -> Key | None:
    """Return the key of a transform; None of one whose calls are never known by heart."""
    each = argnums if isinstance(argnums, tuple) else (argnums,)
    if not is_whole or has_aux or any(type(n) is not int for n in each):
        return None
    return Key(name, argnums, randomness, mode)
