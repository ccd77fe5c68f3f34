"""jacobian: the Jacobian in the order that costs least, and value_and_jacobian."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

from torch import Tensor

from pushforward.errors import UnsupportedError, message
from pushforward.linear.block import Block
from pushforward.linear.block_sum import Blocks
from pushforward.linear.elimination import run_order
from pushforward.planning.memory import Need
from pushforward.planning.orders import Mode, Plan, can_cross, plan
from pushforward.planning.plans import PLANS
from pushforward.tape.continued import Begun
from pushforward.tape.private_torch import left_alone_by_dynamo, num_dispatch_modes
from pushforward.transforms.arguments import (
    Argnums,
    P,
    Selected,
    check_function,
    check_randomness,
    named_after,
    normalize_argnums,
)
from pushforward.transforms.asked import Asked, check_mode
from pushforward.transforms.assemble import from_tangents, start
from pushforward.transforms.by_entries import by_entries
from pushforward.transforms.chunks import Chunks, ChunkSize, chunks_of, num_seeds
from pushforward.transforms.forward import Forward, pushed_columns
from pushforward.transforms.jacfwd import arranged
from pushforward.transforms.jacrev import pulled_rows
from pushforward.transforms.known_call import Answer, Key, key_of
from pushforward.transforms.memory import need_of, sized_rows, there_before
from pushforward.transforms.record import Tape
from pushforward.transforms.repeat import learn, repeated
from pushforward.transforms.sparse_output import Output, check_output, sparse_rows
from pushforward.trees import unflatten

NAME = "jacobian"
WAYS = "ways"  # what is stored of structures that are differentiated in chunks


@left_alone_by_dynamo
def jacobian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    mode: Literal["auto", "forward", "reverse", "cross"] = "auto",
    has_aux: bool = False,
    output: Output = "dense",
    pattern: Any = None,
    chunk_size: ChunkSize = None,
    memory_limit: int | None = None,
    progress: bool = False,
    randomness: Literal["error", "same", "different"] = "error",
) -> Callable[P, Any]:
    """Return a function that computes the Jacobian of ``func`` in the order that costs least.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree); other arguments may be anything.
        argnums: Which positional arguments, ``int`` or tuple of distinct ``int``; negative counts from the end.
        mode: ``'forward'`` pushes tangents, ``'reverse'`` pulls cotangents, ``'cross'`` multiplies the recorded maps
            out in an order that is searched (cross-country elimination); ``'auto'`` takes what a cost model says is
            cheapest, and ``'reverse'`` where the function has hooks, which no other mode calls. Plans are kept for as
            long as the recorded program has the same structure; see `explain`.
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
        chunk_size: As in `jacfwd`, of columns or rows. No number with ``'cross'``, which carries neither.
        memory_limit: As in `jacfwd`.
        progress: As in `jacfwd`, of columns or rows.
        randomness: As in `jacfwd`.

    Returns:
        A function with ``func``'s arguments and the results of `jacfwd`, whatever the mode.

    Raises:
        TypeError: An argument to differentiate, or an output, is not a floating or complex tensor.
        ValueError: ``argnums`` or ``mode`` are not what they may be.
        MemoryLimitError: One column or row at a time is expected to need more than ``memory_limit``.
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
    chunks = chunks_of(chunk_size, memory_limit, progress)
    asked = Asked(NAME, argnums, mode, has_aux, output, pattern, chunks, randomness)
    return named_after(func, computing(func, asked))


