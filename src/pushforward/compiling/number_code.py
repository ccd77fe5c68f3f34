"""C++ that computes numbers, without loops: one function, or several of bounded length where there are many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pushforward.compiling.numbers import C_TYPES, TEMPLATES, Numbers, Operation

# Compilers take longer for one function of so many steps than for two of half as many, which hand numbers on.
MAX_STEPS = 1000
MANY_ZEROS = 8  # of a result: written at once

HEADERS = ("cmath", "cstring", "stdexcept")


class _Step(NamedTuple):
    """A number is computed, or something is done with it, for which it must have a C type."""

    number: int
    use: str = ""
    kind: str = ""


def source(
    numbers: Numbers, inputs: Sequence[str], outputs: Sequence[tuple[str, dict[int, int]]]
) -> str:
    """Return C++ of a function ``kernel`` of arrays, behind `HEADERS`.

    Args:
        numbers: What is computed.
        inputs: The C types of the arrays that are loaded from.
        outputs: The C type of each array that is stored into, and the number for each place in it.
    """
    arguments = [f"const {kind}* __restrict a{i}" for i, kind in enumerate(inputs)]
    arguments += [f"{kind}* __restrict o{i}" for i, (kind, _) in enumerate(outputs)]
    names = [argument.rpartition(" ")[2] for argument in arguments]
    body, outputs = _zeroed(outputs)
    steps = list(_steps(numbers, outputs))
    parts = [steps[i : i + MAX_STEPS] for i in range(0, len(steps), MAX_STEPS)]
    lines: list[str] = []
    if len(parts) < 2:
        body += [line for part in parts for line in _Part(numbers, part, {}).lines()]
    else:
        slots = _slots(numbers, parts)
        body.insert(0, f"double s[{len(slots) + 1}];")
        for i, part in enumerate(parts):
            head = ", ".join([*arguments, "double* __restrict s"])
            lines.append(f"static __attribute__((noinline)) void part{i}({head}) {{")
            lines += [*_Part(numbers, part, slots).lines(), "}"]
            body.append(f"part{i}({', '.join([*names, 's'])});")
    return "\n".join([*lines, f'extern "C" void kernel({", ".join(arguments)}) {{', *body, "}", ""])


def _zeroed(
    outputs: Sequence[tuple[str, dict[int, int]]],
) -> tuple[list[str], list[tuple[str, dict[int, int]]]]:
    """Return what fills with zeros arrays that have many of them, and what is stored besides."""
    lines, rest = [], []
    for i, (kind, places) in enumerate(outputs):
        is_dense = places.keys() == set(range(len(places)))
        if is_dense and sum(n == 0 for n in places.values()) > MANY_ZEROS:
            lines.append(f"std::memset(o{i}, 0, {len(places)} * sizeof({kind}));")
            places = {place: n for place, n in places.items() if n != 0}
        rest.append((kind, places))
    return lines, rest


def _steps(numbers: Numbers, outputs: Sequence[tuple[str, dict[int, int]]]) -> Iterator[_Step]:
    """Yield steps depth first, so that few numbers wait for their use at any time."""
    made: set[int] = set()
    for use in _uses(numbers, outputs):
        stack = [use.number]
        while stack:
            number = stack[-1]
            missing = [n for n in _operands(numbers, number) if n not in made]
            stack += reversed(missing)
            if not missing:
                stack.pop()
                if number not in made and _is_computed(numbers.operations[number]):
                    yield _Step(number)
                made.add(number)
        yield use


def _uses(numbers: Numbers, outputs: Sequence[tuple[str, dict[int, int]]]) -> Iterator[_Step]:
    for number in numbers.refused:
        yield _Step(number, 'if ({}) throw std::runtime_error("refused");', "bool")
    for i, (kind, places) in enumerate(outputs):
        for place, number in places.items():
            yield _Step(number, f"o{i}[{place}] = {{}};", kind)


def _is_computed(operation: Operation) -> bool:
    return operation.name not in ("constant", "load")


def _operands(numbers: Numbers, number: int) -> list[int]:
    """Return the operands of a number that are computed."""
    operation = numbers.operations[number]
    if not _is_computed(operation):
        return []
    return [n for n in map(int, operation.operands) if _is_computed(numbers.operations[n])]


def _slots(numbers: Numbers, parts: Sequence[Sequence[_Step]]) -> dict[int, int]:
    """Return places for the numbers that one part computes and another takes."""
    home = {step.number: i for i, part in enumerate(parts) for step in part if not step.use}
    found: dict[int, int] = {}
    for i, part in enumerate(parts):
        for step in part:
            taken = [step.number] if step.use else _operands(numbers, step.number)
            for n in taken:
                if home.get(n, i) != i:
                    found.setdefault(n, len(found))
    return found


class _Part:
    """Steps in one function, which takes the numbers of others from slots."""

    def __init__(self, numbers: Numbers, steps: Sequence[_Step], slots: dict[int, int]) -> None:
        self.operations, self.steps, self.slots = numbers.operations, steps, slots
        self.own = {step.number for step in steps if not step.use}

    def lines(self) -> Iterator[str]:
        """Yield statements."""
        for number, use, kind in self.steps:
            if use:
                yield use.format(self._operand(number, kind))
                continue
            operation = self.operations[number]
            assert operation.result is not None
            yield f"const {C_TYPES[operation.result]} v{number} = {self._expression(operation)};"
            if number in self.slots:
                yield f"s[{self.slots[number]}] = v{number};"

    def _expression(self, operation: Operation) -> str:
        assert operation.dtype is not None
        kind = C_TYPES[operation.dtype]
        kinds = [kind] * len(operation.operands)
        if operation.name == "where":
            kinds[0] = "bool"
        pairs = zip(operation.operands, kinds, strict=True)
        operands = [self._operand(int(n), k) for n, k in pairs]
        return TEMPLATES[operation.name].format(*operands, T=kind)

    def _operand(self, number: int, kind: str) -> str:
        operation = self.operations[number]
        if operation.name == "constant":
            return _literal(operation.operands[0], kind)
        assert operation.result is not None
        has, name = C_TYPES[operation.result], f"v{number}"
        if operation.name == "load":
            array, place = operation.operands
            name = f"a{array}[{place}]"
        elif number not in self.own:
            has, name = "double", f"s[{self.slots[number]}]"
        return name if has == kind else f"static_cast<{kind}>({name})"


def _literal(value: float, kind: str) -> str:
    if kind == "bool":
        return "true" if value else "false"
    if math.isnan(value):
        return f"{kind}(NAN)"
    if math.isinf(value):
        return f"{kind}({'-' if value < 0 else ''}INFINITY)"
    return f"{kind}({value.hex()})"
