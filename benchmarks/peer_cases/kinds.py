"""The derivatives that are measured, in words that torch.func, pushforward and JAX share; no library is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]


def _of_arguments(name: str) -> Callable[[Any, Function, Function], Function]:
    return lambda library, vmap, function: getattr(library, name)(function)


def _jvp(library: Any, vmap: Function, function: Function) -> Function:
    return lambda x, direction: library.jvp(function, (x,), (direction,))


def _vjp(library: Any, vmap: Function, function: Function) -> Function:
    return lambda x, cotangent: library.vjp(function, x)[1](cotangent)


def _hvp(library: Any, vmap: Function, function: Function) -> Function:
    return lambda x, direction: library.jvp(library.grad(function), (x,), (direction,))[1]


def _pushes(library: Any, vmap: Function, function: Function) -> Function:
    def run(x: Any, directions: Any) -> Any:
        _, push = library.linearize(function, x)
        return [push(direction) for direction in directions]

    return run


def _laplacians(library: Any, vmap: Function, function: Function) -> Function:
    return vmap(lambda x: library.hessian(function)(x).trace())


def _residuals(library: Any, vmap: Function, function: Function) -> Function:
    """Return the Jacobian by parameters of ``-Δu - 1`` at points, of a net ``u`` of parameters and a point."""

    def residuals(parameters: Any, points: Any) -> Any:
        def at(x: Any) -> Any:
            return -library.hessian(lambda x: function(parameters, x))(x).trace() - 1

        return vmap(at)(points)

    return library.jacrev(residuals)


KINDS: dict[str, Callable[[Any, Function, Function], Function]] = {
    **{name: _of_arguments(name) for name in ("jacfwd", "jacrev", "jacobian", "hessian", "grad")},
    "jvp": _jvp,
    "vjp": _vjp,
    "hvp": _hvp,
    "pushes": _pushes,
    "laplacians": _laplacians,
    "residuals": _residuals,
}


def derivative(
    library: Any, vmap: Function, kind: str, function: Function, batch: tuple[Any, ...] | None
) -> Function:
    """Return what is timed."""
    found = KINDS[kind](library, vmap, function)
    return found if batch is None else vmap(found, batch)


def leaves(tree: Any) -> list[Any]:
    """Return the arrays of nested tuples, lists and dictionaries, these by key."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    if isinstance(tree, (tuple, list)):
        return [leaf for part in tree for leaf in leaves(part)]
    return [tree]
