"""Scripts: a graph that was read before is read by straight-line code, which checks that it is the same all over.

The reader takes more than a microsecond for a node; a script a third of that. It checks everything that the signature
says (types, edges, numbers, shapes, strides, dtypes), so that no signature has to be put together and looked up.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.tape.likeness import check_of
from pushforward.tape.node_types import ALWAYS, INDICES, WHERE_CUT, NodeType, integers, is_plain
from pushforward.tape.private_torch import Node, output_metadata, sequence_number
from pushforward.tape.reader import Edge, Geometry, Reading, is_lost_leaf, sign_tensors

End = tuple[Node | None, int]
Geometries = dict[Node, Geometry]
# Takes the nodes of inputs and outputs, the oldest sequence number, and where views lie that were copied into; gives
# what was saved, and the nodes.
_Code = Callable[
    [Sequence[Node], Sequence[End], int, Geometries], tuple[list[Any], list[Node]] | None
]
Found = tuple[list[Any], list[Node]]
_Read = Callable[[], Found | None]

MAX_NODES = 4096  # of a graph that gets a script

# Nodes of operators whose output has the shape and the dtype of the input, and the dtype of the arguments whose shapes
# they save.
_ALIKE = {"ExpBackward0", "ReluBackward0", "SigmoidBackward0", "SqrtBackward0", "TanhBackward0"}
_KEEPING_DTYPE = {"AddmmBackward0", "MmBackward0", "UnsafeViewBackward0", "ViewBackward0"}


@dataclasses.dataclass(slots=True)
class Script:
    """Reads one graph."""

    code: _Code
    template: Reading
    is_in_level: bool  # of ``torch.func``: whether which tensors are one is told by `aliases` alone
    # Whether such a graph was left by a run that did nothing that has to be seen.
    is_quiet: bool = False

    def read(
        self,
        starts: Sequence[Node],
        ends: Sequence[End],
        oldest: int,
        geometries: Geometries,
        called: Callable[[_Read], Any] | None = None,
    ) -> Reading | None:
        """Return the reading of a graph like the one that the script was made for, None of any other."""
        found = self.found(starts, ends, oldest, geometries, called)
        return None if found is None else self.reading(*found, geometries)

    def reading(self, tensors: list[Any], nodes: list[Node], geometries: Geometries) -> Reading:
        """Return the reading of what was found."""
        known = self.template
        return Reading(
            known.num_inputs, nodes, known.types, known.signature, tensors, known.starts, known.numbers,
            known.outputs, known.is_followed, geometries, known.all_edges, script=self, aliases=known.aliases,
        )  # fmt: skip

    def found(
        self,
        starts: Sequence[Node],
        ends: Sequence[End],
        oldest: int,
        geometries: Geometries,
        called: Callable[[_Read], Any] | None = None,
    ) -> Found | None:
        """Return what the nodes saved, and the nodes, of a graph like that one, None of any other.

        If given, ``called`` calls what looks at the nodes.
        """
        try:
            if called is None:
                return self.code(starts, ends, oldest, geometries)
            found: Found | None = called(
                functools.partial(self.code, starts, ends, oldest, geometries)
            )
            return found
        except ValueError:  # another number of edges
            return None


def script_of(
    reading: Reading, starts: Sequence[Node], ends: Sequence[End], oldest: int, is_in_level: bool
) -> Script | None:
    """Return the script of a graph that was just read, None where it has nodes that have to be asked.

    Nodes of a run in a level of ``torch.func`` save tensors around those of the reading.
    """
    if len(reading.nodes) > MAX_NODES or reading.calls_back or reading.hooks:
        return None
    for place, kind in enumerate(reading.types):
        is_write = reading.nodes[place] in reading.geometries
        has_constants = any(n < 0 for n, _ in reading.edges(place))
        if not (is_write or is_plain(kind, has_constants)):
            return None
    writer = _Writer(reading, starts, oldest, is_in_level)
    code = writer.code(ends)
    if code is None:
        return None
    template = dataclasses.replace(
        reading,
        nodes=[],
        tensors=[],
        numbers={},
        is_followed=writer.is_followed,  # by the graph: inputs may be followed or not
        anchors=(),
        geometries={},
    )
    return Script(code, template, is_in_level)


def _asks_shape(kind: NodeType, edges: Sequence[Edge]) -> bool:
    """Tell whether the output's shape belongs to the signature."""
    needs = kind.needs_shape
    return needs == ALWAYS or (needs == WHERE_CUT and any(number < 0 for number, _ in edges))


