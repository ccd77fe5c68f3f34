"""vjp: the output, and a function that pulls cotangents back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, overload

from torch import Tensor

from pushforward.errors import ArgumentTypeError
from pushforward.linear.block import seeds
from pushforward.linear.block_sum import to_rows
from pushforward.tape.copies import owned
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import A, R, Selected, batch_size, check_function, match_leaf
from pushforward.transforms.jvp import check_primals
from pushforward.transforms.known_call import TapeKey
from pushforward.transforms.record import Tape
from pushforward.transforms.repeat import learn, repeated
from pushforward.trees import flatten, unflatten

NAME = "vjp"
KEY = TapeKey(NAME, is_kept=True)


class Pullback:
    """The transposed derivative of a function at a point: takes cotangents of its outputs to those of its inputs."""

    def __init__(self, tape: Tape, arranged: Callable[[list[Tensor]], tuple[Any, ...]]) -> None:
        """Keep the tape, and what puts cotangents into the structure of the primals."""
        self._tape = tape
        self._arranged = arranged

    @left_alone_by_dynamo
    def __call__(
        self, cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None
    ) -> tuple[Any, ...]:
        """Pull one cotangent for every output, in the output's structure.

        Args:
            cotangents: The structure and shapes of the output; converted to its dtypes.
            retain_graph: Accepted as ``torch.func`` does. No effect: a program can be pulled any number of times.
            create_graph: Likewise. Autograd records while grad mode is on.

        Returns:
            A tuple with one cotangent for every primal, in the primal's structure, shape and dtype.

        Raises:
            TypeError: The structure is another.
            ValueError: A shape is another.
        """
        del retain_graph, create_graph
        return self._pull(cotangents, ())

    @left_alone_by_dynamo
    def batched(self, cotangents: Any) -> tuple[Any, ...]:
        """Pull a batch: every cotangent, and every result, has a leading axis."""
        size = batch_size(NAME, cotangents, "cotangents", "cotangents")
        return self._pull(cotangents, (size,))

    def _pull(self, cotangents: Any, batch: tuple[int, ...]) -> tuple[Any, ...]:
        tape = self._tape
        return self._arranged(
            pulled_batch(tape, match_cotangents(cotangents, tape, len(batch)), batch)
        )

    def __repr__(self) -> str:
        """Show the size of the program."""
        return f"Pullback({len(self._tape.program.equations)} equations)"


def pulled_batch(tape: Tape, cotangents: list[Tensor], batch: tuple[int, ...]) -> list[Tensor]:
    """Pull one cotangent, or a batch, of every output; a batch is the first axis, here and of the results."""
    place, kind = len(batch), (NAME, batch)
    pulled, given = tape.product(kind, cotangents), cotangents
    if pulled is None:
        given = tape.physical(cotangents, place)
        compute = functools.partial(_pulled, tape, given, batch)
        (pulled,) = tape.swept(kind, compute, given=given, place=place)
    return [owned(t, given) for t in pulled]


def _pulled(tape: Tape, cotangents: list[Tensor], batch: tuple[int, ...]) -> list[list[Tensor]]:
    pulled = tape.pulled([(seeds(t, batch, 0),) for t in cotangents])
    return [
        [
            to_rows(blocks, tuple(x.shape), batch, like=x)
            for blocks, x in zip(pulled, tape.inputs, strict=True)
        ]
    ]


@overload
def vjp(
    func: Callable[..., R], *primals: Any, has_aux: Literal[False] = False, **kwargs: Any
) -> tuple[R, Pullback]: ...


@overload
def vjp(
    func: Callable[..., tuple[R, A]], *primals: Any, has_aux: Literal[True], **kwargs: Any
) -> tuple[R, Pullback, A]: ...


@left_alone_by_dynamo
def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False, **kwargs: Any) -> Any:
    """Compute ``func`` and return a function that multiplies cotangents by its transposed Jacobian.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree). It is called once.
        *primals: Its arguments.
        has_aux: Whether ``func`` returns ``(output, aux)``.
        **kwargs: Keyword arguments of ``func``.

    Returns:
        ``(output, pullback)``, with ``has_aux`` ``(output, pullback, aux)``. ``pullback(cotangents)`` takes the
        structure of the output and returns a tuple with a cotangent for every primal;
        ``pullback.batched(cotangents)`` takes a leading axis of cotangents. Complex numbers: the transpose for the
        inner product Re⟨a, b⟩, as in ``torch.autograd``. Autograd flows through the results.

    Raises:
        TypeError: A primal has no floating or complex tensor, or cotangents of another structure are given.
        ValueError: A cotangent has another shape than its output.

    Example:
        >>> output, pullback = vjp(torch.sin, torch.zeros(2))
        >>> pullback(torch.tensor([1.0, 2.0]))
        (tensor([1., 2.]),)

    References:
        Griewank and Walther, Evaluating Derivatives (2008), section 3.2 (reverse mode).
    """
    key = None if has_aux else KEY
    known = repeated(key, func, primals, kwargs)
    if isinstance(known, Tape):
        return unflatten(known.results, known.spec), Pullback(known, known.arranged)
    check_function(NAME, func)
    check_primals(NAME, primals)
    selected = Selected(NAME, primals, tuple(range(len(primals))))
    tape = Tape(
        NAME, func, selected, kwargs, has_aux=has_aux, is_kept=True, takes_apart=True, begun=known
    )
    learn(key, tape, selected, primals)
    output = unflatten(tape.results, tape.spec)
    pullback = Pullback(tape, selected.arranged)
    return (output, pullback, tape.aux) if has_aux else (output, pullback)


def match_cotangents(cotangents: Any, tape: Tape, num_batch_axes: int) -> list[Tensor]:
    """Return the cotangents, checked, in the outputs' dtypes."""
    leaves, spec = flatten(cotangents)
    if spec is not tape.spec and spec != tape.spec:
        raise ArgumentTypeError(
            f"{NAME}: Expected pytree structure of cotangents to be the same as pytree structure of outputs to the "
            f"function: got cotangents: {spec}, expected primal output: {tape.spec}. Give one for every output."
        )
    return [
        match_leaf(NAME, "cotangent", cotangent, primal, num_batch_axes, of="output")
        for cotangent, primal in zip(leaves, tape.results, strict=True)
    ]
