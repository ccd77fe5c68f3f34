"""jacrev: the Jacobian in reverse mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import (
    Argnums,
    P,
    Selected,
    check_function,
    named_after,
    normalize_argnums,
)
from pushforward.transforms.assemble import from_cotangents
from pushforward.transforms.chunks import Chunks, ChunkSize, chunks_of
from pushforward.transforms.jacfwd import arranged
from pushforward.transforms.known_call import Answer, key_of
from pushforward.transforms.memory import sized_rows, there_before
from pushforward.transforms.pulling import pulled_ends
from pushforward.transforms.record import Tape
from pushforward.transforms.repeat import learn, repeated

NAME = "jacrev"


@left_alone_by_dynamo
def jacrev(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    chunk_size: ChunkSize = None,
    memory_limit: int | None = None,
    progress: bool = False,
    _preallocate_and_copy: bool = False,
) -> Callable[P, Any]:
    """Return a function that computes the Jacobian of ``func`` in reverse mode.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree); other arguments may be anything.
        argnums: Which positional arguments, ``int`` or tuple of distinct ``int``; negative counts from the end.
        has_aux: Whether ``func`` returns ``(output, aux)``; ``aux`` may hold anything and is not differentiated.
        chunk_size: As in `jacfwd`, of rows.
        memory_limit: As in `jacfwd`.
        progress: As in `jacfwd`, of rows.
        _preallocate_and_copy: Accepted as ``torch.func`` does. No effect: rows are written where they belong.

    Returns:
        A function with ``func``'s arguments and the results of `jacfwd`, of shapes ``(*out, *in)`` (``(*out, *in, 2)``
        for a complex argument), promoted dtypes, nesting. With ``has_aux``, ``(jacobian, aux)``. Random operators draw
        what the plain call draws.

    Raises:
        TypeError: An argument to differentiate, or an output, is not a floating or complex tensor.
        ValueError: ``argnums`` are out of range, repeated or empty.
        MemoryLimitError: One row at a time is expected to need more than ``memory_limit``.
        NotImplementedError: Neither pushforward nor PyTorch can differentiate an operator.

    Example:
        >>> jacrev(torch.sin)(torch.zeros(2))
        tensor([[1., 0.],
                [0., 1.]])

    References:
        Griewank and Walther, Evaluating Derivatives (2008), section 3.2 (reverse mode).
    """
    return named_jacrev(NAME, func, argnums, has_aux, chunks_of(chunk_size, memory_limit, progress))


def named_jacrev(
    name: str, func: Callable[P, Any], argnums: Argnums, has_aux: bool, chunks: Chunks
) -> Callable[P, Any]:
    """Return what computes the Jacobian in reverse mode; errors say ``name``."""
    is_whole = chunks.is_whole
    key = key_of(NAME, argnums, "same", is_whole, has_aux)

    def jacobian(*args: Any, **kwargs: Any) -> Any:
        known = repeated(key, func, args, kwargs)
        if isinstance(known, Answer):
            return known.jacobian(argnums)
        check_function(name, func)
        chunks.check(name)
        positions = normalize_argnums(name, argnums, len(args))
        selected = Selected(name, args, positions)
        with Tape(
            name,
            func,
            selected,
            kwargs,
            has_aux=has_aux,
            takes_apart=is_whole,
            may_share=True,
            begun=known,
        ) as tape:
            if is_whole:
                rows = tape.swept(NAME, functools.partial(pulled_rows, tape), is_jacobian=True)
            else:
                outside = there_before(func, args, kwargs)
                rows = sized_rows(name, chunks, tape, outside, NAME, pulled_rows, is_forward=False)
        learn(key, tape, selected, args)
        result = arranged(rows, tape.spec, selected, argnums)
        return (result, tape.aux) if has_aux else result

    return named_after(func, jacobian)


def pulled_rows(tape: Tape) -> list[list[Tensor]]:
    """Return the Jacobians of every output with respect to every input, in reverse mode."""
    pulled = pulled_ends(tape)
    return [
        [
            from_cotangents(
                tuple(b for b in blocks if b.source == i), y, x, tape.num_batch_of(place)
            )
            for place, (blocks, x) in enumerate(zip(pulled, tape.inputs, strict=True))
        ]
        for i, y in enumerate(tape.outputs)
    ]
