"""The taping recorder: keeps the linear program, with its residuals, to be pushed or pulled later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pushforward.linear.program import Equation, LinearProgram, Term, check_versions
from pushforward.recording.dispatch import has_version, is_autocasting
from pushforward.recording.recorder import Active, Operation, Part, Recorder
from pushforward.recording.tracer import Tracer, current, innermost, make_tracer, map_tensors
from pushforward.rules.registry import Rule

# Outputs with more elements get their maps at once: to hold what the maps are made of would cost memory.
MAX_DEFERRED = 2**16
MAX_SIGNATURE = 2**15  # entries, about six for an operator; longer ones take much memory

_NUMBERS = {int, float, bool, complex, type(None)}
_PLAIN = _NUMBERS | {str, torch.dtype, torch.device, torch.layout, torch.memory_format}
_TENSORS = {Tensor, torch.nn.Parameter, Tracer}
_STRIDED = torch.strided
_NOTHING: dict[str, Any] = {}

# The variables of an operation's outputs, and what to make an `Operation` of: a tuple takes less time to make.
Deferred = tuple[
    tuple[int | None, ...], Rule, Any, tuple[Any, ...], dict[str, Any], Any, list[Active]
]


class TapingRecorder(Recorder):
    """Payloads are numbers of variables of the program.

    Operators with rules of our own are deferred: their maps are made when the program is asked for. Until then the
    tape has a signature, which says all that the maps depend on but the tensors' elements. Calls with the same
    signature can repeat what was done before (planning/replay.py).
    """

    def __init__(
        self,
        randomness: str = "error",
        name: str = "linearize",
        is_kept: bool = True,
        below: TapingRecorder | None = None,
    ) -> None:
        """Start an empty program.

        Args:
            randomness: As `jacfwd` has it.
            name: The function that the caller called, for messages.
            is_kept: Whether the program outlives the caller's call, so that its inputs must be copied. Else writes
                to the caller's tensors wait for `write_back`, because maps hold their old values.
            below: A recording of the primals, which begins with `lift`: not before there is need of it.
        """
        super().__init__(randomness, name)
        self.is_kept = is_kept
        self.puts_off_writes = not is_kept
        self.defers = self.has_fast_path
        self._is_autocasting = is_autocasting()
        self.below = below
        self.is_lifted = below is None
        self._tracers: list[Tracer] = []  # of deferred outputs, as long as it is not lifted
        self.residuals: dict[int, tuple[Tensor, int]] = {}
        self.values: list[Any] = []  # of each variable; constants have numbers too
        # By the id of a value: the number of a variable, or ~number of a constant.
        self._numbers: dict[int, int] = {}
        self._inputs: list[int] = []
        self.is_mixed = False  # whether one tensor is the value of a variable and something else
        self._steps: list[Equation | Deferred] = []
        self._signature: list[Any] | None = [self._is_autocasting] if self.defers else None

    def own_copy(self, tensor: Tensor) -> Tensor:
        """Copy what a program that is kept would share with the caller, who may write to it."""
        if self.is_kept:
            return tensor.clone()
        self.note(tensor)
        return tensor

    def new_variable(self, primal: Tensor) -> int:
        """Return the number of a variable that no equation defines: an input."""
        number = len(self.values)
        self.values.append(primal)
        same = self._numbers.setdefault(id(primal), number)
        self.is_mixed = self.is_mixed or same != number
        self._inputs.append(number)
        self._describe(primal)
        if self._signature is not None:
            self._signature.append(same)
        return number

    def combine(self, parts: Sequence[Part], out: Tensor) -> int:
        """Append the equation of one output."""
        self._signature = None
        variable = len(self.values)
        self.values.append(None)
        terms = [Term(payload, linear_map, dtype) for payload, linear_map, dtype in parts]
        self._steps.append(Equation(variable, terms, out.dtype))
        return variable

    def defer(self, rule: Rule, func: Any, args: tuple[Any, ...]) -> Any:
        """Apply an operator of the fast path, and keep what its maps will be made of."""
        if not self.is_lifted and is_autocasting() is not self._is_autocasting:
            self.lift()
        primals: list[Any] = []
        active: list[Active] = []
        signature: list[Any] = [rule.operator]
        for position, given in enumerate(args):
            kind = type(given)
            if kind is Tracer and given._recorder is self:
                primal = given._primal if given._alias is None else current(given)
                variable = given._payload
                if variable is None:
                    variable = self._constant(primal)
                else:
                    active.append((position, None, variable, primal))
                signature.append(variable)
                primals.append(primal)
                continue
            if kind in _NUMBERS:
                signature.append((kind, given or repr(given)))  # 0.0 and -0.0 are equal
            elif isinstance(given, Tensor) and given.layout is _STRIDED:
                signature.append(self._constant(given))
            else:
                return NotImplemented
            primals.append(given)
        out = func(*primals)
        if not active:
            return make_tracer(out, None, self)
        plain = out if type(out) is Tensor else innermost(out)
        if plain.numel() > MAX_DEFERRED and self.is_lifted:
            operation = Operation(rule, rule.operator, tuple(primals), {}, out, active)
            return make_tracer(out, super().payloads_of(operation, args, {})[0], self)
        variable = len(self.values)
        self.values.append(out)
        self._numbers[id(out)] = variable
        self._steps.append(((variable,), rule, func, tuple(primals), _NOTHING, out, active))
        if self._signature is not None:
            self._signature += signature
            self._signature.append(plain.dtype)  # autocast may choose it
        tracer = make_tracer(out, variable, self)
        if not self.is_lifted:
            self._tracers.append(tracer)
        return tracer

    def lift(self) -> None:
        """Let the recording below begin: repeat on its tracers what was done on plain values.

        Only the fast path was taken so far; each of its steps is one operator without side effects.
        """
        below, self.is_lifted = self.below, True
        assert below is not None
        check_versions(self.residuals.values())
        lifted: dict[int, Tensor] = {}
        device = self.values[0].device.type
        with self.entry.restored(), torch.autocast(device, enabled=self._is_autocasting):
            for number in self._inputs:
                primal = self.values[number]
                lifted[number] = below.trace(primal, below.new_variable(primal))
            for place, step in enumerate(self._steps):
                assert not isinstance(step, Equation)
                (variable,), rule, func, args, kwargs, _, active = step
                primals = list(args)
                moved: list[Active] = []
                for key, _, operand, _ in active:
                    primals[cast("int", key)] = lifted[operand]
                    moved.append((key, None, operand, lifted[operand]))
                out = func(*primals)
                lifted[cast("int", variable)] = out
                self._steps[place] = ((variable,), rule, func, tuple(primals), kwargs, out, moved)
        self.roots = [(lifted[tracer._payload], tracer) for _, tracer in self.roots]
        for tracer in (*self._tracers, *(tracer for _, tracer in self.roots)):
            tracer._primal = lifted[tracer._payload]
        self._tracers = []
        self._numbers |= {id(value): number for number, value in lifted.items()}
        self.values = [lifted.get(number, value) for number, value in enumerate(self.values)]
        if self._signature is not None:
            self._signature.append("lifted")

    def finish(self) -> None:
        """Hand the writes to the caller's tensors over to them."""
        super().finish()
        self._tracers = []  # a cycle otherwise

    def payloads_of(
        self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Any]:
        """Defer what rules of our own derive; else make the maps at once."""
        rule = operation.rule
        below = [innermost(out) if isinstance(out, Tensor) else None for out in operation.outs]
        signature: list[Any] = [operation.op]
        if (
            not self.defers
            or rule is None
            or not rule.is_own
            or any(rule.partial(key) is None for key, _, _, _ in operation.active)
            or sum(out.numel() for out in below if out is not None) > MAX_DEFERRED
            or not self._sign((args, kwargs), signature)
        ):
            return super().payloads_of(operation, args, kwargs)
        variables: list[int | None] = []
        for out, plain in zip(operation.outs, below, strict=True):
            variables.append(None)
            if plain is not None:
                number = self._numbers[id(out)] = len(self.values)
                self.values.append(out)
                signature += (plain.shape, plain.stride(), plain.dtype)
                if plain.is_floating_point() or plain.is_complex():
                    variables[-1] = number
        o = operation
        self._steps.append((tuple(variables), rule, o.op, o.args, o.kwargs, o.out, o.active))
        if self._signature is not None:
            self._signature += signature
        return variables

    def _sign(self, given: Any, signature: list[Any]) -> bool:
        """Sign an argument of an operator; tell whether that was possible."""
        kind = type(given)
        if isinstance(given, Tensor):
            variable = None
            if isinstance(given, Tracer) and given._recorder is self:
                given, variable = current(given), given._payload
            signature.append(self._constant(given) if variable is None else variable)
            return given.layout is _STRIDED
        if kind in _PLAIN:
            signature.append((kind, given or repr(given)))
            return True
        if kind is dict:
            signature.append(tuple(given))
            given = given.values()
        elif kind is not tuple and kind is not list:
            return False
        signature.append(len(given))
        return all(self._sign(item, signature) for item in given)

    def _constant(self, tensor: Tensor) -> int:
        """Return ``~number`` of a tensor that no equation defines, and sign what maps may depend on."""
        known = self._numbers.get(id(tensor))
        if known is None:
            known = self._numbers[id(tensor)] = ~len(self.values)
            self.values.append(tensor)
            self.note(tensor)
            self._describe(tensor)
        elif known >= 0:
            self.is_mixed = True
            return ~known
        return known

    def _describe(self, tensor: Tensor) -> None:
        """Sign what maps may depend on but the elements."""
        kind = type(tensor)
        if kind is Tracer:
            tensor = innermost(tensor)
        if kind not in _TENSORS or tensor.layout is not _STRIDED:
            self._signature = None  # what is strange equals nothing
        if self._signature is not None:
            self._signature += (
                kind, tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad,
            )  # fmt: skip

    def note_arguments(self, arguments: Any) -> None:
        """Remember the versions of tensors that maps may hold."""
        map_tensors(arguments, self.note)

    def note(self, tensor: Tensor) -> None:
        """Remember the version of one tensor."""
        if id(tensor) not in self.residuals and has_version(tensor):
            self.residuals[id(tensor)] = (tensor, tensor._version)

    def signature(
        self, outputs: Sequence[Tensor], variables: Sequence[int | None]
    ) -> tuple[Any, ...] | None:
        """Return what was recorded but for the tensors' elements; None where maps were made at once."""
        found = [
            self._constant(primal) if variable is None else variable
            for primal, variable in zip(outputs, variables, strict=True)
        ]
        if self._signature is None or len(self._signature) > MAX_SIGNATURE:
            return None
        return (*self._signature, *found)

    def program(self, inputs: list[int], outputs: list[int | None]) -> LinearProgram:
        """Return what was recorded, without what no output needs."""
        needed = {v for v in outputs if v is not None}
        kept = []
        for step in reversed(self._steps):
            for equation in self._equations(step, needed):
                kept.append(equation)
                for term in equation.terms:
                    needed.add(term.variable)
        return LinearProgram(inputs, kept[::-1], outputs, list(self.residuals.values()))

    def let_go(self) -> None:
        """Let go of what further programs would be made of."""
        self.values, self._steps, self._numbers, self._signature = [], [], {}, None

    def _equations(self, step: Equation | Deferred, needed: set[int]) -> list[Equation]:
        """Return the equations of the variables that are needed."""
        if isinstance(step, Equation):
            return [step] if step.variable in needed else []
        variables, rule, op, args, kwargs, out, active = step
        if needed.isdisjoint(variables):
            return []
        operation = Operation(rule, op, args, kwargs, out, active)
        return [
            Equation(variable, [Term(*part) for part in parts], result.dtype)
            for variable, parts, result in zip(
                variables, operation.parts(self.name), operation.outs, strict=True
            )
            if variable is not None and variable in needed
        ]
