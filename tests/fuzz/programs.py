"""Programs as data: text of Python that is run, printed, and cut down."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

NAMES = re.compile(r"\b[vxcms]\d+\b")
PRELUDE = "import torch\nimport torch.nn.functional as F\nfrom fuzz.prelude import *\n"


@dataclasses.dataclass(frozen=True)
class Step:
    """Some lines of the function."""

    code: str
    defines: tuple[str, ...]  # variables
    family: str
    is_cut: bool = False  # values change that the derivative does not follow: differences see them
    is_random: bool = False

    @property
    def uses(self) -> set[str]:
        return set(NAMES.findall(self.code)) - set(self.defines)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the function: by which transforms, on what, and in which state of the world."""

    action: str  # an expression of f, args and a library L
    arguments: tuple[str, ...]  # statements that define inputs
    state: dict[str, Any]  # what steps ask for: s0
    grad: bool = True
    default_dtype: str = "float32"
    training: bool = True
    batch: int = 0  # how many vmaps: axes that come first
    keeps_state: bool = False  # from the call before
    is_aliased: bool = False  # whether captured tensors that are alike are one


@dataclasses.dataclass(frozen=True)
class Program:
    """A function, and calls of it."""

    seed: int
    inputs: tuple[str, ...]
    parameters: str  # of the function
    unpacking: tuple[str, ...]  # statements that name the inputs
    packing: tuple[str, ...]  # the arguments of a call
    declarations: tuple[
        tuple[str, str], ...
    ]  # name, statement: captured tensors, modules, custom functions
    steps: tuple[Step, ...]
    outputs: str  # expression with names
    calls: tuple[Call, ...]

    @property
    def is_cut(self) -> bool:
        return any(step.is_cut for step in self.steps)

    @property
    def is_random(self) -> bool:
        return any(step.is_random for step in self.steps)

    def used(self) -> Program:
        """Return the program without declarations that nothing uses."""
        text = "\n".join([step.code for step in self.steps] + [self.outputs])
        kept: list[tuple[str, str]] = []
        for name, code in reversed(self.declarations):
            if re.search(rf"\b{name}\b", text):
                kept.append((name, code))
                text += "\n" + code
        return dataclasses.replace(self, declarations=tuple(reversed(kept)))

    def function(self) -> str:
        """Return the text of f."""
        lines = [f"def f({self.parameters}):", *(f"    {line}" for line in self.unpacking)]
        for step in self.steps:
            lines += [f"    {line}" for line in step.code.split("\n")]
        lines.append(f"    return {self.outputs}")
        return "\n".join(lines) + "\n"

    def declared(self) -> str:
        """Return the text of what stands around f."""
        return "".join(f"{code}\n" for _, code in self.declarations)

    def script(self) -> str:
        """Return the whole as a script that prints each result beside the reference's."""
        lines = [PRELUDE + "s0 = {}", self.declared() + self.function()]
        for call in self.calls:
            lines.append("\n".join(call.arguments))
            lines.append(f"s0.update({call.state!r})")
            if call.is_aliased:
                names = ", ".join(self.captured())
                lines.append(
                    f"{names} = one_of_those_alike([{names}])  # apart again after the call"
                )
            lines.append(f"captured = [{', '.join(self.modules() + self.captured())}]")
            lines.append(f"args = {self.packed(call.batch)}")
            lines.append(f"torch.set_default_dtype(torch.{call.default_dtype})")
            lines.append(f"set_training([{', '.join(self.modules())}], {call.training})")
            lines.append(f"for L in (R, P):  # seed {self.seed}")
            grad = f"torch.set_grad_enabled({call.grad})"
            restart = "" if call.keeps_state else "  # from the first state of captured tensors"
            lines.append(f"    torch.manual_seed(0)\n    with {grad}:{restart}")
            lines.append(f"        print({call.action})")
        return "\n".join(lines)

    def modules(self) -> list[str]:
        return [name for name, _ in self.declarations if name.startswith("m")]

    def captured(self) -> list[str]:
        return [name for name, _ in self.declarations if name.startswith("c")]

    def packed(self, batch: int) -> str:
        """Return the expression of the arguments."""
        packing = f"({', '.join(self.packing)},)"
        return packing if not batch else f"stacked({packing}, {batch})"
