"""Code of calls by heart: straight lines that compare one call with those before, and answer it by kernels.

What is the same for all such calls (how many arguments there are, which are differentiated, whether a ``vmap`` is
on) is decided when the lines are written: to decide it in each call took a tenth of the time of small ones.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, get_default_dtype, is_grad_enabled
from torch.utils.hooks import RemovableHandle

from pushforward.tape.continued import Begun
from pushforward.tape.copies import keep_strides
from pushforward.tape.depth import check_depth, thread
from pushforward.tape.interrupts import finish_contexts, put_modes_back
from pushforward.tape.private_functorch import (
    batch_axis_at,
    functorch_level,
    start_requiring_grad,
    unwrapped,
    without_functorch,
)
from pushforward.tape.private_generator import memory_of_cpu
from pushforward.tape.private_torch import (
    compiled_functions_run_eagerly,
    has_dynamo,
    is_autocasting,
    next_sequence_number,
    sequence_number,
    set_grad_enabled,
)
from pushforward.tape.randomness import (
    bare_generator_state,
    bare_has_drawn,
)
from pushforward.tape.surroundings import is_watched, surroundings
from pushforward.tape.trust import Record, written_by
from pushforward.transforms.known_call import Answer, Key, KnownArguments, KnownGraph, TapeKey
from pushforward.transforms.record import Tape
from pushforward.trees import LEAF, flatten

# Given the record of a function, the function and its arguments; returns None if these are not as before, and what was
# begun if anything else was not.
Call = Callable[
    [Record, Callable[..., Any], tuple[Any, ...], dict[str, Any]],
    Answer | Tape | Begun | None,
]

_USED: dict[str, Any] = {
    "Answer": Answer, "Begun": Begun, "RemovableHandle": RemovableHandle, "Tensor": Tensor,
    "bare_generator_state": bare_generator_state, "bare_has_drawn": bare_has_drawn, "batch_axis_at": batch_axis_at,
    "check_depth": check_depth,
    "finish_contexts": finish_contexts, "flatten": flatten, "functorch_level": functorch_level,
    "get_default_dtype": get_default_dtype, "has_dynamo": has_dynamo, "is_autocasting": is_autocasting,
    "is_grad_enabled": is_grad_enabled, "is_watched": is_watched, "keep_strides": keep_strides,
    "next_sequence_number": next_sequence_number, "put_modes_back": put_modes_back,
    "sequence_number": sequence_number, "set_grad_enabled": set_grad_enabled,
    "start_requiring_grad": start_requiring_grad, "surroundings": surroundings, "thread": thread,
    "unwrapped": unwrapped, "without_functorch": without_functorch, "written_by": written_by,
    "eagerly": compiled_functions_run_eagerly,
}  # fmt: skip

MAX_TEXTS = 256

# Locals: of leaf ``i`` ``x{i}`` and its copy ``t{i}``, which the function gets as ``g{i}`` under ``vmap``; ``a{i}`` are
# other arguments, ``y{i}`` outputs. What belongs to a graph has the number of that.

_BEGIN = """
    num_hooks = RemovableHandle.next_id
    state = {state}
    depth, count, end = thread.depth, thread.count + 1, 0
    tracked = given = starts = ()
    result = None
    errors = []  # in a list, as a name would hold what holds it
    is_eager = has_dynamo()
    try:
        try:  # an interrupt may come at any time
            thread.depth, thread.count = depth + 1, count
            set_grad_enabled(True)
            if is_eager:
                eagerly.begin(id(errors))
"""

_RAN = """
            if thread.depth != depth + 1:
                check_depth({name!r}, depth)
            end = next_sequence_number()
            is_alone = thread.count == count
            if (
                RemovableHandle.next_id == num_hooks
                and (is_alone or not thread.written)
                and not (record.may_write and written_by(func, sequence_number(starts[0])))
            ):
                oldest = {oldest}
"""

_END = """
        except BaseException as error:
            if not starts:  # before the function was called, or after all was read
                raise
            finish_contexts(error)
            put_modes_back((), {level})
            errors.append(error)  # raised again where the call goes on
        finally:
            try:
                if thread.depth >= depth:  # else a recording around has left before, and put this back
                    thread.depth = depth
                    set_grad_enabled({grad_mode})
            finally:
                if is_eager:
                    eagerly.end(id(errors))
    except BaseException:  # an interrupt, while things were put back
        if has_dynamo():
            eagerly.end(id(errors))
        raise
    error = errors.pop() if errors else None
    return Begun({states}, num_hooks, count, {is_batched}, [*tracked], [*given], [*starts], end, result, error)
