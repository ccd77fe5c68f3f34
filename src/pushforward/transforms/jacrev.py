"""jacrev: the Jacobian in reverse mode."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.block_sum import Blocks, to_rows
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import (
    Argnums,
    Selected,
    check_chunk_size,
    check_function,
    named_after,
    normalize_argnums,
)
from pushforward.transforms.assemble import (
    directions,
    from_cotangents,
    from_rows,
    start,
    unit_seeds,
)
from pushforward.transforms.jacfwd import arranged
from pushforward.transforms.record import Tape
from pushforward.transforms.repeat import Answer, key_of, learn, repeated

NAME = "jacrev"


@left_alone_by_dynamo
def jacrev(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
    _preallocate_and_copy: bool = False,
) -> Callable[..., Any]:
    """Return a function that computes the Jacobian of ``func`` in reverse mode.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree); other arguments may be anything.
        argnums: Which positional arguments, ``int`` or tuple of distinct ``int``; negative counts from the end.
        has_aux: Whether ``func`` returns ``(output, aux)``; ``aux`` may hold anything and is not differentiated.
        chunk_size: At most so many rows are carried at once; None for all. The numbers are the same.
        _preallocate_and_copy: Accepted as ``torch.func`` does. No effect: rows are written where they belong.

    Returns:
        A function with ``func``'s arguments and the results of `jacfwd`: shapes ``(*out, *in)`` (``(*out, *in, 2)`` for
        a complex argument), promoted dtypes, nesting. With ``has_aux``, ``(jacobian, aux)``. Random operators draw what
        the plain call draws.

    Raises:
        TypeError: An argument to differentiate, or an output, is not a floating or complex tensor.
        ValueError: ``argnums`` are out of range, repeated or empty.
        NotImplementedError: Neither pushforward nor PyTorch can differentiate an operator.

    Example:
        >>> jacrev(torch.sin)(torch.zeros(2))
        tensor([[1., 0.],
                [0., 1.]])

    References:
        Griewank and Walther, Evaluating Derivatives (2008), section 3.2 (reverse mode).
    """
    key = key_of(NAME, argnums, "same", chunk_size, has_aux)

    def jacobian(*args: Any, **kwargs: Any) -> Any:
        known = repeated(key, func, args, kwargs)
        if isinstance(known, Answer):
            return known.jacobian(argnums)
        check_function(NAME, func)
        check_chunk_size(NAME, chunk_size)
        positions = normalize_argnums(NAME, argnums, len(args))
        selected = Selected(NAME, args, positions)
        is_whole = chunk_size is None
        with Tape(
            NAME, func, selected, kwargs, has_aux=has_aux, takes_apart=is_whole, begun=known
        ) as tape:
            compute = functools.partial(pulled_rows, tape, chunk_size)
            rows = tape.swept(NAME, compute) if chunk_size is None else tape.computed(compute)
        learn(key, tape, selected, args)
        result = arranged(rows, tape, selected, argnums)
        return (result, tape.aux) if has_aux else result

    return named_after(func, jacobian)


def pulled_rows(tape: Tape, chunk_size: int | None = None) -> list[list[Tensor]]:
    """Return the Jacobians of every output with respect to every input, in reverse mode."""
    if chunk_size is not None:
        return _in_chunks(tape, chunk_size)
    num_batch = tape.num_batch
    cotangents: list[Blocks] = [(start(y, i, num_batch),) for i, y in enumerate(tape.outputs)]
    pulled = tape.pulled(cotangents)
    if len(tape.outputs) == 1:
        y = tape.outputs[0]
        return [
            [from_cotangents(b, y, x, num_batch) for b, x in zip(pulled, tape.inputs, strict=True)]
        ]
    return [
        [
            from_cotangents(tuple(b for b in blocks if b.source == i), y, x, num_batch)
            for blocks, x in zip(pulled, tape.inputs, strict=True)
        ]
        for i, y in enumerate(tape.outputs)
    ]


def _in_chunks(tape: Tape, chunk_size: int) -> list[list[Tensor]]:
    """Pull a bounded number of rows at a time."""
    result = []
    for place, y in enumerate(tape.outputs):
        count = math.prod(directions(y))
        pieces: list[list[Tensor]] = [[] for _ in tape.inputs]
        for begin in range(0, count, chunk_size):
            rows = torch.arange(begin, min(begin + chunk_size, count), device=y.device)
            cotangents: list[Blocks] = [()] * len(tape.outputs)
            cotangents[place] = (unit_seeds(y, rows),)
            for piece, blocks, x in zip(
                pieces, tape.program.pull(cotangents), tape.inputs, strict=True
            ):
                piece.append(to_rows(blocks, tuple(x.shape), (len(rows),), like=x))
        result.append([_joined(piece, y, x) for piece, x in zip(pieces, tape.inputs, strict=True)])
    return result


def _joined(pieces: list[Tensor], y: Tensor, x: Tensor) -> Tensor:
    if not pieces:
        pieces = [torch.zeros((0, *x.shape), dtype=x.dtype, device=x.device)]
    return from_rows(torch.cat(pieces).reshape(directions(y) + tuple(x.shape)), y, x)
