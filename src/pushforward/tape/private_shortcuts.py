"""The private names of Inductor that cost it time for nothing: while it compiles graphs of ours, they mean less work.

The C++ is the same. First calls take up to a third less time, over the benchmarks.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def shortcuts() -> Iterator[None]:
    """Have Inductor take shortcuts until the end, in all threads: of which one compiles at a time."""
    replaced: list[tuple[Any, str, Any]] = []  # owner, name, what it meant
    try:
        for owner, name, value in _shortcuts():
            replaced.append((owner, name, vars(owner)[name]))
            setattr(owner, name, value)
        yield
    finally:
        while replaced:
            setattr(*replaced.pop())


@functools.cache
def shortcuts_tag() -> str:
    """Return what differs between versions of the shortcuts."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _shortcuts() -> list[tuple[Any, str, Any]]:
    """Return what to put where; a version of PyTorch without one of the names does without the shortcut."""
    common: Any = importlib.import_module("torch._inductor.codegen.common")
    cpp: Any = importlib.import_module("torch._inductor.codegen.cpp")
    codecache: Any = importlib.import_module("torch._inductor.codecache")
    cache: Any = getattr(codecache, "CppWrapperCodeCache", object)
    found: list[tuple[Any, str, Any]] = []
    if hasattr(cpp, "stride_at_vec_range"):
        found.append((cpp, "stride_at_vec_range", _stride(cpp.stride_at_vec_range)))
    if hasattr(common, "DtypePropagationOpsHandler"):
        # One object, which is initialized anew each time that it is asked for: at each operator.
        made = functools.cache(common.DtypePropagationOpsHandler)
        found.append((common, "DtypePropagationOpsHandler", made))
    if "_get_uncompiled_header" in vars(cache) and hasattr(codecache, "_get_cpp_prefix_header"):
        header = _header(cache._get_uncompiled_header, codecache._get_cpp_prefix_header)
        found.append((cache, "_get_uncompiled_header", classmethod(header)))
    return found


def _stride(by_sympy: Any) -> Any:
    """Return a function that reads from sums of multiples of variables what SymPy finds in tens of milliseconds.

    Where a variable is divided by numbers, too, for which SymPy would import its units of physics.
    """
    sympy: Any = importlib.import_module("sympy")

    def stride(index: Any, var: Any, vec_length: int | None = None) -> Any:
        if not isinstance(index, sympy.Expr):  # a comparison
            return by_sympy(index, var, vec_length)
        terms = {t: f for t, f in index.as_coefficients_dict().items() if t.has(var)}
        steps = [_step(term, var, vec_length) for term in terms]
        if any(step is None for step in steps):
            return by_sympy(index, var, vec_length)
        return sympy.sympify(sum(f * s for f, s in zip(terms.values(), steps, strict=True)))

    return stride


def _step(term: Any, var: Any, length: int | None) -> Any:
    """Return how much a term grows with a variable, within a range of a vector's length if there is one.

    None if it is neither the variable nor divides it by numbers.
    """
    if term == var:
        return 1
    functions: Any = importlib.import_module("torch.utils._sympy.functions")
    kinds = functions.FloorDiv, functions.ModularIndexing
    if not isinstance(term, kinds) or term.args[0] != var:
        return None
    divisor, *modulus = term.args[1:]
    if not all(number.is_Integer for number in term.args[1:]):
        return None
    if length and divisor % length == 0:
        return 0  # the same in all of the range
    if length and modulus and divisor == 1 and modulus[0] % length == 0:
        return 1
    return term.func(var + 1, divisor, *modulus) - term


def _header(wrapper: Any, of_loops: Any) -> Any:
    """Return a function that gives loops' header with the wrapper's, which is the only one precompiled by itself."""

    def header(cls: Any, device: str) -> str | None:
        headers = [wrapper(device), of_loops(device)]
        # Inductor writes `#include <...>` around what this returns.
        return ">\n#include <".join(headers) if all(headers) else headers[0]

    return header
