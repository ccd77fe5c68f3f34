"""jvp: one directional derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

from torch import Tensor

from pushforward.errors import ArgumentTypeError, ArgumentValueError, message
from pushforward.tape.copies import owned
from pushforward.tape.pieces import MAX_PIECE, Pushing
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import A, R, Selected, check_function, match_leaf
from pushforward.transforms.known_call import TapeKey
from pushforward.transforms.pushing import push_tangents
from pushforward.transforms.record import Tape
from pushforward.transforms.repeat import learn, repeated
from pushforward.trees import flatten, unflatten

NAME = "jvp"


@overload
def jvp(
    func: Callable[..., R],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    strict: bool = False,
    has_aux: Literal[False] = False,
) -> tuple[R, R]: ...


@overload
def jvp(
    func: Callable[..., tuple[R, A]],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    strict: bool = False,
    has_aux: Literal[True],
) -> tuple[R, R, A]: ...


@left_alone_by_dynamo
def jvp(
    func: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    strict: bool = False,
    has_aux: bool = False,
) -> Any:
    """Compute ``func`` and its derivative along ``tangents``.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree).
        primals: The arguments, as a tuple.
        tangents: The direction: the same structure and shapes; converted to the primals' dtypes.
        strict: Whether to raise where an output does not depend on any input, instead of giving zeros.
        has_aux: Whether ``func`` returns ``(output, aux)``.

    Returns:
        ``(output, tangent)``, the tangent with the structure, shapes and dtypes of the output; with ``has_aux``
        ``(output, tangent, aux)``.

    Raises:
        TypeError: Primals and tangents differ in structure, or something to differentiate is no floating tensor.
        ValueError: Their shapes differ.
        RuntimeError: ``strict`` and an output is independent of the inputs; or a random operator ran.

    Example:
        >>> jvp(torch.sin, (torch.zeros(2),), (torch.ones(2),))
        (tensor([0., 0.]), tensor([1., 1.]))

    References:
        Griewank and Walther, Evaluating Derivatives (2008), section 3.1.
    """
    return named_jvp(NAME, func, primals, tangents, strict=strict, has_aux=has_aux)


def named_jvp(
    name: str,
    func: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    strict: bool = False,
    has_aux: bool,
) -> Any:
    """Compute ``func`` and its derivative along ``tangents``; errors say ``name``."""
    check_function(name, func)
    check_primals(name, primals)
    directions = match_tangents(name, primals, tangents, num_batch_axes=0)
    key = None if has_aux else TapeKey(name, is_kept=False)
    known = repeated(key, func, primals, {})
    if isinstance(known, Tape):
        pushed = known.pushed(directions)
        return unflatten(known.results, known.spec), _tangent(known, pushed, directions)
    selected = Selected(name, primals, tuple(range(len(primals))))
    with Tape(
        name,
        func,
        selected,
        {},
        has_aux=has_aux,
        takes_apart=True,
        pushing=Pushing(1, lambda: directions, (), push_tangents, least=MAX_PIECE),
        begun=known,
    ) as tape:
        if strict and any(number < 0 for number, _ in tape.reading.outputs):
            raise ArgumentValueError(
                "jvp(f, primals, tangents, strict=True): The output of f is independent of the inputs: got an output "
                "without derivative, expected one that depends on a primal. This is not allowed with strict=True."
            )
        given = tape.tangents  # of the last piece
        pushed = tape.pushed(directions) if given is None else tape.pushed(given, is_last=True)
    learn(key, tape, selected, primals)
    output, tangent = unflatten(tape.results, tape.spec), _tangent(tape, pushed, directions)
    return (output, tangent, tape.aux) if has_aux else (output, tangent)


def _tangent(tape: Tape, pushed: Sequence[Tensor], directions: Sequence[Tensor]) -> Any:
    return unflatten([owned(t, directions) for t in pushed], tape.spec)


def check_primals(name: str, primals: Any) -> None:
    """Refuse primals that are not a tuple of at least one argument."""
    if not isinstance(primals, tuple) or not primals:
        raise ArgumentTypeError(
            message(
                name,
                "primals",
                f"{type(primals).__name__} {primals!r:.60}",
                "primals to be a tuple with at least one tensor",
                "Write (x,) for one argument.",
            )
        )


def match_tangents(name: str, primals: Any, tangents: Any, num_batch_axes: int) -> list[Tensor]:
    """Return the tangents of the tensor leaves, checked, in the primals' dtypes."""
    all_primals, spec = flatten(primals)
    all_tangents, tangent_spec = flatten(tangents)
    if spec != tangent_spec:
        raise ArgumentTypeError(
            f"{name}: Expected primals and tangents to have the same python structure: got {tangent_spec}, expected "
            f"{spec}. Give one tangent for every primal."
        )
    directions: list[Tensor] = []
    for primal, tangent in zip(all_primals, all_tangents, strict=True):
        if not isinstance(primal, Tensor):
            continue
        directions.append(match_leaf(name, "tangent", tangent, primal, num_batch_axes, of="primal"))
    return directions
