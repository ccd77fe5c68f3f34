"""Checks of what the caller gave, before any work."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from pushforward.errors import ArgumentTypeError, ArgumentValueError, message
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.trees import LEAF, TreeSpec, flatten, paths, unflatten

Argnums = int | Sequence[int]

# Of a caller's function: its parameters, what it returns, and what it returns beside that.
P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")

_COPIED = ("__module__", "__name__", "__qualname__", "__doc__")


def named_after(func: Any, derivative: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``derivative`` with the name, documentation and signature of ``func``.

    By hand where that is possible: ``functools.wraps`` takes two microseconds more.
    """
    try:
        derivative.__name__, derivative.__qualname__ = func.__name__, func.__qualname__
        derivative.__doc__, derivative.__module__ = func.__doc__, func.__module__
        derivative.__wrapped__ = func  # type: ignore[attr-defined]
    except (AttributeError, TypeError):  # objects that are called
        functools.update_wrapper(derivative, func, _COPIED, ())
    return left_alone_by_dynamo(derivative)


def check_function(name: str, func: Any) -> None:
    """Refuse what cannot be called."""
    if not callable(func):
        raise ArgumentTypeError(
            message(name, "func", repr(func), "a function of tensors", "Pass the function first.")
        )


def check_randomness(name: str, randomness: Any) -> None:
    """Refuse what ``vmap`` refuses."""
    if randomness not in ("error", "different", "same"):
        raise ArgumentValueError(
            f"{name}: randomness: Only allowed values for randomness are 'error', 'different', or 'same'. "
            f"Got {randomness}, expected one of these. Use 'same' to draw what the plain call draws."
        )


def normalize_argnums(name: str, argnums: Any, num_args: int) -> tuple[int, ...]:
    """Return the argument positions counted from the front."""
    if isinstance(argnums, int):
        return (_normalize_argnum(name, argnums, num_args),)
    if not isinstance(argnums, (tuple, list)):
        raise ArgumentTypeError(
            f"{name}: argnums must be int or Tuple[int, ...], got: {type(argnums)}, expected positions of "
            "arguments. Use argnums=0 or argnums=(0, 1)."
        )
    if len(argnums) == 0:
        raise ArgumentValueError(
            f"{name}: argnums must be non-empty, got {argnums}, expected at least one position. Use argnums=0."
        )
    for argnum in argnums:
        if not isinstance(argnum, int):
            raise ArgumentTypeError(
                f"{name}: argnum must be int, got: {type(argnum)} in {argnums}, expected positions of arguments. "
                "Use argnums=(0, 1)."
            )
    normal = tuple(_normalize_argnum(name, argnum, num_args) for argnum in argnums)
    if len(set(normal)) != len(normal):
        raise ArgumentValueError(
            f"{name}: argnums elements must be unique, got {argnums}, expected each argument once. "
            "Leave the repeated one out."
        )
    return normal


def _normalize_argnum(name: str, argnum: int, num_args: int) -> int:
    if not -num_args <= argnum < num_args:
        raise ArgumentValueError(
            f"{name}: Got argnum={argnum}, but only {num_args} positional inputs, expected an argnum from "
            f"{-num_args} to {num_args - 1}. Pass the argument by position, or change argnums."
        )
    return argnum % num_args


@dataclasses.dataclass(slots=True)
class Structure:
    """The pytrees of arguments in which all leaves are tensors."""

    specs: Sequence[TreeSpec]

    @property
    def is_flat(self) -> bool:
        """Whether each argument is a tensor."""
        return all(spec is LEAF for spec in self.specs)

    def trees(self, values: Sequence[Any]) -> list[Any]:
        """Return one pytree for each argument, with ``values`` for the tensors."""
        found, start = [], 0
        for spec in self.specs:
            end = start + spec.num_leaves
            found.append(values[start] if spec is LEAF else unflatten(values[start:end], spec))
            start = end
        return found


