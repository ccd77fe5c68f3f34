"""jacobian: the Jacobian in the order that costs least, and value_and_jacobian."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, cast

from torch import Tensor

from pushforward.errors import ArgumentValueError, UnsupportedError, message
from pushforward.linear.block import Block
from pushforward.linear.block_sum import Blocks
from pushforward.linear.elimination import run_order
from pushforward.planning.orders import Mode, Plan, can_cross, plan
from pushforward.tape.continued import Begun
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import (
    Argnums,
    Selected,
    check_chunk_size,
    check_function,
    check_randomness,
    named_after,
    normalize_argnums,
)
from pushforward.transforms.assemble import from_tangents, start
from pushforward.transforms.by_entries import by_entries
from pushforward.transforms.jacfwd import arranged, pushed_columns
from pushforward.transforms.jacrev import pulled_rows
from pushforward.transforms.record import Tape
from pushforward.transforms.repeat import Answer, Key, key_of, learn, repeated
from pushforward.transforms.sparse_output import Output, check_output, sparse_rows
from pushforward.trees import unflatten

NAME = "jacobian"
MODES = ("auto", "forward", "reverse", "cross")


@left_alone_by_dynamo
def jacobian(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    mode: Literal["auto", "forward", "reverse", "cross"] = "auto",
    has_aux: bool = False,
    output: Output = "dense",
    pattern: Any = None,
    chunk_size: int | None = None,
    randomness: Literal["error", "same", "different"] = "error",
) -> Callable[..., Any]:
    """Return a function that computes the Jacobian of ``func`` in the order that costs least.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree); other arguments may be anything.
        argnums: Which positional arguments, ``int`` or tuple of distinct ``int``; negative counts from the end.
        mode: ``'forward'`` pushes tangents, ``'reverse'`` pulls cotangents, ``'cross'`` multiplies the recorded maps
            out in an order that is searched (cross-country elimination); ``'auto'`` takes what a cost model says is
            cheapest. Plans are kept for as long as the recorded program has the same structure; see `explain`.
        has_aux: Whether ``func`` returns ``(output, aux)``.
        output: The form of each Jacobian. ``'dense'``, or a sparse tensor of PyTorch with all rows in one axis and all
            columns in another, ``(out.numel(), in.numel())``: ``'coo'``, ``'csr'``, ``'csc'``, or ``'bsr'``, whose
            blocks are as large as the last axes of output and argument. Its entries are found from the structure of
            ``func``, without a pattern from the caller, and are computed once each; what happens to be zero stays in.
            ``'auto'`` gives ``'csr'`` if a tenth of the entries or fewer are stored, else a dense tensor.
        pattern: Where entries may be nonzero, for one real output and one real argument: a `Pattern`, or a sparse
            matrix of PyTorch or SciPy. The entries are then read from few products with seeds (colouring), which is of
            use where ``func`` has steps whose structure cannot be seen. The first time it is compared with a
            product with a random direction. Left out, the structure of ``func`` decides.
        chunk_size: At most so many columns or rows are carried at once; None for all. Not with ``'cross'``.
        randomness: As in `jacfwd`.

    Returns:
        A function with ``func``'s arguments and the results of `jacfwd`, whatever the mode.

    Raises:
        TypeError: An argument to differentiate, or an output, is not a floating or complex tensor.
        ValueError: ``argnums`` or ``mode`` are not what they may be.
        UnsupportedError: ``mode='cross'`` of a function that mixes dtypes or has complex numbers; a sparse ``output``
            under a transform of ``torch.func``, or of an operator whose own Jacobian is too large.

    Example:
        >>> jacobian(torch.sin)(torch.zeros(2))
        tensor([[1., 0.],
                [0., 1.]])
        >>> jacobian(lambda x: x.roll(1) * x, output="csr")(torch.ones(3)).col_indices()
        tensor([0, 2, 0, 1, 1, 2])

    References:
        Griewank and Walther, Evaluating Derivatives (2008), chapters 3, 9 and 10.
    """
    is_dense = output == "dense" and pattern is None
    key = key_of(NAME, argnums, randomness, chunk_size, has_aux, mode) if is_dense else None

    def compute(*args: Any, **kwargs: Any) -> Any:
        known = repeated(key, func, args, kwargs)
        if isinstance(known, Answer):
            return known.jacobian(argnums)
        result, tape = _compute(
            func,
            argnums,
            mode,
            output,
            pattern,
            has_aux,
            chunk_size,
            randomness,
            args,
            kwargs,
            key,
            known,
        )
        return (result, tape.aux) if has_aux else result

    return named_after(func, compute)


@left_alone_by_dynamo
def value_and_jacobian(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    mode: Literal["auto", "forward", "reverse", "cross"] = "auto",
    has_aux: bool = False,
    output: Output = "dense",
    pattern: Any = None,
    chunk_size: int | None = None,
    randomness: Literal["error", "same", "different"] = "error",
) -> Callable[..., Any]:
    """Return a function that computes ``func`` and its Jacobian, for the price of the Jacobian.

    Args:
        func: As in `jacobian`.
        argnums: As in `jacobian`.
        mode: As in `jacobian`.
        has_aux: Whether ``func`` returns ``(output, aux)``.
        output: As in `jacobian`.
        pattern: As in `jacobian`.
        chunk_size: As in `jacobian`.
        randomness: As in `jacobian`.

    Returns:
        A function with ``func``'s arguments that gives ``(output, jacobian)``, with ``has_aux``
        ``(output, jacobian, aux)``.

    Raises:
        TypeError: As `jacobian`.
        ValueError: As `jacobian`.
        UnsupportedError: As `jacobian`.

    Example:
        >>> value_and_jacobian(torch.exp)(torch.zeros(1))
        (tensor([1.]), tensor([[1.]]))

    References:
        Griewank and Walther, Evaluating Derivatives (2008), chapters 3, 9 and 10.
    """
    is_dense = output == "dense" and pattern is None
    key = key_of(NAME, argnums, randomness, chunk_size, has_aux, mode) if is_dense else None

    def compute(*args: Any, **kwargs: Any) -> Any:
        known = repeated(key, func, args, kwargs)
        if isinstance(known, Answer):
            return known.value, known.jacobian(argnums)
        result, tape = _compute(
            func,
            argnums,
            mode,
            output,
            pattern,
            has_aux,
            chunk_size,
            randomness,
            args,
            kwargs,
            key,
            known,
        )
        value = unflatten(tape.results, tape.spec)
        return (value, result, tape.aux) if has_aux else (value, result)

    return named_after(func, compute)


def _compute(
    func: Callable[..., Any],
    argnums: Argnums,
    mode: str,
    output: Output,
    pattern: Any,
    has_aux: bool,
    chunk_size: int | None,
    randomness: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: Key | None,
    begun: Begun | None,
) -> tuple[Any, Tape]:
    check_function(NAME, func)
    check_mode(mode, chunk_size)
    check_output(NAME, output, mode, chunk_size, pattern)
    check_randomness(NAME, randomness)
    check_chunk_size(NAME, chunk_size)
    selected = Selected(NAME, args, normalize_argnums(NAME, argnums, len(args)))
    is_dense = output == "dense" and pattern is None
    takes_apart = chunk_size is None and mode != "cross" and is_dense
    with Tape(
        NAME,
        func,
        selected,
        kwargs,
        has_aux=has_aux,
        randomness=randomness,
        takes_apart=takes_apart,
        begun=begun,
    ) as tape:
        if not is_dense:
            rows = sparse_rows(NAME, tape, output, pattern)
        else:
            few = by_entries(tape) if chunk_size is None and mode in ("auto", "forward") else None
            rows = _run(tape, mode, chunk_size) if few is None else few
            if few is not None:
                key = None  # the kernels give entries
    learn(key, tape, selected, args)
    return arranged(rows, tape, selected, argnums), tape


def check_mode(mode: Any, chunk_size: Any = None) -> None:
    """Refuse an unknown mode, and chunks of what has no columns."""
    if mode not in MODES:
        raise ArgumentValueError(
            message(NAME, "mode", repr(mode), f"one of {MODES}", "Leave it out to have it chosen.")
        )
    if mode == "cross" and chunk_size is not None:
        raise ArgumentValueError(
            message(
                NAME,
                "chunk_size",
                chunk_size,
                "None with mode='cross', which carries no columns",
                "Use mode='forward' or 'reverse'.",
            )
        )


def _run(tape: Tape, mode: str, chunk_size: int | None) -> list[list[Tensor]]:
    if chunk_size is not None:
        return tape.computed(functools.partial(_rows, tape, mode, chunk_size))
    return tape.swept(
        (NAME, mode),
        functools.partial(_rows, tape, mode, None),
        functools.partial(_lifetime, tape, mode),
    )


def _lifetime(tape: Tape, mode: str, answered: int) -> float:
    """Return how many calls shall take the same order: until it is worth while to search a better one."""
    if mode in ("forward", "reverse") or not tape.program.equations:
        return math.inf
    plan = planned(tape, mode, with_cross=not tape.num_batch)
    calls = plan.lifetime(tape.program, answered)
    if plan.is_due(tape.program):
        planned(
            tape, mode, with_cross=not tape.num_batch
        )  # search now: what the search calls is not to be repeated
    return calls


def _rows(tape: Tape, mode: str, chunk_size: int | None) -> list[list[Tensor]]:
    if not tape.program.equations:
        return pulled_rows(tape, chunk_size)
    chosen = (
        planned(tape, mode, with_cross=chunk_size is None and not tape.num_batch)
        if mode in ("auto", "cross")
        else None
    )
    if chosen is not None and chosen.mode == "cross":
        return _eliminated(tape, chosen)
    if (chosen.mode if chosen is not None else mode) == "forward":
        return pushed_columns(tape, chunk_size)
    return pulled_rows(tape, chunk_size)


def planned(tape: Tape, mode: str, with_cross: bool = True, search_now: bool = False) -> Plan:
    """Return the plan for what was recorded."""

    def starts() -> list[Block]:
        return [start(x, i, tape.num_batch) for i, x in enumerate(tape.inputs)]

    def ends() -> list[Block]:
        return [start(y, i, tape.num_batch) for i, y in enumerate(tape.outputs)]

    signature = (
        tape.num_batch,
        *[(t.shape, t.dtype) for t in (*tape.inputs, *tape.outputs)],
    )
    # What does not take part in the program counts, too: blocks are made like it.
    is_uniform = len({t.dtype for t in (*tape.inputs, *tape.outputs)}) == 1
    if mode == "cross":
        if not (is_uniform and can_cross(tape.program)):
            raise UnsupportedError(
                message(
                    NAME,
                    "mode='cross'",
                    "a function with complex numbers or several dtypes",
                    "one real dtype throughout",
                    "Use mode='auto', which chooses between forward and reverse.",
                )
            )
        return plan(tape.program, signature, starts, ends, ("cross",))
    if mode in ("forward", "reverse"):
        return plan(tape.program, signature, starts, ends, (cast("Mode", mode),))
    modes: tuple[Mode, ...] = ("forward", "reverse", "cross")
    return plan(
        tape.program,
        signature,
        starts,
        ends,
        modes if with_cross and is_uniform else modes[:2],
        search_now,
    )


def _eliminated(tape: Tape, chosen: Plan) -> list[list[Tensor]]:
    shapes = [tuple(y.shape) for y in tape.outputs]
    graph = run_order(tape.program, chosen.order, shapes, like=tape.inputs[0])
    rows = []
    for i, y in enumerate(tape.outputs):
        row = []
        for j, x in enumerate(tape.inputs):
            blocks: Blocks = graph.jacobian(i, j, like=x)
            row.append(from_tangents(blocks, y, x))
        rows.append(row)
    return rows