def _told(reading: Reading) -> set[int]:
    """Return the places of nodes whose output's shape and dtype are told by what is checked beside.

    Those of the graph's outputs are looked at in any case. A node that saved its output tells it, and one that saved an
    argument, or is known to make its output alike, tells the output of the node before. To ask a node for it takes
    half a microsecond, as long as to read three tensors.
    """
    first, told = reading.num_inputs, {n for n, _ in reading.outputs}
    for place in reversed(range(len(reading.nodes))):
        kind, edges = reading.types[place], reading.edges(place)
        if reading.nodes[place] in reading.geometries:
            continue
        saved = {
            name
            for name, value in zip(kind.tensor_names, reading.saved(place), strict=True)
            if isinstance(value, Tensor)
        }
        has_saved_output = any(kind.outputs.get(name) == 0 for name in saved)
        if has_saved_output:
            told.add(place + first)
        if len(edges) != len(kind.edge_names):
            continue
        is_alike = has_saved_output and kind.name in _ALIKE
        keeps_dtype = kind.name in _KEEPING_DTYPE and (
            place + first in told or _asks_shape(kind, edges)
        )
        for (number, _), argument in zip(edges, kind.edge_names, strict=True):
            has_sizes = f"{argument}_sym_sizes" in kind.value_names
            if argument in saved or is_alike or (keeps_dtype and has_sizes):
                told.add(number)
    return {number - first for number in told if number >= first}


def _are_described(
    tensors: Sequence[Any], known: Sequence[tuple[torch.Size, tuple[int, ...], torch.dtype]]
) -> bool:
    """Tell whether there are tensors with these shapes, strides and dtypes."""
    return all(
        t is not None and t.shape == shape and t.stride() == stride and t.dtype is dtype
        for t, (shape, stride, dtype) in zip(tensors, known, strict=True)
    )


