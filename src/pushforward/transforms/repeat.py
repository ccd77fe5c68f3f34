"""Repeat: a call that is known by heart, of a trusted function whose graph has a script and whose sweep has kernels.

Nothing is decided any more: surroundings and arguments are compared with those of before, the function runs, the script
reads and checks its graph, the kernels run. What is not as it was goes the whole way again (`record.Tape`). This costs
half of what that costs, for small functions, and has a third of the code that has to be fetched.

Of transforms that take tangents or cotangents, the recording is known by heart: it gives a tape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from pushforward.planning.replay import Known
from pushforward.tape import trust
from pushforward.tape.continued import Begun
from pushforward.tape.copies import keep_strides
from pushforward.tape.depth import check_depth, thread
from pushforward.tape.private_torch import (
    Node,
    compiled_functions_run_eagerly,
    has_dynamo,
    next_sequence_number,
    sequence_number,
    set_grad_enabled,
)
from pushforward.tape.randomness import bare_generator_state, bare_has_drawn
from pushforward.tape.scripts import End, Script
from pushforward.tape.surroundings import Surroundings, surroundings
from pushforward.transforms.arguments import Argnums, Selected, Structure
from pushforward.transforms.record import Recall, Tape
from pushforward.trees import LEAF, TreeSpec, flatten, unflatten

MAX_MISSES = (
    8  # of a function whose graph is another time and again: knowing it by heart is for nothing
)
MAX_REPEATS = 2  # of one function, where two graphs come in turn

Found = tuple[list[Tensor], list[Any], list[Node]]  # outputs, what nodes saved, nodes


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
    outputs: list[tuple[torch.Size, tuple[int, ...], torch.dtype]]
    spec: TreeSpec
    surroundings: Surroundings
    is_counted: bool  # whether one thread makes all nodes, and counts them
    script: Script
    recall: Recall
    kernels: Known | None  # None where a tape is asked for
    is_recording: bool

    def is_ready(self, surroundings: Surroundings | None) -> bool:
        """Whether calls in these surroundings, None if they never are, may be answered."""
        kernels = self.kernels
        is_alive = kernels is None or (
            kernels.replay is not None and kernels.answered < kernels.lifetime
        )
        return is_alive and surroundings == self.surroundings

    def leaves(self, args: tuple[Any, ...]) -> list[Tensor] | None:
        """Return the arguments to differentiate, None if they are not like those of before."""
        if len(args) != self.num_args:
            return None
        found: list[Tensor] = []
        for position, spec in zip(self.positions, self.structure.specs, strict=True):
            if spec is LEAF:
                found.append(args[position])
                continue
            leaves, given = flatten(args[position])
            if given != spec:
                return None
            found += leaves
        for x, (shape, dtype, device, is_followed) in zip(found, self.inputs, strict=True):
            is_same = type(x) is Tensor and x.shape == shape and x.dtype is dtype
            if not is_same or x.device != device or x.requires_grad is not is_followed:
                return None
            if x.is_inference():
                return None
        return found

    def found(self, begun: Begun, num_beside: set[int]) -> Found | None:
        """Return the outputs, what nodes saved, and the nodes.

        None if the outputs, the graph, or how many nodes are beside it, are not as before.
        """
        result = begun.result
        leaves, spec = ([result], LEAF) if type(result) is Tensor else flatten(result)
        if spec is not self.spec and spec != self.spec:
            return None
        ends: list[End] = []
        for y, (shape, stride, dtype) in zip(leaves, self.outputs, strict=True):
            is_same = type(y) is Tensor and y.shape == shape and y.dtype is dtype
            if not is_same or y.stride() != stride:
                return None
            ends.append((y.grad_fn, y.output_nr))
        for x in begun.tracked:
            if x._version:
                return None
        starts = begun.starts
        oldest = sequence_number(starts[0]) if self.is_counted else 0
        found = self.script.found(starts, ends, oldest, {})
        if found is None:
            return None
        saved, nodes = found
        is_alone = self.is_counted and thread.count == begun.count
        if is_alone and begun.end - oldest - len(nodes) not in num_beside:
            return None
        return leaves, saved, nodes

    def tape(
        self,
        key: TapeKey,
        begun: Begun,
        outputs: list[Tensor],
        saved: list[Any],
        nodes: list[Node],
    ) -> Tape:
        """Return the tape of a call."""
        reading = self.script.reading(saved, nodes, {})
        reading.is_followed = reading.is_followed or any(each[-1] for each in self.inputs)
        reading.anchors = outputs
        results = outputs if self.is_recording else [y.detach() for y in outputs]
        return Tape.recalled(
            key.name, reading, begun.tracked, outputs, results, self.recall, key.is_kept
        )

    def answer(self, outputs: list[Tensor], saved: list[Any], nodes: list[Node]) -> Answer | None:
        """Run the kernels, if they still stand."""
        kernels = self.kernels
        if kernels is None or kernels.replay is None:
            return None
        set_grad_enabled(self.is_recording)
        rows: list[list[Any]] = kernels.replay([*saved, nodes])
        if not self.is_flat:
            rows = [self.structure.trees(row) for row in rows]
        if not self.is_recording:
            outputs = [y.detach() for y in outputs]
        kernels.answered += 1
        return Answer(rows, outputs, self.spec)


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


@overload
def repeated(
    key: None, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None: ...


@overload
def repeated(
    key: Key, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Answer | Begun | None: ...


@overload
def repeated(
    key: TapeKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tape | Begun | None: ...


def repeated(
    key: Key | TapeKey | None,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Answer | Tape | Begun | None:
    """Return the answer to a call that is known by heart, None to any other, and where there is no key.

    A call that turns out to be another after the function ran is only begun: a `record.Tape` goes on with it.
    """
    if key is None:
        return None
    record = trust.record_of(func)
    repeats: list[Repeat] | None = record.repeats.get(key)
    if repeats is None or not record.is_trusted:
        return None
    around = surroundings()
    for repeat in repeats:
        if repeat.is_ready(around):
            break
    else:
        return None
    leaves = repeat.leaves(args)
    if leaves is None:
        return None
    begun = Begun(bare_generator_state(leaves), RemovableHandle.next_id, thread.count + 1)
    try:
        answer = _run(record, repeat, key, func, leaves, args, kwargs, begun)
    except BaseException:  # an interrupt, while things were put back
        if has_dynamo():
            compiled_functions_run_eagerly.end(id(begun))
        raise
    if answer is None:
        if begun.error is not None and not begun.starts:
            raise begun.error  # before the function was called
        record.misses += 1
        if begun.error is not None or record.misses >= MAX_MISSES:
            record.repeats.pop(key, None)
        return begun
    return answer


def _run(
    record: trust.Record,
    repeat: Repeat,
    key: Key | TapeKey,
    func: Callable[..., Any],
    leaves: list[Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    begun: Begun,
) -> Answer | Tape | None:
    """Call the function, read its graph and run the kernels; None if anything was not as before."""
    depth, is_eager = thread.depth, False
    try:  # an interrupt may come at any time
        thread.depth = depth + 1
        thread.count += 1
        set_grad_enabled(True)
        if has_dynamo():
            is_eager = True
            compiled_functions_run_eagerly.begin(id(begun))
        tracked, starts = begun.tracked, begun.starts
        for x in leaves:
            copy = (x if x.requires_grad else x.detach().requires_grad_()).clone()
            if not x.is_contiguous():
                keep_strides(copy, x)
            tracked.append(copy)
            starts.append(copy.grad_fn)
        trees = tracked if repeat.is_flat else repeat.structure.trees(tracked)
        if len(args) == 1:
            result = func(*trees, **kwargs)
        else:
            given = list(args)
            for position, x in zip(repeat.positions, trees, strict=True):
                given[position] = x
            result = func(*given, **kwargs)
        if thread.depth != depth + 1:
            check_depth(key.name, depth)
        begun.result, begun.end = result, next_sequence_number()
        if RemovableHandle.next_id != begun.num_hooks:
            return None
        found = repeat.found(begun, record.beside)
        if found is None:
            repeat, found = _other(record, repeat, key, begun)
            if found is None:
                return None
        if isinstance(key, TapeKey):
            return repeat.tape(key, begun, *found)
        if key.randomness == "error" and bare_has_drawn(begun.state, leaves):
            return None
        return repeat.answer(*found)
    except BaseException as error:  # raised again where the call goes on
        begun.error = error
        return None
    finally:
        try:
            if thread.depth >= depth:  # else a recording around has left before, and put this back
                thread.depth = depth
                set_grad_enabled(repeat.surroundings[0])
        finally:
            if is_eager:
                compiled_functions_run_eagerly.end(id(begun))


def _other(
    record: trust.Record, repeat: Repeat, key: Key | TapeKey, begun: Begun
) -> tuple[Repeat, Found | None]:
    """Return what fits in place of a repeat that did not, and what it found."""
    repeats: list[Repeat] = record.repeats[key]
    for other in repeats:
        if other is not repeat and other.is_ready(repeat.surroundings):
            found = other.found(begun, record.beside)
            if found is not None:
                record.repeats[key] = [other, *[each for each in repeats if each is not other]]
                return other, found
    return repeat, None


def learn(key: Key | TapeKey | None, tape: Tape, selected: Selected, args: tuple[Any, ...]) -> None:
    """Remember a call that was made the whole way, if the next one like it may be made by heart."""
    if key is None:
        return
    around = surroundings()
    known, structure = tape.by_heart(), selected.structure()
    if around is None or known is None or structure is None:
        return
    record, script = known
    kernels: Known | None = None
    if type(key) is TapeKey:
        is_recording = tape.reading.is_followed and around[0]
    elif tape.answer is None:
        return
    else:
        kernels, is_recording = tape.answer
    if any(type(x) is not Tensor for x in selected.leaves):
        return
    if record.misses >= MAX_MISSES or (is_recording and len(tape.outputs) > 1):
        return  # of several outputs some may be followed, and others not
    new = Repeat(
        len(args),
        selected.positions,
        structure,
        structure.is_flat,
        [(x.shape, x.dtype, x.device, x.requires_grad) for x in tape.inputs],
        [(y.shape, y.stride(), y.dtype) for y in tape.outputs],
        tape.spec,
        around,
        not any(x.is_cuda for x in tape.inputs),
        script,
        Recall(structure, tape.spec, tape.signature, around[0]),
        kernels,
        is_recording,
    )
    others = [
        old
        for old in record.repeats.get(key, ())  # for arguments of the same shapes
        if old.script is not script and old.leaves(args) is not None and old.is_ready(around)
    ]
    record.repeats[key] = [new, *others[: MAX_REPEATS - 1]]