@left_alone_by_dynamo
def value_and_jacobian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    mode: Literal["auto", "forward", "reverse", "cross"] = "auto",
    has_aux: bool = False,
    output: Output = "dense",
    pattern: Any = None,
    chunk_size: ChunkSize = None,
    memory_limit: int | None = None,
    progress: bool = False,
    randomness: Literal["error", "same", "different"] = "error",
) -> Callable[P, Any]:
    """Return a function that computes ``func`` and its Jacobian, for the price of the Jacobian.

    Args:
        func: As in `jacobian`.
        argnums: As in `jacobian`.
        mode: As in `jacobian`.
        has_aux: Whether ``func`` returns ``(output, aux)``.
        output: As in `jacobian`.
        pattern: As in `jacobian`.
        chunk_size: As in `jacobian`.
        memory_limit: As in `jacobian`.
        progress: As in `jacobian`.
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
    chunks = chunks_of(chunk_size, memory_limit, progress)
    name = "value_and_jacobian"
    asked = Asked(name, argnums, mode, has_aux, output, pattern, chunks, randomness)
    return named_after(func, computing(func, asked, with_value=True))


def computing(
    func: Callable[..., Any], asked: Asked, *, with_value: bool = False
) -> Callable[..., Any]:
    """Return the function that computes the Jacobian of ``func``, and the value too if that is wanted."""
    argnums, has_aux, key = asked.argnums, asked.has_aux, None
    if asked.is_dense:
        is_whole = asked.chunks.is_whole
        key = key_of(asked.name, argnums, asked.randomness, is_whole, has_aux, asked.mode)

    def compute(*args: Any, **kwargs: Any) -> Any:
        known = repeated(key, func, args, kwargs)
        if isinstance(known, Answer):
            result = known.jacobian(argnums)
            return (known.value, result) if with_value else result
        result, tape = _compute(func, asked, args, kwargs, key, known)
        if not with_value:
            return (result, tape.aux) if has_aux else result
        value = unflatten(tape.results, tape.spec)
        return (value, result, tape.aux) if has_aux else (value, result)

    return compute


def _compute(
    func: Callable[..., Any],
    asked: Asked,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: Key | None,
    begun: Begun | None,
) -> tuple[Any, Tape]:
    name, mode, chunks, is_dense = asked.name, asked.mode, asked.chunks, asked.is_dense
    check_function(name, func)
    chunks.check(name)
    check_mode(name, mode, chunks.size)
    check_output(name, asked.output, mode, chunks, asked.pattern)
    check_randomness(name, asked.randomness)
    selected = Selected(name, args, normalize_argnums(name, asked.argnums, len(args)))
    is_whole = chunks.is_whole
    forward: Forward | None = None
    if is_dense and mode == "forward":
        forward = Forward(name, selected.leaves, chunks, there_before(func, args, kwargs))
    with (
        forward or contextlib.nullcontext(),
        Tape(
            name,
            func,
            selected,
            kwargs,
            has_aux=asked.has_aux,
            randomness=asked.randomness,
            takes_apart=is_whole and mode != "cross" and is_dense,
            may_share=True,
            pushing=None if forward is None else forward.pushing,
            begun=begun,
        ) as tape,
    ):
        cut = None if forward is None else forward.rows(tape)
        if not is_dense:
            rows = sparse_rows(name, tape, asked.output, asked.pattern)
        elif cut is not None:
            rows = cut
        else:
            few = by_entries(tape) if is_whole and mode in ("auto", "forward") else None
            if few is not None:
                rows = few
                key = None if tape.finish is None else key  # the kernels give entries
            elif is_whole:
                rows = dense_rows(tape, mode)
            else:
                rows = _sized(tape, mode, chunks, there_before(func, args, kwargs))
    learn(key, tape, selected, args)
    return arranged(rows, tape.spec, selected, asked.argnums), tape


def dense_rows(tape: Tape, mode: str = "auto") -> list[list[Tensor]]:
    """Return the Jacobians of every output with respect to every input, in one sweep."""
    rows = functools.partial(_rows, mode, tape)
    return tape.swept(
        (NAME, mode), rows, functools.partial(_lifetime, tape, mode), is_jacobian=True
    )


def _sized(tape: Tape, mode: str, chunks: Chunks, outside: Iterable[Tensor]) -> list[list[Tensor]]:
    """Compute within the caller's limits: forward or in reverse, as chunks go, unless told otherwise."""
    way = _way(tape) if mode == "auto" else mode
    whole = functools.partial(_rows, way)
    is_forward = _is_forward(tape, way)
    return sized_rows(
        tape.name,
        chunks,
        tape,
        outside,
        (NAME, way),
        whole,
        is_forward=is_forward,
        may_be_few=mode in ("auto", "forward"),
    )


def planned_need(tape: Tape, plan: Plan, outside: Iterable[Tensor]) -> Need:
    """Return what a call that follows a plan needs, in one sweep or in chunks."""
    whole = functools.partial(_by_plan, plan)
    kind = (NAME, plan.mode, plan.order)
    return need_of(tape, outside, kind, whole, is_forward=_is_forward(tape, plan.mode))