class _Writer:
    """Writes the code of one script."""

    def __init__(
        self, reading: Reading, starts: Sequence[Node], oldest: int, is_in_level: bool
    ) -> None:
        self._reading, self._oldest, self._is_in_level = reading, oldest, is_in_level
        self._told = _told(reading)
        self._names: dict[Node, str] = {node: f"s{i}" for i, node in enumerate(starts)}
        self._starts = set(starts)
        self._scope: dict[str, Any] = {
            "sequence_number": sequence_number, "sign": sign_tensors, "integers": integers, "is_lost": is_lost_leaf,
            "are_described": _are_described,
        }  # fmt: skip
        self._lines: list[str] = []
        self._saved: dict[int, list[str]] = {}  # by place among the reading's nodes
        # What was read, by `id`: what is one object has to be one again
        self._held: dict[int, str] = {}
        self._described: dict[str, Tensor] = {}  # saved tensors
        self._places = {node: place for place, node in enumerate(reading.nodes)}
        ends = [node for node, number in reading.numbers.items() if number < 0]
        has_older = any(node.next_functions and sequence_number(node) < oldest for node in ends)
        leaves = [node for node in ends if not node.next_functions]
        held = [node for node in leaves if not is_lost_leaf(node)]
        self.is_followed = has_older or bool(held)
        # Leaves to look at: one that is held tells that somebody may go back.
        self._asked: set[Node] = set() if has_older else set(held[:1] or leaves)

    def code(self, ends: Sequence[End]) -> _Code | None:
        """Return the function; None where a node's type is shared with others."""
        lines = self._lines
        if self._starts:
            lines.append(f"{''.join(f'{name}, ' for name in self._names.values())}= starts")
        lines.append(f"{''.join(f'(e{i}, k{i}), ' for i in range(len(ends)))}= ends")
        stack: list[tuple[str, Node | None]] = []
        for i, (node, nr) in enumerate(ends):
            lines.append(f"if k{i} != {nr}: return None")
            stack.append((f"e{i}", node))
        while stack:
            name, node = stack.pop()
            if not self._visit(name, node, stack):
                return None
        self._check_described()
        tensors = [name for place in sorted(self._saved) for name in self._saved[place]]
        nodes = [self._names[node] for node in self._reading.nodes]
        lines.append(f"return [{', '.join(tensors)}], [{', '.join(nodes)}]")
        text = "def script(starts, ends, oldest, geometries):\n    " + "\n    ".join(lines)
        exec(text, self._scope)  # the source is ours alone
        code: _Code = self._scope["script"]
        return code

    def _visit(self, name: str, node: Node | None, stack: list[tuple[str, Node | None]]) -> bool:
        if node is None:
            self._check(f"{name} is not None")
            return True
        if node in self._names:
            self._check(f"{name} is not {self._names[node]}")
            return True
        self._names[node] = name
        edges = node.next_functions
        if edges and sequence_number(node) < self._oldest:
            self._check(f"{name} is None or sequence_number({name}) >= oldest")
            return True
        if type(node).__name__ == "CppFunction" and node not in self._reading.geometries:
            return False
        self._check(f"type({name}) is not {self._constant(type(node))}")
        if not edges:
            if node in self._asked:
                self._check(f"is_lost({name}) is {self.is_followed}")
            return True
        names = []
        for i, (target, nr) in enumerate(edges):
            inner = f"{name}_{i}" if len(name) < 40 else f"x{len(self._names)}_{i}"
            names.append((inner, nr))
            stack.append((inner, target))
        unpacked = "".join(f"({inner}, k{i}), " for i, (inner, _) in enumerate(names))
        self._lines.append(f"{unpacked}= {name}.next_functions")
        self._check(
            " or ".join(f"k{i} != {nr}" if nr else f"k{i}" for i, (_, nr) in enumerate(names))
        )
        if node in self._places:
            self._read(name, node, self._places[node])
        return True

    def _read(self, name: str, node: Node, place: int) -> None:
        """Write how what the node saved is read and checked."""
        reading = self._reading
        kind, edges = reading.types[place], reading.edges(place)
        saved = self._saved[place] = []
        geometry = reading.geometries.get(node)
        if geometry is not None:
            self._check(f"geometries.get({name}) != {self._constant(geometry)}")
        for attribute, value in zip(kind.tensor_names, reading.saved(place), strict=True):
            variable = f"v{place}_{len(saved)}"
            saved.append(variable)
            read = f"{name}._saved_{attribute}"
            self._lines.append(
                f"{variable} = {f'integers({read})' if attribute == INDICES else read}"
            )
            if id(value) in self._held and not self._is_in_level:
                self._check(f"{variable} is not {self._held[id(value)]}")
            elif isinstance(value, Tensor) and value.layout is torch.strided:
                self._held[id(value)] = variable
                self._described[variable] = value
            elif value is None:
                self._check(f"{variable} is not None")
            else:
                signature: list[Any] = []
                sign_tensors((value,), signature)
                self._lines.append(f"found = []; sign(({variable},), found)")
                self._check(f"found != {self._constant(signature)}")
                for i, part in enumerate(value if type(value) is tuple else (value,)):
                    if isinstance(part, Tensor):
                        one = f"{variable}[{i}]" if part is not value else variable
                        other = self._held.setdefault(id(part), one)
                        if other != one and not self._is_in_level:
                            self._check(f"{one} is not {other}")
        for attribute in kind.value_names:
            value = getattr(node, f"_saved_{attribute}")
            read = f"{name}._saved_{attribute}"
            if value:
                self._check(f"{read} != {self._constant(value)}")
            elif type(value) is int:
                self._lines.append(f"found = {read}")
                self._check("found or type(found) is not int")
            else:  # 0.0 and -0.0 are equal
                self._lines.append(f"found = {read}")
                self._check(f"found or repr(found) != {self._constant(repr(value))}")
        if _asks_shape(kind, edges):
            self._check_shapes(name, node, place)

    def _check_described(self) -> None:
        """Write how the tensors that were saved are compared with those of before."""
        if not self._described:
            return
        tensors = list(self._described.values())
        names = f"{', '.join(self._described)}, "
        known = self._constant([(t.shape, t.stride(), t.dtype) for t in tensors])
        condition = f"not are_described(({names}), {known})"
        if not self._is_in_level:  # where nodes save other tensors, around these
            condition = f"not {self._constant(check_of(tensors))}({names}) and {condition}"
        self._check(condition)

    def _check_shapes(self, name: str, node: Node, place: int) -> None:
        """Write how the shapes and dtypes of a node's outputs are checked: where nothing else tells them."""
        metadata = output_metadata(node)
        if len(metadata) == 1 and place in self._told:
            return
        numbers = range(len(metadata))
        self._lines.append(f"{''.join(f'm{i}, ' for i in numbers)}= {name}._input_metadata")
        for i, each in zip(numbers, metadata, strict=True):
            shape, dtype = self._constant(each.shape), self._constant(each.dtype)
            self._check(f"m{i}.shape != {shape} or m{i}.dtype is not {dtype}")

    def _check(self, condition: str) -> None:
        self._lines.append(f"if {condition}: return None")

    def _constant(self, value: Any) -> str:
        name = f"c{len(self._scope)}"
        self._scope[name] = value
        return name
