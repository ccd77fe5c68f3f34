"""linearize: record once, push any number of tangents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pushforward.linear.block import seeds
from pushforward.linear.block_sum import to_dense
from pushforward.linear.program import LinearProgram
from pushforward.transforms.arguments import Selected, batch_size, check_function
from pushforward.transforms.jvp import check_primals, match_tangents, owned
from pushforward.transforms.record import Tape
from pushforward.trees import TreeSpec, unflatten

NAME = "linearize"


class LinearFunction:
    """The derivative of a function at a point: takes tangents of its inputs to those of its outputs."""

    def __init__(
        self,
        program: LinearProgram,
        primals: tuple[Any, ...],
        leaves: list[Tensor],
        outputs: list[Tensor],
        spec: TreeSpec,
    ) -> None:
        """Keep the program and the shapes on both sides."""
        self.program = program
        self._primals = primals
        self._leaves = leaves
        self._outputs = outputs
        self._spec = spec

    def __call__(self, *tangents: Any) -> Any:
        """Push one tangent for every primal; returns the structure of the output."""
        return self._push(tangents, ())

    def batched(self, *tangents: Any) -> Any:
        """Push a batch: every tangent, and every result, has a leading axis of directions."""
        size = batch_size(NAME, tangents, "tangents", "directions")
        return self._push(tangents, (size,))

    def _push(self, tangents: tuple[Any, ...], batch: tuple[int, ...]) -> Any:
        directions = match_tangents(NAME, self._primals, tangents, self._leaves, len(batch))
        pushed = self.program.push([(seeds(t, batch, 0),) for t in directions])
        results = []
        for blocks, primal in zip(pushed, self._outputs, strict=True):
            dense = owned(to_dense(blocks, tuple(primal.shape), batch, like=primal), directions)
            results.append(dense.movedim(-1, 0) if batch else dense)
        return unflatten(results, self._spec)

    def __repr__(self) -> str:
        """Show the size of the program."""
        return f"LinearFunction({len(self.program.equations)} equations)"


def linearize(func: Callable[..., Any], *primals: Any) -> tuple[Any, LinearFunction]:
    """Compute ``func`` and return its derivative at ``primals`` as a function that can be called again.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree). It is called once.
        *primals: Its arguments.

    Returns:
        ``(output, linear)``: ``linear(*tangents)`` is the derivative along one tangent for every primal;
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
    check_function(NAME, func)
    check_primals(NAME, primals)
    selected = Selected(NAME, primals, tuple(range(len(primals))))
    tape = Tape(NAME, func, selected, {}, is_kept=True)
    linear = LinearFunction(tape.program, primals, selected.leaves, tape.outputs, tape.spec)
    return unflatten(tape.outputs, tape.spec), linear
