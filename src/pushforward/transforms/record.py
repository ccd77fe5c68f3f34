"""Recording a caller's function: what every transform does between its checks and its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from pushforward.linear.program import LinearProgram, check_versions
from pushforward.planning.kernels import Replay, Rows
from pushforward.planning.replay import swept
from pushforward.recording.recorder import Recorder
from pushforward.recording.session import run
from pushforward.recording.taping import TapingRecorder
from pushforward.transforms.arguments import Selected, check_outputs, split_aux
from pushforward.trees import TreeSpec, flatten, unflatten


def call(
    recorder: Recorder,
    func: Callable[..., Any],
    selected: Selected,
    kwargs: dict[str, Any],
    has_aux: bool,
    payloads: list[Any],
) -> tuple[list[tuple[Tensor, Any]], TreeSpec, Any]:
    """Record ``func``; return (primal, payload) of every output leaf, the output's structure, and aux."""

    def function(tracers: list[Any]) -> Any:
        return func(*selected.replaced(tracers), **kwargs)

    result = run(recorder, function, selected.leaves, payloads)
    output, aux = split_aux(recorder.name, result, has_aux)
    leaves, spec = flatten(output)
    check_outputs(recorder.name, output, leaves)
    pairs = [recorder.read(leaf) for leaf in leaves]
    if has_aux:
        aux_leaves, aux_spec = flatten(aux)
        aux = unflatten([recorder.read(leaf)[0] for leaf in aux_leaves], aux_spec)
    return pairs, spec, aux


class Tape:
    """A function recorded at a point: its linear program, and what it returned."""

    __slots__ = ("_program", "_recorder", "_variables", "aux", "inputs", "outputs", "spec")

    def __init__(
        self,
        name: str,
        func: Callable[..., Any],
        selected: Selected,
        kwargs: dict[str, Any],
        *,
        has_aux: bool = False,
        randomness: str = "same",
        is_kept: bool = False,
        recorder: TapingRecorder | None = None,
    ) -> None:
        """Call ``func`` once. Unless ``is_kept``, use the tape in a ``with`` statement, and not after it."""
        recorder = recorder or TapingRecorder(randomness, name, is_kept)
        self._recorder = recorder
        self.inputs = selected.leaves
        inputs: list[Any] = [recorder.new_variable(x) for x in self.inputs]
        try:
            pairs, self.spec, self.aux = call(recorder, func, selected, kwargs, has_aux, inputs)
        except BaseException:
            self.__exit__()
            raise
        self.outputs = [primal for primal, _ in pairs]
        self._variables = inputs, [variable for _, variable in pairs]
        self._program: LinearProgram | None = None
        if is_kept:
            self._program = recorder.program(*self._variables)
            recorder.let_go()

    @classmethod
    def around(
        cls, recorder: TapingRecorder, inputs: list[Tensor], leaves: list[Tensor], spec: TreeSpec
    ) -> Tape:
        """Return the tape of a recording that was made otherwise, with outputs ``leaves``."""
        self = cls.__new__(cls)
        pairs = [recorder.read(leaf) for leaf in leaves]
        self._recorder, self._program = recorder, None
        self._variables = list(range(len(inputs))), [variable for _, variable in pairs]
        self.inputs, self.outputs = inputs, [primal for primal, _ in pairs]
        self.spec, self.aux = spec, None
        return self

    def lift(self) -> None:
        """Let the recording below the tape's begin."""
        recorder = self._recorder
        if not recorder.is_lifted:
            recorder.lift()
            self._program = None
            self.outputs = [
                y if variable is None else recorder.values[variable]
                for y, variable in zip(self.outputs, self._variables[1], strict=True)
            ]

    @property
    def program(self) -> LinearProgram:
        """The linear program."""
        if self._program is None:
            self._program = self._recorder.program(*self._variables)
        return self._program

    def swept(
        self,
        kind: Hashable,
        compute: Callable[[], Rows],
        lifetime: Callable[[int], float] | None = None,
        write: Callable[[], Replay | None] | None = None,
    ) -> Rows:
        """Return ``compute()``, by the kernels that it ran for another tape with the same signature, if there was one.

        ``kind`` says what is computed; for the others see `planning.replay.swept`.
        """
        recorder = self._recorder
        signature = recorder.signature(self.outputs, self._variables[1])
        if signature is None:
            return compute()
        check_versions(recorder.residuals.values())
        return swept((kind, signature), self.values, lambda: self.anew(compute), lifetime, write)

    @property
    def is_signed(self) -> bool:
        """Whether what the tape's maps depend on is known but for elements."""
        return self._recorder.signature(self.outputs, self._variables[1]) is not None

    @property
    def values(self) -> list[Tensor]:
        """The tensors that the maps are made of."""
        return self._recorder.values

    def anew(self, compute: Callable[[], Rows]) -> Rows:
        """Return ``compute()``, which makes the maps itself."""
        self._program = None
        return compute()

    def __enter__(self) -> Tape:
        """Use the program."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Carry out the writes to the caller's tensors, which had to wait as maps hold their old values."""
        self._recorder.write_back()
