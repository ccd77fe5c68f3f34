"""explain: what was recorded of a function, and in which order its Jacobian is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

from pushforward.planning.explain import Explanation, explain_plan
from pushforward.tape.lines import depth_here, line_of, noting_lines
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import Argnums, Selected, check_function, normalize_argnums
from pushforward.transforms.asked import check_mode
from pushforward.transforms.assemble import start
from pushforward.transforms.chunks import Chunks
from pushforward.transforms.jacobian import planned, planned_need
from pushforward.transforms.memory import there_before
from pushforward.transforms.record import Tape

NAME = "explain"


@left_alone_by_dynamo
def explain(
    func: Callable[..., Any],
    *args: Any,
    argnums: Argnums = 0,
    mode: Literal["auto", "forward", "reverse", "cross"] = "auto",
    memory_limit: int | None = None,
    **kwargs: Any,
) -> Explanation:
    """Record ``func`` and say how `jacobian` would differentiate it; print what is returned.

    Args:
        func: As in `jacobian`; or what `compile` returned: then the graph that runs, and how long its operators take.
        *args: Its arguments.
        argnums: With respect to which of them, ``int`` or tuple of ``int``.
        mode: As in `jacobian`. With ``'auto'`` all orders are searched at once, which `jacobian` puts off until the
            calls have been worth it.
        memory_limit: As in `jacobian`: say which ``chunk_size`` would be chosen.
        **kwargs: Keyword arguments of ``func``.

    Returns:
        An object that prints as a table: the primitives, whether a rule of ours or PyTorch's derivative gave
        their maps, the blocks (shape ← seeds; ``n~k`` is a seed axis of size n tied to axis k), the lines of code
        that called them, the orders with their predicted costs, and the memory expected: what blocks and tape hold,
        and the peak of a whole call. ``plot()`` draws the graph and its blocks; notebooks show the table as HTML.

    Raises:
        TypeError: An argument to differentiate, or an output, is not a floating or complex tensor.
        ValueError: ``argnums`` or ``mode`` are not what they may be.

    Example:
        >>> print(explain(torch.sin, torch.zeros(3)))  # doctest: +ELLIPSIS
            operator          by    map              blocks
        v0  input 3                                  (3 ← 3~0)
        v1  aten.sin.default  rule  Scale(3 ← 3) v0  (3 ← 3~0)
        ...

    References:
        Griewank and Walther, Evaluating Derivatives (2008), chapters 9 and 10.
    """
    check_function(NAME, func)
    explained = getattr(func, "explained", None)
    if explained is not None:  # of `compile`
        return cast("Explanation", explained(args, kwargs))
    check_mode(NAME, mode)
    Chunks(limit=memory_limit).check(NAME)
    selected = Selected(NAME, args, normalize_argnums(NAME, argnums, len(args)))
    with noting_lines():
        recorded = Tape(NAME, func, selected, kwargs)
    with recorded as tape:
        depth = depth_here()
        lines = [line_of(node, depth) for node in tape.reading.nodes]
        plan = planned(tape, mode, search_now=True)
        inputs = [start(x, i) for i, x in enumerate(tape.inputs)]
        need = planned_need(tape, plan, there_before(func, args, kwargs))
        return explain_plan(
            tape.program, plan, inputs, tape.num_bytes, need, memory_limit, lines=lines
        )