"""


def _tape(
    graph: KnownGraph,
    key: TapeKey,
    known: KnownArguments,
    tracked: list[Tensor],
    outputs: list[Tensor],
    saved: list[Any],
    nodes: list[Any],
) -> Tape:
    """Return the tape of a call."""
    reading = graph.script.reading(saved, nodes, {})
    reading.is_followed = reading.is_followed or any(each[-1] for each in known.inputs)
    reading.anchors = outputs
    results = outputs if graph.is_recording else [y.detach() for y in outputs]
    batch = known.surroundings[-1]
    if batch is not None:
        results = [batch.wrapped(y) for y in results]
    return Tape.recalled(
        key.name, reading, tracked, outputs, results, graph.recall, key.is_kept, batch
    )


@functools.lru_cache(MAX_TEXTS)
def _compiled(text: str) -> types.CodeType:
    return compile(text, "<a call by heart>", "exec")


def written(key: Key | TapeKey, known: KnownArguments, graphs: Sequence[KnownGraph]) -> Call:
    """Return the code of calls with such arguments, of a function that leaves one of these graphs."""
    writer = _Writer(key, known)
    exec(_compiled(writer.text(graphs)), writer.scope)  # the source is ours alone
    call: Call = writer.scope["call"]
    return call


class _Writer:
    """Writes the code."""

    def __init__(self, key: Key | TapeKey, known: KnownArguments) -> None:
        self._key, self._known, self._count = key, known, len(known.inputs)
        self._batch, self._is_flat = known.surroundings[-1], known.structure.is_flat
        # Whether one thread makes all nodes, and counts them
        self._is_counted = not any(device.type == "cuda" for _, _, device, _ in known.inputs)
        self._lines: list[str] = []
        self._indent = ""
        self.scope: dict[str, Any] = {**_USED, "known": known, "batch": self._batch}

    def text(self, graphs: Sequence[KnownGraph]) -> str:
        """Return the text of a module with the function ``call``."""
        self._open("def call(record, func, args, kwargs):")
        self._compare_surroundings(graphs)
        self._compare_arguments()
        state, self._has_drawn, states = self._random()
        self._lines += _BEGIN.format(state=state).splitlines()
        self._indent = " " * 12
        self._run()
        oldest = "sequence_number(starts[0])" if self._is_counted else "0"
        self._lines += _RAN.format(name=self._key.name, oldest=oldest).splitlines()
        for place, graph in enumerate(graphs):
            self._indent = " " * 16
            self._find(place, graph)
            self._answer(place, graph)
        self._lines += _END.format(
            level=None if self._batch is None else self._batch.level,
            states=states,
            grad_mode=self._known.surroundings[0],
            is_batched=self._batch is not None,
        ).splitlines()
        return "\n".join(self._lines)

    def _add(self, *lines: str) -> None:
        self._lines += [self._indent + line for line in lines]

    def _open(self, line: str) -> None:
        """Add a line under which the next ones are."""
        self._add(line)
        self._indent += "    "

    def _all(self, name: str, count: int | None = None) -> list[str]:
        """Return the name of each input, or of so many outputs."""
        return [name.format(i) for i in range(self._count if count is None else count)]

    def _constant(self, name: str, value: Any) -> str:
        self.scope[name] = value
        return name

    def _compare_surroundings(self, graphs: Sequence[KnownGraph]) -> None:
        """Write what tells whether surroundings are as before, and graphs may be answered."""
        if self._batch is None:  # as `surroundings` has it
            grad_mode, dtype, is_autocasting, _ = self._known.surroundings
            different = [
                f"is_watched() or functorch_level() is not None or is_grad_enabled() is not {grad_mode}",
                f"is_autocasting() is not {is_autocasting}",
                f"get_default_dtype() is not {self._constant('dtype', dtype)}",
            ]
        else:
            different = ["surroundings(may_be_batched=True) != known.surroundings"]
        for place, graph in enumerate(graphs):
            if graph.kernels is not None:
                name = self._constant(f"kernels{place}", graph.kernels)
                different.append(f"not {name}.is_alive")
        self._add(f"if {' or '.join(different)}: return None")

    def _compare_arguments(self) -> None:
        """Write what names the leaves of the arguments, and compares them."""
        xs = _tuple(self._all("x{}"))
        self._add(f"if len(args) != {self._known.num_args}: return None")
        if self._is_flat:
            self._add(f"{_tuple(self._arguments('x{}'))} = args")
        else:
            self._add("leaves = known.leaves(args)", "if leaves is None: return None")
            self._add(f"{xs} = leaves")
        if self._batch is not None:
            for i, x in enumerate(self._all("x{}")):
                axis = f"batch_axis_at({x}, {self._batch.level})"
                is_alike = f"{axis} is None" if i in self._known.shared else f"{axis} == 0"
                self._add(f"if not (type({x}) is Tensor and {is_alike}): return None")
                if i not in self._known.shared:
                    self._add(f"{x} = unwrapped({x})")
        are_alike = self._constant("inputs_are_alike", self._known.are_alike)
        self._add(f"if not ({are_alike}{xs} or known.are_inputs({xs})): return None")

    def _arguments(self, name: str) -> list[str]:
        """Return the names of the arguments, those to differentiate as ``name`` says."""
        names = [f"a{position}" for position in range(self._known.num_args)]
        for i, position in enumerate(self._known.positions):
            names[position] = name.format(i)
        return names

    def _random(self) -> tuple[str, str, str]:
        """Return what gives the state of random numbers, what tells that it is another, and what `Begun` takes."""
        if self._batch is not None:  # which refuses to draw
            return "()", "False", "()"
        memory = memory_of_cpu()
        if self._is_counted and memory is not None:
            self.scope["memory"] = memory
            return "memory.raw", "memory.raw != state", "(state,)"
        xs = "()" if self._is_counted else _tuple(self._all("x{}"))
        return f"bare_generator_state({xs})", f"bare_has_drawn(state, {xs})", "state"

    def _run(self) -> None:
        """Write how copies are made, and the function is called on them."""
        given, start = "t{}", "x{}.detach().requires_grad_()"
        if self._batch is not None:
            given, start = "g{}", "start_requiring_grad(x{}.detach())"
            self._open("with without_functorch():")
        for i, (*_, is_followed) in enumerate(self._known.inputs):
            self._add(f"t{i} = {('x{}' if is_followed else start).format(i)}.clone()")
            self._add(f"if not x{i}.is_contiguous(): keep_strides(t{i}, x{i})")
        self._indent = " " * 12
        if self._batch is not None:
            for i in range(self._count):
                is_shared = i in self._known.shared
                self._add(f"g{i} = t{i}" if is_shared else f"g{i} = batch.wrapped(t{i})")
        self._add(f"tracked, given = {_tuple(self._all('t{}'))}, {_tuple(self._all(given))}")
        self._add(f"starts = {_tuple(self._all('t{}.grad_fn'))}")
        names = (
            ", ".join(self._arguments(given)) if self._is_flat else "*known.replaced(args, given)"
        )
        self._add(f"result = func({names}, **kwargs) if kwargs else func({names})")

    def _find(self, place: int, graph: KnownGraph) -> None:
        """Write what finds out whether the function left this graph; the next lines are where it did."""
        outputs = self._all("y{}", len(graph.outputs))
        ys, spec = _tuple(outputs), self._constant(f"spec{place}", graph.spec)
        if graph.spec is LEAF:
            self._add("y0 = result")
            self._open("if type(y0) is Tensor:")
        else:
            self._add("leaves, spec = flatten(result)")
            self._open(f"if spec is {spec} or spec == {spec}:")
            self._add(f"{ys} = leaves")
        if self._batch is not None:
            level = self._batch.level
            axes = [
                f"type({y}) is Tensor and batch_axis_at({y}, {level}) is not None" for y in outputs
            ]
            self._open(f"if {' and '.join(axes)}:")
            self._open("with without_functorch():")
            self._add(*[f"{y} = batch.physical({y})" for y in outputs])
        are_alike = self._constant(f"are_alike{place}", graph.are_alike)
        are_outputs = self._constant(f"are_outputs{place}", graph.are_outputs)
        versions = " or ".join(self._all("t{}._version"))
        self._open(f"if ({are_alike}{ys} or {are_outputs}({ys})) and not ({versions}):")
        ends = _tuple([f"({y}.grad_fn, {y}.output_nr)" for y in outputs])
        script = self._constant(f"script{place}", graph.script.found)
        self._add(f"found = {script}(starts, {ends}, oldest, {{}})")
        self._open("if found is not None:")
        self._add("saved, nodes = found")
        if self._is_counted:
            self._open("if not is_alone or end - oldest - len(nodes) in record.beside:")

    def _answer(self, place: int, graph: KnownGraph) -> None:
        """Write the answer."""
        outputs, kernels = self._all("y{}", len(graph.outputs)), f"kernels{place}"
        if isinstance(self._key, TapeKey):
            tape = self._constant(
                f"tape{place}", functools.partial(_tape, graph, self._key, self._known)
            )
            self._add(f"return {tape}([*tracked], [{', '.join(outputs)}], saved, nodes)")
            return
        if self._key.randomness == "error":
            self._open(f"if not ({self._has_drawn}):")
        self._add("saved.append(nodes)")
        if graph.is_recording:
            self._add(f"outputs = [{', '.join(outputs)}]")
        else:
            # Nobody goes back over the graph: the kernels let go of what it saved.
            self._add(f"outputs = [{', '.join(f'{y}.detach()' for y in outputs)}]")
            held = ["tracked", "given", "starts", "leaves", "result", "found", "nodes", *outputs]
            held += [*self._all("t{}"), *self._all("g{}")]
            self._add(f"{' = '.join(held)} = None")
        self._add(f"set_grad_enabled({graph.is_recording})")
        self._add(f"rows = {kernels}.replay(saved)", f"{kernels}.answered += 1")
        if graph.finish is not None:
            self._add(f"rows = {self._constant(f'finish{place}', graph.finish)}(rows)")
        if self._batch is not None:
            self._add("rows = [[batch.wrapped(t) for t in row] for row in rows]")
            self._add("outputs = [batch.wrapped(y) for y in outputs]")
        if not self._is_flat:
            self._add("rows = [known.structure.trees(row) for row in rows]")
        self._add(f"return Answer(rows, outputs, spec{place})")


def _tuple(names: Sequence[str]) -> str:
    return f"({', '.join(names)},)" if names else "()"
