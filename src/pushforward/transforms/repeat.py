"""Repeat: a call that is known by heart, of a trusted function whose graph has a script and whose sweep has kernels.

Nothing is decided any more: surroundings and arguments are compared with those of before, the function runs, the script
reads and checks its graph, the kernels run. What is not as it was goes the whole way again (`record.Tape`). This costs
half of what that costs, for small functions, and has a third of the code that has to be fetched.

Of transforms that take tangents or cotangents, the recording is known by heart: it gives a tape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, overload

from torch import Tensor

from pushforward.planning.replay import Known
from pushforward.tape import trust
from pushforward.tape.continued import Begun
from pushforward.tape.likeness import check_of
from pushforward.tape.private_functorch import batch_axis_at
from pushforward.tape.surroundings import surroundings
from pushforward.transforms.arguments import Selected
from pushforward.transforms.heart_code import Call, written
from pushforward.transforms.known_call import Answer, Key, KnownArguments, KnownGraph, TapeKey
from pushforward.transforms.record import Recall, Tape

# Of a function whose graph is another time and again: knowing it by heart is for nothing
MAX_MISSES = 8
MAX_GRAPHS = 2  # of one function, where two come in turn
MAX_REPEATS = 4  # likewise, for arguments of other shapes, and in other surroundings
MAX_WRITTEN = 32  # of one function at first: each takes as long as a few calls


@dataclasses.dataclass(slots=True)
class Repeat:
    """What is known of the calls of one function with such arguments."""

    arguments: KnownArguments
    graphs: list[KnownGraph]  # the last first
    call: Call


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
    for repeat in repeats:
        answer = repeat.call(record, func, args, kwargs)
        if answer is not None:
            break
    else:
        return None
    if type(answer) is Begun:
        record.misses += 1
        if answer.error is not None or not record.may_spend(record.misses, MAX_MISSES):
            record.repeats.pop(key, None)
    return answer


def learn(key: Key | TapeKey | None, tape: Tape, selected: Selected, args: tuple[Any, ...]) -> None:
    """Remember a call that was made the whole way, if the next one like it may be made by heart."""
    if key is None:
        return
    known = tape.by_heart()
    if known is None:
        return
    around, structure = surroundings(may_be_batched=True), selected.structure()
    if around is None or structure is None or around[-1] != tape.batch:
        return
    record, script = known
    kernels: Known | None = None
    if type(key) is TapeKey:
        is_recording = tape.reading.is_followed and around[0]
    elif tape.answer is None:
        return
    else:
        kernels, is_recording = tape.answer
    leaves = selected.leaves
    if any(type(x) is not Tensor for x in leaves):
        return
    if tape.batch is not None:
        level, shared = tape.batch.level, tape.shared
        axes = [batch_axis_at(x, level) for x in leaves]
        if any(axis != (None if i in shared else 0) for i, axis in enumerate(axes)):
            return
        leaves = tape.batch.physical_but(shared, leaves)
    has_missed = not record.may_spend(record.misses, MAX_MISSES)
    if has_missed or not record.may_spend(record.num_repeats, MAX_WRITTEN):
        return
    if is_recording and len(tape.outputs) > 1:
        return  # of several outputs some may be followed, and others not
    arguments = KnownArguments(
        len(args),
        selected.positions,
        structure,
        [(x.shape, x.dtype, x.device, x.requires_grad) for x in tape.inputs],
        check_of(tape.inputs, has_strides=False),
        around,
        tape.shared,
    )
    if not leaves or not arguments.are_inputs(leaves):
        return
    graphs = [
        KnownGraph(
            [(y.shape, y.stride(), y.dtype) for y in tape.outputs],
            check_of(tape.outputs),
            tape.spec,
            script,
            Recall(structure, tape.spec, tape.signature, around[0]),
            kernels,
            is_recording,
            tape.finish,
        )
    ]
    others = []
    for old in record.repeats.get(key, ()):
        if old.arguments.is_same(arguments):
            graphs += [each for each in old.graphs if each.script is not script and each.is_alive]
        else:
            others.append(old)
    del graphs[MAX_GRAPHS:]
    new = Repeat(arguments, graphs, written(key, arguments, graphs))
    record.repeats[key] = [new, *others[: MAX_REPEATS - 1]]
    record.num_repeats += 1
