"""linearize: record once, push any number of tangents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pushforward.tape.copies import owned
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import R, Selected, batch_size, check_function
from pushforward.transforms.jvp import check_primals, match_tangents
from pushforward.transforms.known_call import TapeKey
from pushforward.transforms.record import Tape
from pushforward.transforms.repeat import learn, repeated
from pushforward.trees import unflatten

NAME = "linearize"
KEY = TapeKey(NAME, is_kept=True)


class LinearFunction:
    """The derivative of a function at a point: takes tangents of its inputs to those of its outputs."""

    def __init__(self, tape: Tape, primals: tuple[Any, ...]) -> None:
        """Keep the tape."""
        self._tape = tape
        self._primals = primals

    @left_alone_by_dynamo
    def __call__(self, *tangents: Any) -> Any:
        """Push one tangent for every primal; returns the structure of the output."""
        return self._push(tangents, ())

    @left_alone_by_dynamo
    def batched(self, *tangents: Any) -> Any:
        """Push a batch: every tangent, and every result, has a leading axis of directions."""
        size = batch_size(NAME, tangents, "tangents", "directions")
        return self._push(tangents, (size,))

    def _push(self, tangents: tuple[Any, ...], batch: tuple[int, ...]) -> Any:
        tape = self._tape
        directions = match_tangents(NAME, self._primals, tangents, len(batch))
        results = [owned(t, directions) for t in tape.pushed(directions, batch)]
        return unflatten(results, tape.spec)

    def __repr__(self) -> str:
        """Show the size of the program."""
        return f"LinearFunction({len(self._tape.program.equations)} equations)"


@left_alone_by_dynamo
def linearize(func: Callable[..., R], *primals: Any) -> tuple[R, LinearFunction]:
    """Compute ``func`` and return its derivative at ``primals`` as a function that can be called again.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree). It is called once.
        *primals: Its arguments.

    Returns:
        ``(output, linear)``. ``linear(*tangents)`` is the derivative along one tangent for every primal;
        ``linear.batched(*tangents)`` takes tangents with a leading axis of directions, and gives results with one.
        Autograd flows through both, to the tangents, the primals and captured parameters.

    Raises:
        TypeError: A primal has no floating or complex tensor, or tangents of another structure are given.
        ValueError: A tangent has another shape than its primal.

    Example:
        >>> output, linear = linearize(torch.sin, torch.zeros(2))
        >>> linear(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])

    References:
        Griewank and Walther, Evaluating Derivatives (2008), section 3.1; the interface is that of JAX.
    """
    known = repeated(KEY, func, primals, {})
    if isinstance(known, Tape):
        return unflatten(known.results, known.spec), LinearFunction(known, primals)
    check_function(NAME, func)
    check_primals(NAME, primals)
    selected = Selected(NAME, primals, tuple(range(len(primals))))
    tape = Tape(NAME, func, selected, {}, is_kept=True, takes_apart=True, begun=known)
    learn(KEY, tape, selected, primals)
    return unflatten(tape.results, tape.spec), LinearFunction(tape, primals)
