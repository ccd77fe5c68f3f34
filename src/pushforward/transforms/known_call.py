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
from pushforward.tape.scripts import Script
from pushforward.tape.surroundings import Surroundings
from pushforward.transforms.arguments import Argnums, Structure
from pushforward.transforms.record import Recall
from pushforward.trees import LEAF, TreeSpec, flatten, unflatten


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
class KnownGraph:
    """What a function returned, the graph that it left, and what answers where it does so again."""

    outputs: list[tuple[torch.Size, tuple[int, ...], torch.dtype]]
    are_alike: Check  # the outputs of a call
    spec: TreeSpec
    script: Script
    recall: Recall
    kernels: Known | None  # None where a tape is asked for
    is_recording: bool
    finish: Callable[[Rows], Rows] | None  # that of the tape

    @property
    def is_alive(self) -> bool:
        """Whether kernels may answer another call, or a tape is asked for."""
        return self.kernels is None or self.kernels.is_alive

    def are_outputs(self, leaves: Sequence[Any]) -> bool:
        """Tell one by one whether outputs are described as those of before."""
        return all(
            type(y) is Tensor and y.dtype is dtype and y.shape == shape and y.stride() == stride
            for y, (shape, stride, dtype) in zip(leaves, self.outputs, strict=True)
        )


@dataclasses.dataclass(slots=True)
class KnownArguments:
    """The arguments of a call, and what was around it."""

    num_args: int
    positions: Sequence[int]  # of those to differentiate
    structure: Structure  # of these
    inputs: list[tuple[torch.Size, torch.dtype, torch.device, bool]]  # that may require grad
    are_alike: Check  # the inputs of a call
    surroundings: Surroundings
    shared: frozenset[int]  # the places of inputs without the batch of a ``vmap``

    def is_same(self, other: KnownArguments) -> bool:
        """Whether other arguments are described as these, and other surroundings are these."""
        return (
            self.num_args == other.num_args
            and self.positions == other.positions
            and self.structure.specs == other.structure.specs
            and self.inputs == other.inputs
            and self.surroundings == other.surroundings
            and self.shared == other.shared
        )

    def leaves(self, args: tuple[Any, ...]) -> list[Any] | None:
        """Return the leaves of the arguments to differentiate, None if these are of another structure."""
        found: list[Any] = []
        for position, spec in zip(self.positions, self.structure.specs, strict=True):
            leaves, given = flatten(args[position])
            if given is not spec and given != spec:
                return None
            found += leaves
        return found

    def are_inputs(self, leaves: Sequence[Any]) -> bool:
        """Tell one by one whether leaves are described as those of before."""
        for x, (shape, dtype, device, is_followed) in zip(leaves, self.inputs, strict=True):
            if type(x) is not Tensor or x.dtype is not dtype or x.shape != shape:
                return False
            if x.requires_grad is not is_followed or x.device != device or x.is_inference():
                return False
        return True

    def replaced(self, args: tuple[Any, ...], leaves: Sequence[Tensor]) -> Sequence[Any]:
        """Return the arguments with ``leaves`` in place of those to differentiate."""
        given = list(args)
        for position, tree in zip(self.positions, self.structure.trees(leaves), strict=True):
            given[position] = tree
        return given


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
