"""Making a failing program small: drop calls, steps, outputs; replace steps; simpler transforms and sizes."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator

from fuzz.fresh import Fresh
from fuzz.programs import NAMES, Call, Program, Step
from fuzz.run import Failure, run_program

SECONDS = 60.0


def shrunk(
    program: Program, failure: Failure, seconds: float = SECONDS, fresh: Fresh | None = None
) -> tuple[Program, Failure]:
    """Return a smaller program that fails alike."""
    end = time.monotonic() + seconds
    program = dataclasses.replace(program, calls=program.calls[: failure.call + 1])
    found = True
    while found and time.monotonic() < end:
        found = False
        for candidate in _candidates(program):
            if time.monotonic() > end:
                break
            other = _fails(candidate, failure, fresh)
            if other is not None:
                program, failure, found = candidate, other, True
                break
    return program.used(), failure


def _fails(candidate: Program, failure: Failure, fresh: Fresh | None) -> Failure | None:
    try:
        other, _ = run_program(candidate, fresh=fresh)
    except Exception:
        return None
    return other if other is not None and other.kind == failure.kind else None


def _candidates(program: Program) -> Iterator[Program]:
    calls, steps = program.calls, program.steps
    for size in _sizes(len(calls) - 1):
        for start in range(0, len(calls) - 1, size):
            kept = calls[:start] + calls[min(start + size, len(calls) - 1) :]
            yield dataclasses.replace(program, calls=kept)
    for name in _outputs(program):
        yield dataclasses.replace(program, outputs=name)
    for size in _sizes(len(steps)):
        for start in reversed(range(0, len(steps), size)):
            dropped = set(range(start, min(start + size, len(steps))))
            yield from _without(program, dropped)
    for number, step in enumerate(steps):
        for code in _simpler(step):
            changed = (*steps[:number], dataclasses.replace(step, code=code), *steps[number + 1 :])
            yield dataclasses.replace(program, steps=changed)
    for call in _simpler_calls(program):
        yield dataclasses.replace(program, calls=(*calls[:-1], call))
    if len(calls) > 1:  # all calls alike
        alike = tuple(dataclasses.replace(calls[-1], keeps_state=c.keeps_state) for c in calls)
        if alike != calls:
            yield dataclasses.replace(program, calls=alike)


def _sizes(count: int) -> list[int]:
    sizes = []
    size = count
    while size >= 1:
        sizes.append(size)
        size //= 2
    return sizes


def _outputs(program: Program) -> list[str]:
    names = list(dict.fromkeys(re.findall(r"\b[vx]\d+\b", program.outputs)))
    return [name for name in names if name != program.outputs]


def _without(program: Program, dropped: set[int]) -> Iterator[Program]:
    """Drop steps: what uses their variables goes too, or gets another variable."""
    steps = program.steps
    gone = {name for number in dropped for name in steps[number].defines}
    for substitute in (None, "used", "input"):
        kept: list[Step] = []
        missing = set(gone)
        replaced: dict[str, str] = {}
        if substitute == "used":  # its own operands stand in
            for number in sorted(dropped):
                operands = [
                    n for n in NAMES.findall(steps[number].code) if n[0] in "vx" and n not in gone
                ]
                for name in steps[number].defines:
                    if operands:
                        replaced[name] = replaced.get(operands[0], operands[0])
        elif substitute == "input":
            replaced = dict.fromkeys(gone, program.inputs[0])
        missing -= set(replaced)
        for number, step in enumerate(steps):
            if number in dropped:
                continue
            code = _renamed(step.code, replaced)
            if missing & set(NAMES.findall(code)):
                missing |= set(step.defines)
                continue
            kept.append(dataclasses.replace(step, code=code))
        outputs = _renamed(program.outputs, replaced)
        if missing & set(NAMES.findall(outputs)):
            names = [n for n in NAMES.findall(outputs) if n not in missing]
            if not names:
                continue
            outputs = names[0]
        yield dataclasses.replace(program, steps=tuple(kept), outputs=outputs)


def _renamed(text: str, names: dict[str, str]) -> str:
    return NAMES.sub(lambda m: names.get(m[0], m[0]), text)


def _simpler(step: Step) -> Iterator[str]:
    """Return simpler texts of a step."""
    lines = step.code.split("\n")
    if len(lines) > 1:
        for number in range(len(lines)):
            yield "\n".join(lines[:number] + lines[number + 1 :])
    for number, line in enumerate(lines):
        found = re.match(r"(\s*)(v\d+) = (.+)", line)
        if found is None:
            continue
        for name in dict.fromkeys(re.findall(r"\b[vx]\d+\b", found[3])):
            if found[3] not in (name, f"{name} * 1", f"{name}.sum()"):
                for text in (name, f"{name} * 1"):
                    yield "\n".join(
                        [*lines[:number], f"{found[1]}{found[2]} = {text}", *lines[number + 1 :]]
                    )


def _simpler_calls(program: Program) -> Iterator[Call]:
    call = program.calls[-1]
    if call.action.startswith("backpropagated"):
        inner = re.fullmatch(r"backpropagated\(lambda: (.*), captured\)", call.action)
        if inner is not None:
            yield dataclasses.replace(call, action=inner[1])
    for action in (
        "L.jacrev(f)(*args)",
        "L.jacfwd(f)(*args)",
        "L.jacobian(f)(*args)",
        "L.jacfwd(L.jacrev(f))(*args)",
        "L.grad(total(f))(*args)",
    ):
        if len(action) < len(call.action):
            yield dataclasses.replace(call, action=action, batch=0)
    plain = dataclasses.replace(
        call, grad=True, default_dtype="float32", training=True, keeps_state=False
    )
    if plain != call:
        yield plain
    for number, line in enumerate(call.arguments):
        for pattern in (r"\[\.\.\., 0\]$", r"\.mT$", r"\[1:\]$"):
            if re.search(pattern, line):
                simple = re.sub(pattern, ".clone()", line)
                yield dataclasses.replace(
                    call,
                    arguments=(*call.arguments[:number], simple, *call.arguments[number + 1 :]),
                )
    for number, line in enumerate(call.arguments):
        found = re.fullmatch(r"(x\d) = torch.tensor\(\[(.*)\], dtype=(torch\.\w+)\)", line)
        if found is not None:
            numbers = found[2].split(", ")
            if len(numbers) > 1:
                half = ", ".join(numbers[: max(1, len(numbers) // 2)])
                shorter = f"{found[1]} = torch.tensor([{half}], dtype={found[3]})"
                yield dataclasses.replace(
                    call,
                    arguments=(*call.arguments[:number], shorter, *call.arguments[number + 1 :]),
                )