class Selected:
    """The tensors to differentiate with respect to, and how to put others into their places."""

    __slots__ = ("_args", "_specs", "_templates", "is_lone", "leaves", "positions")

    def __init__(self, name: str, args: tuple[Any, ...], positions: tuple[int, ...]) -> None:
        """Flatten the arguments at ``positions``; leaves that are not tensors stay as they are."""
        self._args = args
        self.positions = positions
        self._specs = []
        self._templates: list[list[Any]] = []
        self.leaves: list[Tensor] = []
        for position in positions:
            leaves, spec = flatten(args[position])
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            if leaves and not tensors:
                raise ArgumentTypeError(
                    message(
                        name,
                        f"argument {position} (argnums={position})",
                        _kind_of(args[position]),
                        "a tensor or a pytree of tensors",
                        "Make it a tensor, or leave it out of argnums.",
                    )
                )
            for place, leaf in enumerate(leaves):
                _check_leaf(name, args[position], position, place, leaf)
            self._specs.append(spec)
            self._templates.append(leaves)
            self.leaves.extend(tensors)
        # Whether there is one argument, a tensor: nothing has to be put together then.
        self.is_lone = len(args) == 1 and self._specs[0] is LEAF

    def structure(self) -> Structure | None:
        """Return the structure of the arguments, None where not all leaves are tensors."""
        structure = Structure(self._specs)
        num_leaves = sum(spec.num_leaves for spec in self._specs)
        return structure if num_leaves == len(self.leaves) else None

    def replaced(self, tracers: Sequence[Tensor]) -> tuple[Any, ...]:
        """Return the arguments with ``tracers`` in the places of the leaves."""
        return tuple(tracers) if self.is_lone else self._filled(tracers, keep_constants=True)

    def arranged(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Return, for each position, its pytree with ``values`` at the tensors and None at the constants."""
        if self.is_lone:
            return tuple(values)
        filled = self._filled(values, keep_constants=False)
        return tuple(filled[position] for position in self.positions)

    def _filled(self, values: Sequence[Any], keep_constants: bool) -> tuple[Any, ...]:
        args = list(self._args)
        remaining = iter(values)
        for position, spec, leaves in zip(
            self.positions, self._specs, self._templates, strict=True
        ):
            if spec is LEAF:
                args[position] = next(remaining)
                continue
            filled = [
                next(remaining) if isinstance(leaf, Tensor) else (leaf if keep_constants else None)
                for leaf in leaves
            ]
            args[position] = unflatten(filled, spec)
        return tuple(args)


def _kind_of(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}"


def _check_leaf(name: str, tree: Any, position: int, place: int, leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        if leaf is None or isinstance(leaf, (bool, int, float, complex, str)):
            return
        raise ArgumentTypeError(
            message(
                name,
                f"argument {position} (argnums={position}), leaf {paths(tree)[place] or 'itself'}",
                _kind_of(leaf),
                "a tensor (numbers, strings and None are constants)",
                "Register its class as a pytree, or leave it out of argnums.",
            )
        )
    if not (leaf.is_floating_point() or leaf.is_complex()):
        where = paths(tree)[place]
        raise ArgumentTypeError(
            message(
                name,
                f"argument {position} (argnums={position}){', leaf ' + where if where else ''} has dtype",
                str(leaf.dtype),
                "a floating or complex tensor",
                "Use x.double(), or leave it out of argnums.",
            )
        )
    if leaf.layout is not torch.strided or leaf.is_nested:
        raise ArgumentTypeError(
            message(
                name,
                f"argument {position} (argnums={position}) has layout",
                "nested" if leaf.is_nested else str(leaf.layout),
                "a dense tensor",
                "Differentiate with respect to its values, and build it inside the function.",
            )
        )


def check_outputs(name: str, tree: Any, leaves: Sequence[Any]) -> None:
    """Refuse outputs that have no derivative."""
    if not leaves or (leaves[0] is None and all(leaf is None for leaf in leaves)):
        raise ArgumentTypeError(
            f"{name}: Expected f to be a function that has non-empty output, got output = [{tree!r:.60}], expected "
            "tensors. Return what is to be differentiated."
        )
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            continue
        where = paths(tree)[place]
        where = f"output {where}" if where else "the output"
        if not isinstance(leaf, Tensor):
            raise ArgumentTypeError(
                f"{name}: expected f(*primals) to return only tensors, got unsupported type {type(leaf)} in {where}, "
                "expected a tensor. Return it beside the output with has_aux=True."
            )
        raise ArgumentTypeError(
            f"{name}: {where} has dtype: got {leaf.dtype}, expected a floating or complex tensor, as integers have "
            "no derivative. Return it beside the output with has_aux=True."
        )


def batch_size(name: str, tree: Any, what: str, unit: str) -> int:
    """Return the length of the leading axis that all tensors in ``tree`` must share."""
    flat, _ = flatten(tree)
    sizes = {t.shape[0] for t in flat if isinstance(t, Tensor) and t.ndim}
    if len(sizes) != 1:
        raise ArgumentValueError(
            message(
                name,
                f"leading axes of the {what}",
                sorted(sizes),
                f"the same number of {unit} in each",
                "Stack them along axis 0.",
            )
        )
    return int(sizes.pop())


def match_leaf(
    name: str, what: str, given: Any, primal: Tensor, num_batch_axes: int, of: str
) -> Tensor:
    """Return a tangent or cotangent of ``primal``, checked, in its dtype."""
    if not isinstance(given, Tensor):
        raise ArgumentTypeError(
            message(name, what, type(given).__name__, "a tensor", "Use torch.zeros_like.")
        )
    is_alike = given.dtype is primal.dtype and not num_batch_axes
    if is_alike and given.shape == primal.shape:  # nearly always
        return given
    if given.shape[num_batch_axes:] != primal.shape:
        raise ArgumentValueError(
            message(
                name,
                f"{what}'s shape",
                tuple(given.shape),
                f"{'(batch, ' if num_batch_axes else ''}{tuple(primal.shape)}, that of its {of}",
                "Broadcast it first.",
            )
        )
    if given.is_complex() and not primal.is_complex():
        raise ArgumentTypeError(
            message(name, f"{what}'s dtype", given.dtype, f"{primal.dtype}", f"Use {what}.real.")
        )
    return given if given.dtype == primal.dtype else given.to(primal.dtype)


def split_aux(name: str, result: Any, has_aux: bool) -> tuple[Any, Any]:
    """Return (output, aux), aux being None where there is none."""
    if not has_aux:
        return result, None
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ArgumentTypeError(
            f"{name}: output of function f should be a tuple: (output, aux) if has_aux is True, got "
            f"{type(result).__name__}, expected a tuple of two. Return (output, aux)."
        )
    return result[0], result[1]
