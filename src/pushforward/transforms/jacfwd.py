"""jacfwd: the Jacobian in forward mode."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pushforward.linear.block_sum import Blocks, tensors_in
from pushforward.tape.pieces import MAX_COLUMNS, Pushing
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import (
    Argnums,
    P,
    Selected,
    check_function,
    check_randomness,
    named_after,
    normalize_argnums,
)
from pushforward.transforms.assemble import (
    directions,
    from_tangents,
    jacobian_dtype,
    result_bytes,
    start,
)
from pushforward.transforms.by_entries import by_entries
from pushforward.transforms.chunks import Chunks, ChunkSize, chunks_of, units
from pushforward.transforms.columns import InChunks
from pushforward.transforms.known_call import Answer, key_of
from pushforward.transforms.limited import Limited
from pushforward.transforms.memory import sized_rows, there_before
from pushforward.transforms.pushing import push_blocks, push_tangents, structure_of, with_structure
from pushforward.transforms.record import Tape
from pushforward.transforms.repeat import learn, repeated
from pushforward.trees import LEAF, unflatten

NAME = "jacfwd"
_AT_ONCE = contextlib.nullcontext()


@left_alone_by_dynamo
def jacfwd(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    randomness: Literal["error", "same", "different"] = "error",
    chunk_size: ChunkSize = None,
    memory_limit: int | None = None,
    progress: bool = False,
) -> Callable[P, Any]:
    """Return a function that computes the Jacobian of ``func`` in forward mode.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree); other arguments may be anything.
        argnums: Which positional arguments, ``int`` or tuple of distinct ``int``; negative counts from the end.
        has_aux: Whether ``func`` returns ``(output, aux)``; ``aux`` may hold anything and is not differentiated.
        randomness: ``'error'`` refuses random operators; ``'same'`` and ``'different'`` draw what the plain call
            draws, once, for all columns.
        chunk_size: At most so many columns are carried at once; None for all. The numbers are the same. ``'auto'``:
            all if that is expected to stay within ``memory_limit``, else as many as do.
        memory_limit: How many bytes the call may need at its peak, beyond what is there before it; implies
            ``chunk_size='auto'``. None with ``'auto'``: half of what is available on the input's device.
        progress: Whether to show by tqdm how many columns are done.

    Returns:
        A function with ``func``'s arguments. For output ``(*out)`` and argument ``(*in)`` it gives ``(*out, *in)`` in
        the promoted dtype of the two, contiguous. A complex argument gives ``(*out, *in, 2)``: the derivatives along
        the real and the imaginary direction. Structure: that of the output, then ``argnums`` if a tuple, then that
        of the argument. With ``has_aux``, ``(jacobian, aux)``.

    Raises:
        TypeError: An argument to differentiate, or an output, is not a floating or complex tensor.
        ValueError: ``argnums`` are out of range, repeated or empty.
        RuntimeError: A random operator ran under ``randomness='error'``.
        MemoryLimitError: One column at a time is expected to need more than ``memory_limit``.
        MissingPackageError: ``progress`` is asked for, and tqdm is not installed.
        NotImplementedError: Neither pushforward nor PyTorch can differentiate an operator.

    Example:
        >>> jacfwd(torch.sin)(torch.zeros(2))
        tensor([[1., 0.],
                [0., 1.]])

    References:
        Griewank and Walther, Evaluating Derivatives (2008), section 3.1 (forward mode).
    """
    chunks = chunks_of(chunk_size, memory_limit, progress)
    is_whole = chunks.is_whole
    key = key_of(NAME, argnums, randomness, is_whole, has_aux)

    def jacobian(*args: Any, **kwargs: Any) -> Any:
        known = repeated(key, func, args, kwargs)
        if isinstance(known, Answer):
            return known.jacobian(argnums)
        check_function(NAME, func)
        check_randomness(NAME, randomness)
        chunks.check(NAME)
        selected = Selected(NAME, args, normalize_argnums(NAME, argnums, len(args)))
        leaves = selected.leaves
        within = None
        pushing = _pushing(leaves)
        if pushing is not None and not is_whole:
            within = _within(leaves, chunks, there_before(func, args, kwargs), pushing)
            pushing = None if within is None else within.pushing()
        with (
            within or _AT_ONCE,
            Tape(
                NAME,
                func,
                selected,
                kwargs,
                has_aux=has_aux,
                randomness=randomness,
                takes_apart=is_whole,
                pushing=pushing,
                begun=known,
            ) as tape,
        ):
            few = by_entries(tape) if is_whole and tape.tangents is None else None
            if few is not None:
                rows = few
            elif tape.tangents is not None:
                rows = _last(tape, tape.tangents, leaves, chunks, within)
            else:
                outside = None if is_whole else there_before(func, args, kwargs)
                rows = (
                    tape.swept(NAME, functools.partial(pushed_columns, tape))
                    if outside is None
                    else sized_rows(
                        NAME,
                        chunks,
                        tape,
                        outside,
                        NAME,
                        pushed_columns,
                        is_forward=True,
                        may_be_few=True,
                    )
                )
        if few is None or tape.finish is not None:  # else the kernels give entries
            learn(key, tape, selected, args)
        result = arranged(rows, tape, selected, argnums)
        return (result, tape.aux) if has_aux else result

    return named_after(func, jacobian)


def arranged(rows: list[list[Tensor]], tape: Tape, selected: Selected, argnums: Argnums) -> Any:
    """Put Jacobians, one list for each output, into the caller's structure."""
    if selected.is_lone and tape.spec is LEAF and isinstance(argnums, int):
        return rows[0][0]
    trees = [selected.arranged(row) for row in rows]
    return unflatten([t[0] for t in trees] if isinstance(argnums, int) else trees, tape.spec)


