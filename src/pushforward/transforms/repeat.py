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
from pushforward.tape.private_functorch import start_requiring_grad, without_functorch
from pushforward.tape.private_torch import (
    compiled_functions_run_eagerly,
    has_dynamo,
    next_sequence_number,
    set_grad_enabled,
)
from pushforward.tape.randomness import bare_generator_state, bare_has_drawn
from pushforward.tape.surroundings import surroundings
from pushforward.transforms.arguments import Selected
from pushforward.transforms.known_call import Answer, Found, Key, Repeat, TapeKey
from pushforward.transforms.record import Recall, Tape

MAX_MISSES = (
    8  # of a function whose graph is another time and again: knowing it by heart is for nothing
)
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
    is_apart = repeat.surroundings[-1] is not None
    state = () if is_apart else bare_generator_state(leaves)
    begun = Begun(state, RemovableHandle.next_id, thread.count + 1, is_apart)
    try:
        answer = _run(record, repeat, key, func, leaves, args, kwargs, begun)
    except BaseException:  # an interrupt, while things were put back
        if has_dynamo():
            compiled_functions_run_eagerly.end(id(begun))
        raise
    if answer is None:
        if begun.error is not None and not begun.starts:
            raise begun.error  # before the function was called, or after all was read
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
        batch = repeat.surroundings[-1]
        if batch is None:
            _copy(leaves, begun, Tensor.requires_grad_)
            begun.given = begun.tracked
        else:
            with without_functorch():
                _copy(leaves, begun, start_requiring_grad)
            begun.given = [batch.wrapped(x) for x in begun.tracked]
        trees: Any = begun.given if repeat.is_flat else repeat.structure.trees(begun.given)
        if len(args) == 1:
            result = func(*trees, **kwargs)
        else:
            given: Any = list(args)
            for position, x in zip(repeat.positions, trees, strict=True):
                given[position] = x
            result = func(*given, **kwargs)
        if thread.depth != depth + 1:
            check_depth(key.name, depth)
        begun.result, begun.end = result, next_sequence_number()
        result = trees = given = None  # what holds the graph
        if RemovableHandle.next_id != begun.num_hooks:
            return None
        if batch is None:
            return _answered(record, repeat, key, leaves, begun)
        with without_functorch():
            return _answered(record, repeat, key, leaves, begun)
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


def _copy(leaves: list[Tensor], begun: Begun, required: Callable[[Tensor], Tensor]) -> None:
    """Make the copies that the function is called on."""
    tracked, starts = begun.tracked, begun.starts
    for x in leaves:
        copy = (x if x.requires_grad else required(x.detach())).clone()
        if not x.is_contiguous():
            keep_strides(copy, x)
        tracked.append(copy)
        starts.append(copy.grad_fn)


def _answered(
    record: trust.Record,
    repeat: Repeat,
    key: Key | TapeKey,
    leaves: list[Tensor],
    begun: Begun,
) -> Answer | Tape | None:
    """Read the graph and run the kernels; None if it is not as before."""
    found = repeat.found(begun, record.beside)
    if found is None:
        repeat, found = _other(record, repeat, key, begun)
        if found is None:
            return None
    if isinstance(key, TapeKey):
        return repeat.tape(key, begun, *found)
    if key.randomness == "error" and begun.state and bare_has_drawn(begun.state, leaves):
        return None
    return repeat.answer(begun, found)


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
    around = surroundings(may_be_batched=True)
    known, structure = tape.by_heart(), selected.structure()
    if around is None or known is None or structure is None or around[-1] != tape.batch:
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
        [(y.shape, y.stride(), y.dtype) for y in tape.outputs],
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
