"""grad: the gradient of a scalar function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pushforward.errors import ArgumentTypeError, ArgumentValueError
from pushforward.linear.block_sum import to_rows
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms import sparse_arguments
from pushforward.transforms.arguments import (
    Argnums,
    P,
    Selected,
    check_function,
    named_after,
    normalize_argnums,
)
from pushforward.transforms.assemble import unpinned
from pushforward.transforms.known_call import Answer, Key, key_of
from pushforward.transforms.pulling import pulled_ends
from pushforward.transforms.record import Tape
from pushforward.transforms.repeat import learn, repeated
from pushforward.trees import unflatten


@left_alone_by_dynamo
def grad(func: Callable[P, Any], argnums: Argnums = 0, has_aux: bool = False) -> Callable[P, Any]:
    """Return a function that computes the gradient of a scalar ``func``.

    Args:
        func: Returns one real tensor with one element and no axes.
        argnums: Which positional arguments, ``int`` or tuple of distinct ``int``; negative counts from the end.
        has_aux: Whether ``func`` returns ``(output, aux)``.

    Returns:
        A function with ``func``'s arguments. It gives the gradient in the structure, shapes and dtypes of the argument
        (a tuple of them if ``argnums`` is one); with ``has_aux``, ``(gradient, aux)``. The gradient with respect to a
        complex argument is that of ``torch.autograd``: ∂f/∂a + i ∂f/∂b at a + ib.

    Raises:
        TypeError: The output is not a real tensor, or an argument to differentiate is no floating or complex tensor.
        ValueError: The output has axes, or ``argnums`` are out of range, repeated or empty.

    Example:
        >>> grad(lambda x: (x * x).sum())(torch.tensor([1.0, 2.0]))
        tensor([2., 4.])

    References:
        Griewank and Walther, Evaluating Derivatives (2008), section 3.2 (reverse mode).
    """
    key = key_of("grad", argnums, "same", True, has_aux)

    def gradient(*args: Any, **kwargs: Any) -> Any:
        gradients, _, aux = _grad("grad", func, argnums, has_aux, args, kwargs, key)
        return (gradients, aux) if has_aux else gradients

    return named_after(func, gradient)


@left_alone_by_dynamo
def grad_and_value(
    func: Callable[P, Any], argnums: Argnums = 0, has_aux: bool = False
) -> Callable[P, Any]:
    """Return a function that computes the gradient of a scalar ``func`` and its value.

    Args:
        func: As in `grad`.
        argnums: As in `grad`.
        has_aux: Whether ``func`` returns ``(output, aux)``.

    Returns:
        A function with ``func``'s arguments that gives ``(gradient, value)``, with ``has_aux``
        ``(gradient, (value, aux))``.

    Raises:
        TypeError: As `grad`.
        ValueError: As `grad`.

    Example:
        >>> grad_and_value(lambda x: (x * x).sum())(torch.tensor([1.0, 2.0]))
        (tensor([2., 4.]), tensor(5.))

    References:
        Griewank and Walther, Evaluating Derivatives (2008), section 3.2 (reverse mode).
    """
    return named_grad_and_value("grad_and_value", func, argnums, has_aux)


def named_grad_and_value(
    name: str, func: Callable[P, Any], argnums: Argnums, has_aux: bool = False
) -> Callable[P, Any]:
    """Return what computes gradient and value; errors say ``name``."""
    key = key_of("grad", argnums, "same", True, has_aux)

    def gradient_and_value(*args: Any, **kwargs: Any) -> Any:
        gradients, value, aux = _grad(name, func, argnums, has_aux, args, kwargs, key)
        return gradients, ((value, aux) if has_aux else value)

    return named_after(func, gradient_and_value)


def _grad(
    name: str,
    func: Callable[..., Any],
    argnums: Argnums,
    has_aux: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: Key | None,
) -> tuple[Any, Tensor, Any]:
    known = repeated(key, func, args, kwargs)
    if isinstance(known, Answer):
        return known.gradient(argnums), known.outputs[0], None
    check_function(name, func)
    positions = normalize_argnums(name, argnums, len(args))
    try:
        selected = Selected(name, args, positions)
    except ArgumentTypeError:
        if not sparse_arguments.has_sparse(args, positions):
            raise
        of_values = sparse_arguments.of_values(func, args, positions)
        given = sparse_arguments.with_values(args, positions)
        trees, value, aux = _grad(name, of_values, positions, has_aux, given, kwargs, None)
        chosen = tuple(args[position] for position in positions)
        trees = sparse_arguments.as_sparse(trees, chosen)
        return (trees[0] if isinstance(argnums, int) else trees), value, aux
    with Tape(
        name, func, selected, kwargs, has_aux=has_aux, takes_apart=True, may_share=True, begun=known
    ) as tape:
        value = _scalar(name, tape)
        (gradients,) = tape.swept("gradient", functools.partial(_pulled, tape))
    learn(key, tape, selected, args)
    trees = selected.arranged(gradients)
    return (trees[0] if isinstance(argnums, int) else trees), value, tape.aux


def _pulled(tape: Tape) -> list[list[Tensor]]:
    (y,), row = tape.outputs, []
    for place, (blocks, x) in enumerate(zip(pulled_ends(tape), tape.inputs, strict=True)):
        members = tuple(y.shape[tape.num_batch_of(place) :])  # of a batch that the input has not
        row.append(unpinned(to_rows(blocks, tuple(x.shape), members, like=x)))
    return [row]


def _scalar(name: str, tape: Tape) -> Tensor:
    output = unflatten(tape.results, tape.spec)
    if not isinstance(output, Tensor):
        raise ArgumentTypeError(
            f"{name}: Expected f(*args) to return a tensor, got {type(output).__name__}, expected "
            "one tensor. Return the rest beside it with has_aux=True."
        )
    if output.dim() != 0:
        raise ArgumentValueError(
            f"{name}: Expected f(*args) to return a scalar tensor, got tensor with {output.dim()} "
            "dims, expected none. Use .sum(), or jacrev for a Jacobian."
        )
    if output.is_complex():
        raise ArgumentTypeError(
            f"{name}: output: got {output.dtype}, expected a real tensor, as only a real function "
            "has a gradient. Use .real or .abs(), or jacrev for a Jacobian."
        )
    return output
