"""Repeat: a call that is known by heart, of a trusted function whose graph has a script and whose sweep has kernels.

Nothing is decided any more: surroundings and arguments are compared with those of before, the function runs, the script
reads and checks its graph, the kernels run. What is not as it was goes the whole way again (`record.Tape`). This costs
half of what that costs, for small functions, and has a third of the code that has to be fetched.

Of transforms that take tangents or cotangents, the recording is known by heart: it gives a tape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from pushforward.planning.replay import Known
from pushforward.tape import trust
from pushforward.tape.continued import Begun
from pushforward.tape.copies import keep_strides
from pushforward.tape.depth import check_depth, thread
from pushforward.tape.interrupts import finish_contexts, put_modes_back
from pushforward.tape.likeness import check_of
from pushforward.tape.private_functorch import start_requiring_grad, without_functorch
from pushforward.tape.private_torch import (
    Node,
    compiled_functions_run_eagerly,
    has_dynamo,
    next_sequence_number,
    sequence_number,
    set_grad_enabled,
)
from pushforward.tape.randomness import bare_generator_state, bare_has_drawn
from pushforward.tape.surroundings import surroundings
from pushforward.transforms.arguments import Selected
from pushforward.transforms.known_call import Answer, Found, Key, Ran, Repeat, TapeKey
from pushforward.transforms.record import Recall, Tape

# Of a function whose graph is another time and again: knowing it by heart is for nothing
MAX_MISSES = 8
MAX_REPEATS = 2  # of one function, where two graphs come in turn


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
    around = surroundings(may_be_batched=True)
    for repeat in repeats:
        if repeat.is_ready(around):
            break
    else:
        return None
    leaves = repeat.leaves(args)
    if leaves is None:
        return None
    try:
        answer = _run(record, repeats, repeat, key, func, leaves, args, kwargs)
    except BaseException:  # an interrupt, while things were put back
        if has_dynamo():
            compiled_functions_run_eagerly.end(id(leaves))
        raise
    if type(answer) is Begun:
        record.misses += 1
        if answer.error is not None or record.misses >= MAX_MISSES:
            record.repeats.pop(key, None)
    return answer


def _run(
    record: trust.Record,
    repeats: list[Repeat],
    repeat: Repeat,
    key: Key | TapeKey,
    func: Callable[..., Any],
    leaves: list[Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Answer | Tape | Begun:
    """Call the function, read its graph and run the kernels; what was begun, if anything was not as before."""
    batch, num_hooks = repeat.surroundings[-1], RemovableHandle.next_id
    drawing = () if repeat.is_counted else leaves  # what may have generators beside the CPU's
    state = bare_generator_state(drawing) if batch is None else ()
    depth, count, end = thread.depth, thread.count + 1, 0
    tracked: list[Tensor] = []
    given: list[Tensor] = []
    starts: list[Node] = []
    result: Any = None
    errors: list[BaseException] = []  # in a list, as a name would hold what holds it
    is_eager = has_dynamo()
    try:  # an interrupt may come at any time
        thread.depth, thread.count = depth + 1, count
        set_grad_enabled(True)
        if is_eager:
            compiled_functions_run_eagerly.begin(id(leaves))
        if batch is None:
            given = tracked = _copies(leaves, Tensor.requires_grad_)
        else:
            with without_functorch():
                tracked = _copies(leaves, start_requiring_grad)
            given = [batch.wrapped(x) for x in tracked]
        starts = [x.grad_fn for x in tracked]
        result = func(*repeat.arguments(args, given), **kwargs)
        if thread.depth != depth + 1:
            check_depth(key.name, depth)
        end = next_sequence_number()
        alone = end if thread.count == count else 0
        has_written = not alone and bool(thread.written)
        if record.may_write and not has_written:
            has_written = bool(trust.written_by(func, sequence_number(starts[0])))
        if RemovableHandle.next_id == num_hooks and not has_written:
            found = repeat.found(result, tracked, starts, alone, record.beside)
            if found is None:
                ran = (result, tracked, starts, alone, record.beside)
                repeat, found = _other(record, repeats, repeat, key, ran)
            if found is not None:
                if isinstance(key, TapeKey):
                    return repeat.tape(key, tracked, found)
                is_refusing = state and key.randomness == "error"
                if repeat.may_answer and not (is_refusing and bare_has_drawn(state, drawing)):
                    if not repeat.is_recording:
                        # Nobody goes back over the graph: the kernels let go of what it saved.
                        tracked = given = starts = []
                        result = None
                    return repeat.answer(found)
    except BaseException as error:
        if not starts:  # before the function was called, or after all was read
            raise
        finish_contexts(error)
        put_modes_back((), None if batch is None else batch.level)
        errors.append(error)  # raised again where the call goes on
    finally:
        try:
            if thread.depth >= depth:  # else a recording around has left before, and put this back
                thread.depth = depth
                set_grad_enabled(repeat.surroundings[0])
        finally:
            if is_eager:
                compiled_functions_run_eagerly.end(id(leaves))
    raised = errors.pop() if errors else None
    return Begun(
        state, num_hooks, count, batch is not None, tracked, given, starts, end, result, raised
    )


def _copies(leaves: list[Tensor], required: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return the copies that the function is called on."""
    copies = []
    for x in leaves:
        copy = (x if x.requires_grad else required(x.detach())).clone()
        if not x.is_contiguous():
            keep_strides(copy, x)
        copies.append(copy)
    return copies


def _other(
    record: trust.Record, repeats: list[Repeat], repeat: Repeat, key: Key | TapeKey, ran: Ran
) -> tuple[Repeat, Found | None]:
    """Return what fits in place of a repeat that did not, and what it found.

    Meanwhile other threads may have forgotten ``repeats``.
    """
    for other in repeats:
        if other is not repeat and other.is_ready(repeat.surroundings):
            found = other.found(*ran)
            if found is not None:
                record.repeats[key] = [other, *[each for each in repeats if each is not other]]
                return other, found
    return repeat, None


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
        if tape.batch is not None:
            return
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
        check_of(tape.inputs, has_strides=False),
        [(y.shape, y.stride(), y.dtype) for y in tape.outputs],
        check_of(tape.outputs),
        tape.spec,
        around,
        not any(x.is_cuda for x in tape.inputs),
        script,
        Recall(structure, tape.spec, tape.signature, around[0]),
        kernels,
        is_recording,
        tape.finish,
    )
    if new.leaves(args) is None:
        return
    others = [
        old
        for old in record.repeats.get(key, ())  # for arguments of the same shapes
        if old.script is not script and old.leaves(args) is not None and old.is_ready(around)
    ]
    record.repeats[key] = [new, *others[: MAX_REPEATS - 1]]
