"""The taping recorder: keeps the linear program, with its residuals, to be pushed or pulled later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pushforward.linear.program import Equation, LinearProgram, Term
from pushforward.recording.dispatch import has_version
from pushforward.recording.recorder import Part, Recorder
from pushforward.recording.tracer import map_tensors


class TapingRecorder(Recorder):
    """Payloads are numbers of variables of the program."""

    def __init__(
        self, randomness: str = "error", name: str = "linearize", is_kept: bool = True
    ) -> None:
        """Start an empty program.

        Args:
            randomness: As `jacfwd` has it.
            name: The function that the caller called, for messages.
            is_kept: Whether the program outlives the caller's call, so that its inputs must be copied. Else writes
                to the caller's tensors wait for `write_back`, because maps hold their old values.
        """
        super().__init__(randomness, name)
        self.is_kept = is_kept
        self.puts_off_writes = not is_kept
        self.equations: list[Equation] = []
        self.num_variables = 0
        self.residuals: dict[int, tuple[Tensor, int]] = {}

    def own_copy(self, tensor: Tensor) -> Tensor:
        """Copy what a program that is kept would share with the caller, who may write to it."""
        if self.is_kept:
            return tensor.clone()
        self.note(tensor)
        return tensor

    def combine(self, parts: Sequence[Part], out: Tensor) -> int:
        """Append the equation of one output."""
        variable = self.num_variables
        self.num_variables += 1
        terms = [Term(payload, linear_map, dtype) for payload, linear_map, dtype in parts]
        self.equations.append(Equation(variable, terms, out.dtype))
        return variable

    def note_arguments(self, arguments: Any) -> None:
        """Remember the versions of tensors that maps may hold."""
        map_tensors(arguments, self.note)

    def note(self, tensor: Tensor) -> None:
        """Remember the version of one tensor."""
        if id(tensor) not in self.residuals and has_version(tensor):
            self.residuals[id(tensor)] = (tensor, tensor._version)

    def new_variable(self) -> int:
        """Return the number of a variable that no equation defines: an input."""
        self.num_variables += 1
        return self.num_variables - 1

    def program(self, inputs: list[int], outputs: list[int | None]) -> LinearProgram:
        """Return what was recorded, without what no output needs."""
        needed = {v for v in outputs if v is not None}
        kept = []
        for equation in reversed(self.equations):
            if equation.variable in needed:
                kept.append(equation)
                for term in equation.terms:
                    needed.add(term.variable)
        return LinearProgram(inputs, kept[::-1], outputs, list(self.residuals.values()))
