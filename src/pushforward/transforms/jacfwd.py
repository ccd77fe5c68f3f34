"""jacfwd: the Jacobian in forward mode."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

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
from pushforward.transforms.by_entries import by_entries
from pushforward.transforms.chunks import ChunkSize, chunks_of
from pushforward.transforms.forward import Forward, pushed_columns
from pushforward.transforms.known_call import Answer, key_of
from pushforward.transforms.memory import sized_rows, there_before
from pushforward.transforms.record import Tape
from pushforward.transforms.repeat import learn, repeated
from pushforward.trees import LEAF, TreeSpec, unflatten

NAME = "jacfwd"


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
        with (
            Forward(NAME, selected.leaves, chunks, there_before(func, args, kwargs)) as forward,
            Tape(
                NAME,
                func,
                selected,
                kwargs,
                has_aux=has_aux,
                randomness=randomness,
                takes_apart=is_whole,
                may_share=True,
                pushing=forward.pushing,
                begun=known,
            ) as tape,
        ):
            few = by_entries(tape) if is_whole and tape.tangents is None else None
            rows = forward.rows(tape) if few is None else few
            if rows is None and is_whole:
                rows = tape.swept(NAME, functools.partial(pushed_columns, tape), is_jacobian=True)
            elif rows is None:
                rows = sized_rows(
                    NAME,
                    chunks,
                    tape,
                    there_before(func, args, kwargs),
                    NAME,
                    pushed_columns,
                    is_forward=True,
                    may_be_few=True,
                )
        if few is None or tape.finish is not None:  # else the kernels give entries
            learn(key, tape, selected, args)
        result = arranged(rows, tape.spec, selected, argnums)
        return (result, tape.aux) if has_aux else result

    return named_after(func, jacobian)


def arranged(
    rows: Sequence[list[Any]], spec: TreeSpec, selected: Selected, argnums: Argnums
) -> Any:
    """Put Jacobians, or what there is of each, one list for each output, into the caller's structure."""
    if selected.is_lone and spec is LEAF and isinstance(argnums, int):
        return rows[0][0]
    trees = [selected.arranged(row) for row in rows]
    return unflatten([t[0] for t in trees] if isinstance(argnums, int) else trees, spec)
