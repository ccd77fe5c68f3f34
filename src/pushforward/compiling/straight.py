"""Straight-line code: graphs of small tensors, taken apart into numbers.

Each tensor is an array of the numbers that its elements are, on which operators that only move elements run themselves.
A call costs a microsecond then, whatever the number of operators, where loops would cost that much for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pushforward.compiling import graphs
from pushforward.compiling.number_code import HEADERS, source
from pushforward.compiling.number_rules import (
    ELEMENTWISE,
    INDEXING,
    MOVING,
    SPECIAL,
    VIEWS,
    UnsuitableError,
)
from pushforward.compiling.numbers import C_TYPES, COMPARISONS, Numbers, TooManyError
from pushforward.compiling.systems import SYSTEMS
from pushforward.tape.private_compiler import cpp_kernel, empty_strided_cpu

aten = torch.ops.aten

MAX_ELEMENTS = 2**14  # of one tensor
MAX_STORED = 2**11  # of all results: above it compilers take many seconds

Compute = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def straight(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Compute | None:
    """Return a function that computes a graph number by number; None where that is impossible, or not worth it."""
    try:
        program = Program(graph, inputs)
        return program.compute()
    except (UnsuitableError, TooManyError):
        return None


class Program:
    """A graph, taken apart."""

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        """Run the graph on numbers."""
        self.numbers = Numbers()
        self.graph, self.inputs = graph, inputs
        self.has_writes = any(graphs.is_mutable(n) for n in graph.graph.nodes)
        self.found: dict[fx.Node, Any] = {}  # arrays of numbers
        self.known: dict[fx.Node, Any] = {}  # tensors, of what depends on no input
        arrays = iter(range(len(inputs)))
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                self.found[node] = self._loaded(next(arrays))
            elif node.op == "output":
                self.outputs = self._stored(node)
            else:
                self._run(node)

    def compute(self) -> Compute:
        """Compile, and return the function."""
        kinds = [C_TYPES.get(x.dtype, "double") for x in self.inputs]
        stored = [(C_TYPES[y.dtype], places) for y, places in self.outputs]
        if sum(len(places) for _, places in stored) > MAX_STORED:
            raise TooManyError
        text = source(self.numbers, kinds, stored)
        arguments = [f"const {kind}*" for kind in kinds] + [f"{kind}*" for kind, _ in stored]
        scope: dict[str, Any] = {
            "empty": empty_strided_cpu(),
            "kernel": cpp_kernel(arguments, text, HEADERS),
        }
        names = [f"o{i}" for i in range(len(stored))]
        lines = ["def compute(tensors):"]
        for name, (y, _) in zip(names, self.outputs, strict=True):
            scope |= {
                f"shape_{name}": tuple(y.shape),
                f"stride_{name}": y.stride(),
                f"dtype_{name}": y.dtype,
            }
            lines.append(f"  {name} = empty(shape_{name}, stride_{name}, dtype_{name})")
        call = f"kernel(*tensors, {', '.join(names)})"
        if self.numbers.refused:  # then the graph itself is asked
            scope["graph"] = self.graph
            call = f"try: {call}\n  except RuntimeError: return graph(*tensors)"
        lines += [f"  {call}", f"  return [{', '.join(names)}]"]
        exec("\n".join(lines), scope)  # the source is ours alone
        compute: Compute = scope["compute"]
        return compute

    def _loaded(self, array: int) -> Tensor | None:
        x = self.inputs[array]
        if x.device.type != "cpu" or x.layout is not torch.strided:
            raise UnsuitableError
        if x.dtype not in C_TYPES or x.numel() > MAX_ELEMENTS:
            return None  # which is no harm where it is not used
        places = _places(x)
        loaded = [self.numbers.load(array, place, x.dtype) for place in places.flatten().tolist()]
        return torch.tensor(loaded, dtype=torch.int64).reshape(x.shape)

    def _stored(self, node: fx.Node) -> list[tuple[Tensor, dict[int, int]]]:
        aliases = graphs.aliases(self.graph)
        given: Any = node.args[0]
        seen: set[fx.Node] = {
            n for n in self.graph.graph.nodes if n.op in ("placeholder", "get_attr")
        }
        stored = []
        for output in given:
            y = output.meta.get("val") if isinstance(output, fx.Node) else None
            if not isinstance(y, Tensor) or y.layout is not torch.strided or y.device.type != "cpu":
                raise UnsuitableError
            if not seen.isdisjoint(aliases[output]) or y.dtype not in C_TYPES:
                raise UnsuitableError  # results that share memory
            seen |= aliases[output]
            places = _places(y).flatten().tolist()
            stored.append(
                (y, dict(zip(places, self.array(output).flatten().tolist(), strict=True)))
            )
        return stored

    def array(self, node: Any) -> Tensor:
        """Return the numbers that a tensor's elements are; those of a Python number."""
        if isinstance(node, (int, float)):
            return torch.tensor(self.numbers.constant(node))
        if not isinstance(node, fx.Node):
            raise UnsuitableError
        if node not in self.found:
            if node not in self.known:
                raise UnsuitableError
            self.found[node] = self._constants(self.known[node])
        array = self.found[node]
        if not isinstance(array, Tensor):
            raise UnsuitableError
        return array

    def _constants(self, x: Any) -> Tensor:
        if not isinstance(x, Tensor) or x.is_complex() or x.numel() > MAX_ELEMENTS:
            raise UnsuitableError
        values = [self.numbers.constant(v) for v in x.flatten().tolist()]
        return torch.tensor(values, dtype=torch.int64).reshape(x.shape)

    def _run(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self.known[node] = getattr(self.graph, str(node.target))
        elif self._is_constant(node):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.known.__getitem__)
            operator: Any = node.target
            self.known[node] = operator(*args, **kwargs)
        else:
            self.found[node] = self._result(node)

    def _is_constant(self, node: fx.Node) -> bool:
        """Tell whether a node depends on no input; where there are writes, only tensors made of numbers count."""
        if not graphs.is_pure(node) or not all(n in self.known for n in node.all_input_nodes):
            return False
        value = node.meta.get("val")
        is_small = isinstance(value, Tensor) and value.numel() <= MAX_ELEMENTS
        return not self.has_writes and (is_small or isinstance(value, (tuple, list)))

    def _result(self, node: fx.Node) -> Any:
        op: Any = node.target
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.numel() > MAX_ELEMENTS:
            raise UnsuitableError
        if graphs.is_mutable(node):
            return self._written(node)
        if op in MOVING:
            return self._moved(node)
        special = SPECIAL.get(op) or SYSTEMS.get(op)
        if special is not None:
            return special(self, node)
        name = ELEMENTWISE.get(op)
        if name is not None:
            return self.elementwise(name, node, *node.args)
        if not node.all_input_nodes and graphs.is_pure(node):  # zeros, ones, units
            return self._constants(op(*node.args, **node.kwargs))
        raise UnsuitableError

    def elementwise(self, name: str, node: fx.Node, *operands: Any) -> Tensor:
        """Return the numbers of an operation on all elements."""
        if name in COMPARISONS:
            found = [n.meta["val"].dtype for n in operands if isinstance(n, fx.Node)]
            dtype = found[0]
            if any(d is not dtype for d in found):
                raise UnsuitableError
        else:
            dtype = node.meta["val"].dtype
        return self.of(name, dtype, *map(self.array, operands))

    def of(self, name: str, dtype: torch.dtype, *arrays: Tensor) -> Tensor:
        """Return the numbers of an operation on arrays of numbers."""
        if dtype not in C_TYPES:
            raise UnsuitableError
        broadcast = torch.broadcast_tensors(*arrays)
        rows = zip(*(a.flatten().tolist() for a in broadcast), strict=True)
        found = [self.numbers.of(name, dtype, *row) for row in rows]
        return torch.tensor(found, dtype=torch.int64).reshape(broadcast[0].shape)

    def summed(self, array: Tensor, dtype: torch.dtype, axes: Sequence[int]) -> Tensor:
        """Return sums over axes, which come last."""
        rest = [i for i in range(array.dim()) if i not in {a % array.dim() for a in axes}]
        shape = [array.shape[i] for i in rest]
        count = math.prod(shape)
        rows = array.permute(*rest, *(i for i in range(array.dim()) if i not in rest)).reshape(
            count, -1
        )
        total = (
            self.of("cast", dtype, rows[:, 0])
            if rows.shape[1]
            else torch.zeros(count, dtype=torch.int64)
        )
        for column in rows.unbind(1)[1:]:
            total = self.of("add", dtype, total, column)
        return total.reshape(shape)

    def _moved(self, node: fx.Node) -> Any:
        """Return what an operator that moves elements makes of numbers."""
        op: Any = node.target
        args: Any
        kwargs: Any
        if op in INDEXING:
            args = (self.array(node.args[0]), *fx.node.map_arg(node.args[1:], self._known))
            kwargs = node.kwargs
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.array)
        if op is aten.constant_pad_nd.default and len(args) > 2:
            args = (*args[:2], self.numbers.constant(args[2]))
        if op in VIEWS and not self.has_writes:
            return args[0].reshape(node.meta["val"].shape)  # strides may differ from the tensor's
        try:
            return op(*args, **kwargs)
        except RuntimeError as error:
            raise UnsuitableError from error

    def _known(self, node: fx.Node) -> Any:
        if node not in self.known:
            raise UnsuitableError
        return self.known[node]

    def _written(self, node: fx.Node) -> Tensor:
        """Write to an array of numbers, and so to all of which it is a view."""
        op: Any = node.target
        target = self.array(node.args[0])
        dtype = node.meta["val"].dtype
        if not op._schema.name.endswith("_"):
            raise UnsuitableError
        name = op._schema.name.removeprefix("aten::").removesuffix("_")
        if name == "copy":
            source_ = self.of("cast", dtype, self.array(node.args[1]))
        elif name == "fill":
            source_ = self.array(node.args[1])
        elif name == "zero":
            source_ = torch.tensor(0)
        elif name in ("add", "sub", "mul", "div", "neg") and not node.kwargs:
            source_ = self.of(name, dtype, *map(self.array, node.args))
        else:
            raise UnsuitableError
        return target.copy_(source_.expand(target.shape))


def _places(x: Tensor) -> Tensor:
    """Return where the elements of a tensor stand, counted from its first."""
    found = torch.zeros((), dtype=torch.int64)
    for length, step in zip(x.shape, x.stride(), strict=True):
        found = found.unsqueeze(-1) + torch.arange(length) * step
    return found.reshape(x.shape)