def pushed_columns(tape: Tape) -> list[list[Tensor]]:
    """Return the Jacobians of every output with respect to every input, in forward mode."""
    num_batch = tape.num_batch
    return _pushed(tape, _identities(tape.inputs, num_batch), tape.inputs, num_batch)


def _pushed(
    tape: Tape, blocks: Sequence[Blocks], inputs: Sequence[Tensor], num_batch: int = 0
) -> list[list[Tensor]]:
    """Push blocks through a tape, and write the Jacobians with respect to the inputs where they started."""
    return [
        [
            from_tangents(tuple(b for b in found if b.source == i), y, x, num_batch)
            for i, x in enumerate(inputs)
        ]
        for y, found in zip(tape.outputs, tape.program.push(blocks), strict=True)
    ]


def _identities(inputs: Sequence[Tensor], num_batch: int = 0) -> list[Blocks]:
    return [(start(x, i, num_batch),) for i, x in enumerate(inputs)]


def _pushing(inputs: Sequence[Tensor]) -> Pushing | None:
    """Return what may be pushed while the function runs."""
    count = _count(inputs)
    if not count:
        return None
    if count > MAX_COLUMNS:
        return Pushing(count, functools.partial(_identities, inputs), (), push_blocks)
    return Pushing(count, functools.partial(_unit_tangents, inputs), (count,), push_tangents)


def _within(
    inputs: Sequence[Tensor], chunks: Chunks, outside: Iterable[Tensor], at_once: Pushing
) -> InChunks | Limited | None:
    """Return what pushes the columns as the caller asks for; None where they go at once, through a tape as a whole."""
    if isinstance(chunks.size, int):
        return InChunks(NAME, inputs, chunks, outside)
    if chunks.is_fixed:
        return None
    return Limited(NAME, inputs, chunks, outside, at_once, pushed_columns)


def _last(
    tape: Tape,
    tangents: list[Any],
    inputs: Sequence[Tensor],
    chunks: Chunks,
    within: InChunks | Limited | None,
) -> list[list[Tensor]]:
    """Return the Jacobians of a function whose tape was cut, from the tangents at the start of the last piece."""
    in_chunks = within
    if isinstance(within, Limited):
        within.check(result_bytes(tape.outputs, inputs))
        in_chunks = within.in_chunks
    if isinstance(in_chunks, InChunks):
        return in_chunks.last(tape)
    with chunks.reporting(NAME, _count(inputs)) as done:
        rows = _last_columns(tape, tangents, inputs)
        done(_count(inputs))
    return rows


def _last_columns(tape: Tape, tangents: list[Any], inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the Jacobians, from the tangents at the start of the last piece, of which it empties the list."""
    if isinstance(tangents[0], Tensor):
        return _columns(tape.pushed(tangents, (_count(inputs),), is_last=True), tape, inputs)
    given, structure = tensors_in(tangents), structure_of(tangents)
    tangents.clear()
    kind = ("last columns", structure, tuple([directions(x) for x in inputs]))

    def compute() -> list[list[Tensor]]:
        return _pushed(tape, with_structure([given], structure), inputs)

    return tape.swept(kind, compute, given=given, is_last=True)


def _count(inputs: Sequence[Tensor]) -> int:
    return sum(math.prod(directions(x)) for x in inputs)


def _unit_tangents(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return, for each input, its tangents along all directions: unit ones along its own."""
    count, found, begin = _count(inputs), [], 0
    for x in inputs:
        end = begin + math.prod(directions(x))
        own = units(x, 0, end - begin)
        found.append(own.new_zeros((count, *x.shape)))
        found[-1][begin:end] = own
        begin = end
    return found


def _columns(pushed: Sequence[Tensor], tape: Tape, inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the Jacobians, from the tangents ``(count, *y.shape)`` of each output."""
    rows: list[list[Tensor]] = []
    for y, tangents in zip(tape.outputs, pushed, strict=True):
        row, begin = [], 0
        for x in inputs:
            end = begin + math.prod(directions(x))
            columns = tangents[begin:end].movedim(0, -1)
            row.append(_joined([columns], y, x))
            begin = end
        rows.append(row)
    return rows


def _joined(pieces: list[Tensor], primal: Tensor, x: Tensor) -> Tensor:
    shape = tuple(primal.shape) + directions(x)
    if not pieces:
        return torch.zeros(shape, dtype=jacobian_dtype(primal, x), device=primal.device)
    return torch.cat(pieces, dim=-1).reshape(shape).to(jacobian_dtype(primal, x))