def _is_forward(tape: Tape, way: str) -> bool:
    """Tell whether chunks are of columns: in cross-country mode, which has neither, if these are fewer than rows."""
    if way == "cross":
        return num_seeds(tape, is_forward=True) <= num_seeds(tape, is_forward=False)
    return way == "forward"


def _way(tape: Tape) -> str:
    """Return whether to go forward or in reverse: the same for each call of a structure."""
    if tape.has_hooks:
        return "reverse"
    if num_dispatch_modes():  # sizes may not hash
        return planned(tape, "auto", with_cross=False).mode
    way: str | None = PLANS.find(WAYS, tape.signature)
    if way is None:
        way = planned(tape, "auto", with_cross=False).mode if tape.program.equations else "reverse"
        tape.forget_maps()
        PLANS.keep(WAYS, tape.signature, way)
    return way


def _lifetime(tape: Tape, mode: str, answered: int) -> float:
    """Return how many calls shall take the same order: until it is worth while to search a better one."""
    if mode in ("forward", "reverse") or not tape.program.equations:
        return math.inf
    plan = planned(tape, mode, with_cross=not tape.num_batch)
    calls = plan.lifetime(tape.program, answered)
    if plan.is_due(tape.program):
        # Search now: what the search calls is not to be repeated
        planned(tape, mode, with_cross=not tape.num_batch)
    return calls


def _rows(mode: str, tape: Tape) -> list[list[Tensor]]:
    if not tape.program.equations or mode == "reverse":
        return pulled_rows(tape)
    if mode == "forward":
        return pushed_columns(tape)
    return _by_plan(planned(tape, mode, with_cross=not tape.num_batch), tape)


def _by_plan(plan: Plan, tape: Tape) -> list[list[Tensor]]:
    if plan.mode == "cross":
        return _eliminated(tape, plan)
    return _rows(plan.mode, tape)


def planned(tape: Tape, mode: str, with_cross: bool = True, search_now: bool = False) -> Plan:
    """Return the plan for what was recorded."""

    def starts() -> list[Block]:
        return [start(x, i, tape.num_batch_of(i)) for i, x in enumerate(tape.inputs)]

    def ends() -> list[Block]:
        num_batch = 0 if tape.shared else tape.num_batch
        return [start(y, i, num_batch) for i, y in enumerate(tape.outputs)]

    if mode == "auto" and tape.has_hooks:
        mode = "reverse"  # which calls them
    signature = (
        tape.num_batch,
        tape.shared,
        *[(t.shape, t.dtype) for t in (*tape.inputs, *tape.outputs)],
    )
    is_uniform = len({y.dtype for y in _dependent(tape)}) == 1
    if tape.reading.is_distributed:  # only sweeps are the same in every process
        with_cross = False
    if mode == "cross":
        refused = None
        if tape.reading.is_distributed:
            refused = ("a function with distributed tensors in it", "plain ones")
        elif tape.has_hooks:
            refused = ("a function with hooks", "none, as only reverse mode calls them all")
        elif not (is_uniform and can_cross(tape.program)):
            refused = (
                "a function with complex numbers or several dtypes",
                "one real dtype throughout",
            )
        if refused is not None:
            way_out = "Use mode='auto', which chooses between forward and reverse."
            raise UnsupportedError(message(tape.name, "mode='cross'", *refused, way_out))
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


def _dependent(tape: Tape) -> list[Tensor]:
    """Return the outputs that depend on an input."""
    outputs = zip(tape.outputs, tape.program.outputs, strict=True)
    return [y for y, variable in outputs if variable is not None]


def _eliminated(tape: Tape, chosen: Plan) -> list[list[Tensor]]:
    shapes = [tuple(y.shape) for y in tape.outputs]
    graph = run_order(tape.program, chosen.order, shapes, like=_dependent(tape)[0])
    rows = []
    for i, y in enumerate(tape.outputs):
        row = []
        for j, x in enumerate(tape.inputs):
            blocks: Blocks = graph.jacobian(i, j, like=x)
            row.append(from_tangents(blocks, y, x))
        rows.append(row)
    return rows
