"""Numbers: operations on single elements, each kept once, and the C++ that computes some of them.

Nothing is known here of tensors, but that elements are loaded from arrays and stored into them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import torch

# A division or a function of the C library takes as long as so many sums; dozens of them are faster as vectors.
PRICES = {"div": 4, "sqrt": 5, "reciprocal": 4, "rsqrt": 8}
PRICE_OF_FUNCTION = 30
MAX_PRICE = 12_000  # of a kernel: C++ without loops takes seconds to compile, and loops over vectors are faster

C_TYPES = {torch.float64: "double", torch.float32: "float", torch.bool: "bool"}
ARITHMETIC = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "abs": "std::abs({0})",
    "reciprocal": "{T}(1) / {0}",
    "sqrt": "std::sqrt({0})",
    "rsqrt": "{T}(1) / std::sqrt({0})",
    "cast": "{0}",
    "where": "{0} ? {1} : {2}",
    "sign": "{T}(({0} > {T}(0)) - ({0} < {T}(0)))",
    "relu": "{0} <= {T}(0) ? {T}(0) : {0}",
    "tanh_backward": "{0} * ({T}(1) - {1} * {1})",
    "sigmoid_backward": "{0} * (({T}(1) - {1}) * {1})",
    "threshold_backward": "{1} <= {2} ? {T}(0) : {0}",
    "logical_not": "!{0}",
    "logical_and": "{0} && {1}",
    "logical_or": "{0} || {1}",
    "maximum": "{0} != {0} ? {0} : {1} != {1} ? {1} : {0} > {1} ? {0} : {1}",
    "minimum": "{0} != {0} ? {0} : {1} != {1} ? {1} : {0} < {1} ? {0} : {1}",
}
COMPARISONS = {
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
}
FUNCTIONS = {
    name: f"std::{name}({{0}})"
    for name in (
        "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "expm1", "log", "log1p", "log2",
        "erf",
    )
} | {
    "sigmoid": "{T}(1) / ({T}(1) + std::exp(-{0}))",
    "atan2": "std::atan2({0}, {1})",
    "pow": "std::pow({0}, {1})",
}  # fmt: skip
TEMPLATES = ARITHMETIC | COMPARISONS | FUNCTIONS


class TooManyError(Exception):
    """There are too many operations for a kernel without loops."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """How a number comes about.

    Attributes:
        name: Of `TEMPLATES`; "constant" or "load".
        dtype: In which it is computed; None of constants, which are what those who use them need.
        operands: Numbers; for "load" the array and the place; for "constant" the value.
    """

    name: str
    dtype: torch.dtype | None
    operands: tuple[float, ...]

    @property
    def result(self) -> torch.dtype | None:
        """The dtype of the result."""
        return torch.bool if self.name in COMPARISONS else self.dtype


class Numbers:
    """All numbers of a program. Number 0 is zero."""

    def __init__(self) -> None:
        """Know zero."""
        self.operations: list[Operation] = []
        self._known: dict[tuple[object, ...], int] = {}
        self._price = 0
        self.constant(0.0)

    def constant(self, value: float) -> int:
        """Return the number with a value."""
        value = float(value)
        return self._number(Operation("constant", None, (value,)), math.copysign(1, value))

    def load(self, array: int, place: int, dtype: torch.dtype) -> int:
        """Return an element of an array."""
        return self._number(Operation("load", dtype, (array, place)))

    def of(self, name: str, dtype: torch.dtype, *operands: int) -> int:
        """Return the result of an operation on numbers."""
        if name == "mul":
            operands = (min(operands), max(operands))
            for one, other in (operands, operands[::-1]):
                found = self.operations[one]
                if found.name == "constant" and found.operands[0] == 1 and self._is(other, dtype):
                    return other
        if name == "cast" and self._is(operands[0], dtype):
            return operands[0]
        return self._number(Operation(name, dtype, operands))

    def _is(self, number: int, dtype: torch.dtype) -> bool:
        return self.operations[number].result in (dtype, None)

    def _number(self, operation: Operation, sign: float = 1.0) -> int:
        key: tuple[object, ...] = (operation.name, operation.dtype, operation.operands, sign)
        if any(x != x for x in operation.operands):
            key = (operation.name, "nan")  # which does not equal itself
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = len(self.operations)
            self.operations.append(operation)
            default = PRICE_OF_FUNCTION if operation.name in FUNCTIONS else 1
            self._price += PRICES.get(operation.name, default)
            if self._price > MAX_PRICE:
                raise TooManyError
        return found


def source(
    numbers: Numbers, inputs: Sequence[str], outputs: Sequence[tuple[str, dict[int, int]]]
) -> str:
    """Return C++ of a function ``kernel`` of arrays.

    Args:
        numbers: What is computed.
        inputs: The C types of the arrays that are loaded from.
        outputs: The C type of each array that is stored into, and the number for each place in it.
    """
    arguments = [f"const {kind}* __restrict a{i}" for i, kind in enumerate(inputs)]
    arguments += [f"{kind}* __restrict o{i}" for i, (kind, _) in enumerate(outputs)]
    lines = [
        *(
            f"#include <{name}>"
            for name in ("cmath", "cstdint", "cstring", "stdexcept", "type_traits")
        ),
        f'extern "C" void kernel({", ".join(arguments)}) {{',
    ]
    for number in _needed(numbers, (n for _, places in outputs for n in places.values())):
        operation = numbers.operations[number]
        if operation.name != "constant":
            assert operation.result is not None
            lines.append(
                f"  const {C_TYPES[operation.result]} v{number} = {_expression(numbers, operation)};"
            )
    for i, (kind, places) in enumerate(outputs):
        is_dense = places.keys() == set(range(len(places)))
        if is_dense and sum(n == 0 for n in places.values()) > 8:
            lines.append(f"  std::memset(o{i}, 0, {len(places)} * sizeof({kind}));")
            places = {place: n for place, n in places.items() if n != 0}
        lines += [f"  o{i}[{place}] = {_operand(numbers, n, kind)};" for place, n in places.items()]
    return "\n".join([*lines, "}", ""])


def _needed(numbers: Numbers, results: Iterable[int]) -> list[int]:
    found: set[int] = set()
    stack = list(results)
    while stack:
        number = stack.pop()
        if number not in found:
            found.add(number)
            operation = numbers.operations[number]
            if operation.name not in ("constant", "load"):
                stack += [int(n) for n in operation.operands]
    return sorted(found)  # operands come before what uses them


def _expression(numbers: Numbers, operation: Operation) -> str:
    assert operation.dtype is not None
    kind = C_TYPES[operation.dtype]
    if operation.name == "load":
        array, place = operation.operands
        return f"a{array}[{place}]"
    kinds = [kind] * len(operation.operands)
    if operation.name == "where":
        kinds[0] = "bool"
    operands = [
        _operand(numbers, int(n), k) for n, k in zip(operation.operands, kinds, strict=True)
    ]
    return TEMPLATES[operation.name].format(*operands, T=kind)


def _operand(numbers: Numbers, number: int, kind: str) -> str:
    operation = numbers.operations[number]
    if operation.name == "constant":
        return _literal(operation.operands[0], kind)
    assert operation.result is not None
    has = C_TYPES[operation.result]
    return f"v{number}" if has == kind else f"static_cast<{kind}>(v{number})"


def _literal(value: float, kind: str) -> str:
    if kind == "bool":
        return "true" if value else "false"
    if math.isnan(value):
        return f"{kind}(NAN)"
    if math.isinf(value):
        return f"{kind}({'-' if value < 0 else ''}INFINITY)"
    return f"{kind}({value.hex()})"
