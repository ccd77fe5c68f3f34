"""pattern: where the Jacobian of a function may be nonzero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pushforward.sparse.pattern import Pattern
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import Argnums, Selected, check_function, normalize_argnums
from pushforward.transforms.chunks import Chunks
from pushforward.transforms.jacfwd import arranged
from pushforward.transforms.record import Tape
from pushforward.transforms.sparse_output import check_output, layouts_of

NAME = "pattern"


@left_alone_by_dynamo
def pattern(func: Callable[..., Any], *args: Any, argnums: Argnums = 0, **kwargs: Any) -> Any:
    """Return where the Jacobian of ``func`` at ``args`` may be nonzero, found from its structure.

    The pattern is that of the derivative, not of the function: what ``func`` detaches is not followed, and custom
    rules count. It holds for the branch that ``func`` takes at ``args``, and for the elements of its index tensors.
    No nonzero is missed. Entries too many come from operators that mix all of an axis (softmax, norms, inverses,
    pooling), which count as dense along it, and from custom functions, which count as dense.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree).
        args: Its arguments.
        argnums: Which positional arguments, ``int`` or tuple of distinct ``int``; negative counts from the end.
        kwargs: Its keyword arguments.

    Returns:
        A `Pattern` of ``out.numel()`` rows and ``in.numel()`` columns, twice as many where the argument is complex,
        for its real and imaginary direction; nested as the Jacobian of `jacobian` is.

    Raises:
        TypeError: An argument to differentiate, or an output, is not a floating or complex tensor.
        ValueError: ``argnums`` are out of range, repeated or empty.
        UnsupportedError: Under a transform of ``torch.func``, or for an operator whose own Jacobian is too large.

    Example:
        >>> print(pattern(lambda x: x[1:] - x[:-1], torch.zeros(3)).cols)
        tensor([0, 1, 1, 2])

    References:
        Griewank and Walther, Evaluating Derivatives (2008), chapter 7 (Jacobian sparsity).
    """
    check_function(NAME, func)
    check_output(NAME, "csr", "auto", Chunks())
    selected = Selected(NAME, args, normalize_argnums(NAME, argnums, len(args)))
    with Tape(NAME, func, selected, kwargs) as tape:
        layouts = layouts_of(tape)
    rows = [[Pattern(known.shape, known.starts, known.columns) for known in row] for row in layouts]
    return arranged(rows, tape.spec, selected, argnums)
