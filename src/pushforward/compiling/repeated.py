"""Repeated calls: functions made for one form of arguments and one structure of results.

The program of a call is found by the signature of its arguments. Where a call looks as the one before, which most do, a
line of Python for each container and one call of C++ for all tensors tell so in a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.compiling.captured import compared, is_same
from pushforward.compiling.signature import PLAIN
from pushforward.trees import LEAF, TreeSpec, flatten, unflatten

Recognized = Callable[[tuple[Any, ...], dict[str, Any]], "list[Tensor] | None"]
Arranged = Callable[[Sequence[Tensor]], Any]


class _UnknownError(Exception):
    """There is a container other than tuples, lists and dictionaries."""


def recognizer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recognized | None:
    """Return what gives the tensors of arguments that look like these, and None of others.

    Autograd follows both or neither. There is no such function if there are other containers than tuples, lists and
    dictionaries.
    """
    scope: dict[str, Any] = {"is_same": is_same, "default_dtype": torch.get_default_dtype}
    tensors: list[Tensor] = []
    try:
        lines = [*_asked("args", args, scope, tensors)]
        lines += _asked("kwargs", kwargs, scope, tensors) if kwargs else ["if kwargs: return"]
    except _UnknownError:
        return None
    lines += compared(tensors, scope)
    lines.append(f"if default_dtype() is not {_name(torch.get_default_dtype(), scope)}: return")
    names = ", ".join(f"x{i}" for i in range(len(tensors)))
    found: Recognized = _function("recognized(args, kwargs)", [*lines, f"return [{names}]"], scope)
    return found


def _asked(name: str, tree: Any, scope: dict[str, Any], tensors: list[Tensor]) -> Iterator[str]:
    kind = type(tree)
    if kind in PLAIN:
        yield f"x{len(tensors)} = {name}"
        tensors.append(tree)
    elif kind in (tuple, list):
        yield f"if type({name}) is not {kind.__name__} or len({name}) != {len(tree)}: return"
        for number, item in enumerate(tree):
            yield f"{name}_{number} = {name}[{number}]"
            yield from _asked(f"{name}_{number}", item, scope, tensors)
    elif kind is dict:
        keys = _name([*tree], scope)
        yield f"if type({name}) is not dict or [*{name}] != {keys}: return"
        for number, item in enumerate(tree.values()):
            yield f"{name}_{number} = {name}[{keys}[{number}]]"
            yield from _asked(f"{name}_{number}", item, scope, tensors)
    elif flatten(tree)[1] != LEAF:
        raise _UnknownError
    else:
        known = _name(tree, scope)
        yield f"if {name} is not {known} and not is_same({name}, {known}): return"


def arranger(
    leaves: Sequence[Any], spec: TreeSpec, given: Mapping[int, Callable[[Tensor], Any] | None]
) -> Arranged:
    """Return what puts outputs of a graph into the structure of a result.

    Args:
        leaves: Leaves of the result that are no outputs, by place.
        spec: The structure.
        given: Places of the outputs, one by one, and what makes leaves of them; None where they are leaves.
    """
    scope: dict[str, Any] = {}
    sources = [_name(leaf, scope) for leaf in leaves]
    for number, (place, build) in enumerate(given.items()):
        sources[place] = f"y[{number}]" if build is None else f"{_name(build, scope)}(y[{number}])"
    try:
        source = _written(unflatten([_Source(s) for s in sources], spec), scope)
    except _UnknownError:
        scope |= {"unflatten": unflatten, "spec": spec}
        source = f"unflatten([{', '.join(sources)}], spec)"
    made: Arranged = _function("arranged(y)", [f"return {source}"], scope)
    return made


class _Source(str):
    """What computes a leaf."""


def _written(tree: Any, scope: dict[str, Any]) -> str:
    kind = type(tree)
    if kind is _Source:
        return str(tree)
    if kind is dict:
        items = [f"{_name(key, scope)}: {_written(item, scope)}" for key, item in tree.items()]
        return "{" + ", ".join(items) + "}"
    if kind in (tuple, list):
        items = [_written(item, scope) + ", " for item in tree]
        return f"({''.join(items)})" if kind is tuple else f"[{''.join(items)}]"
    raise _UnknownError


def _name(value: Any, scope: dict[str, Any]) -> str:
    name = f"c{len(scope)}"
    scope[name] = value
    return name


def _function(head: str, lines: Sequence[str], scope: dict[str, Any]) -> Any:
    exec(f"def {head}:\n  " + "\n  ".join(lines), scope)  # the source is ours alone
    return scope[head.partition("(")[0]]
