"""Numbers: operations on single elements, each kept once.

Nothing is known here of tensors, but that elements are loaded from arrays.
"""

from __future__ import annotations

import dataclasses
import math

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
        self.refused: list[int] = []  # where one of these is true, the others are not to be trusted
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
        if name in ("add", "mul"):
            operands = (min(operands), max(operands))
        if name == "mul":
            if operands[0] == operands[1]:
                operands = (self._turned(operands[0]),) * 2
            for one, other in (operands, operands[::-1]):
                found = self.operations[one]
                if found.name == "constant" and found.operands[0] == 1 and self._is(other, dtype):
                    return other
        if name == "cast" and self._is(operands[0], dtype):
            return operands[0]
        return self._number(Operation(name, dtype, operands))

    def _turned(self, number: int) -> int:
        """Return the first known number that differs in sign at most: a difference, or the one the other way round."""
        operation = self.operations[number]
        turned = (operation.name, operation.dtype, operation.operands[::-1], 1.0)
        return min(number, self._known.get(turned, number)) if operation.name == "sub" else number

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
