"""What a kind of node tells: its operator, and a prepared function that reads what it saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.tape import probing
from pushforward.tape.custom_functions import Refused
from pushforward.tape.operators import OPERATORS, Row
from pushforward.tape.private_distributed import boundary_kind
from pushforward.tape.private_torch import (
    BackwardHookFunction,
    CondFunction,
    Node,
    PythonNode,
    function_of,
    output_metadata,
)
from pushforward.tape.ruled import Ruled

Read = Callable[[Node, list[Any], list[Any]], None]
Joined = Callable[[Node], tuple[tuple[int, ...], ...]]

# Nodes that PyTorch does not generate from its table, or not in the version that ours is of.
_BY_HAND: dict[str, Row] = {
    "torch::autograd::CopyBackwards": ("copy", ("self", "src"), (), None),
    "LinalgMatrixSqrthBackward0": ("linalg_matrix_sqrth", ("self",), (), None),  # 2.14
    "LinalgPolarBackward0": ("linalg_polar", ("A",), (("H", 1), ("U", 0)), None),  # 2.14
}

# Nodes that move elements and do not say where to: they are asked.
MOVEMENTS = {"torch::autograd::CopySlices", "AsStridedBackward0", "AsStridedBackward0_copy"}
_JOINING: dict[str, Joined] = {
    "CatBackward0": lambda node: probing.joined_shapes(node, (_cat_axis(node),)),
    "BlockDiagBackward0": lambda node: probing.joined_shapes(node, (0, 1)),
}

_UNSIGNED = 1 << 63  # negative axes, shifts and pads are saved as unsigned numbers of 64 bits
NEVER, WHERE_CUT, ALWAYS = range(3)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class NodeType:
    """How nodes of one type are read.

    ``read(node, signature, tensors)`` appends what the node saved: for each of ``tensor_names`` a tensor, a tuple of
    them or None to the one, all else to the other.
    """

    name: str
    op: Any  # the overload; None for a node of no known operator
    edge_names: tuple[str, ...]  # arguments with a derivative, in the order of the edges
    tensor_names: tuple[str, ...]
    value_names: tuple[str, ...]
    outputs: dict[str, int]  # saved outputs and their positions
    differentiable: tuple[bool, ...] | None  # which outputs have a derivative; None: all
    read: Read
    needs_shape: int  # when the output's shape belongs to the signature: NEVER, WHERE_CUT an edge is missing, ALWAYS
    joined: Joined | None = None  # the shapes of what a node joined

    def __repr__(self) -> str:
        """Show the name."""
        return self.name


_TYPES: dict[Any, NodeType] = {}


def node_type(node: Node) -> NodeType:
    """Return what is known of the type of ``node``."""
    kind = type(node)
    found = _TYPES.get(kind)
    if found is None:
        if isinstance(node, PythonNode):
            return _function_type(node)
        name = node.name()
        if kind.__name__ != name and kind.__name__ == "CppFunction":
            kind = name  # types that PyTorch did not give to Python share one class
            found = _TYPES.get(kind)
        if found is None:
            found = _TYPES[kind] = _described(node, name)
    return found


def is_plain(kind: NodeType, has_constants: bool) -> bool:
    """Tell whether a node of the type is read by looking at it, and not asked."""
    is_asked = kind.joined is not None and has_constants
    return kind.op is not None and not is_asked and getattr(kind.read, "is_plain", False)


def signed(value: Any) -> Any:
    """Undo the conversion of negative numbers to unsigned ones."""
    if type(value) is int:
        return value - (1 << 64) if value >= _UNSIGNED else value
    if type(value) is tuple:
        return tuple([signed(item) for item in value])
    return value


def _described(node: Node, name: str) -> NodeType:
    row = OPERATORS.get(name) or _BY_HAND.get(name)
    op = None if row is None else _overload(row[0])
    if name in MOVEMENTS:
        return NodeType(name, None, (), (), (), {}, None, probing.read_moved, ALWAYS)
    arguments = {} if op is None else {a.name: a for a in op._schema.arguments}
    # Another version of PyTorch may have no such operator, or have named its arguments anew.
    if row is None or op is None or not arguments.keys() >= set(row[1]):
        return NodeType(name, None, (), (), (), {}, None, _read_nothing, ALWAYS)
    _, edge_names, saved_outputs, differentiable = row
    outputs = dict(saved_outputs)
    there = {a.removeprefix("_saved_") for a in dir(node) if a.startswith("_saved_")}
    tensor_names: list[str] = []
    value_names: list[str] = []
    for attribute in sorted(there):
        if attribute in outputs:
            tensor_names.append(attribute)
        elif attribute in arguments:
            is_tensor = "Tensor" in str(arguments[attribute].type)
            (tensor_names if is_tensor else value_names).append(attribute)
        elif attribute.endswith("_sizes"):
            value_names.append(attribute)
    read = _reader(tensor_names, value_names)
    needs_shape = _needs_shape(arguments, edge_names, there)
    return NodeType(
        name, op, edge_names, tuple(tensor_names), tuple(value_names), outputs, differentiable, read, needs_shape,
        _JOINING.get(name),
    )  # fmt: skip


def _cat_axis(node: Node) -> int:
    return int(signed(node._saved_dim)) % max(len(output_metadata(node)[0].shape), 1)


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    found = getattr(torch.ops.aten, packet, None)
    return None if found is None else getattr(found, overload or "default", None)


def _needs_shape(arguments: dict[str, Any], edge_names: tuple[str, ...], there: set[str]) -> int:
    needs = NEVER
    for name, argument in arguments.items():
        if name in there:
            continue
        if name in edge_names and "List[" not in str(argument.type):
            needs = max(needs, WHERE_CUT)
        else:
            return ALWAYS
    return needs


def _function_type(node: Node) -> NodeType:
    """Return the type of a node of an ``autograd.Function``: by what the function declares."""
    function, base = function_of(node), torch.autograd.Function
    if function is Ruled:
        calling_back.add(RULED)
        return RULED
    if function is BackwardHookFunction:
        calling_back.add(MODULE_HOOKS)
        return MODULE_HOOKS
    if function is CondFunction:
        return UNSEEN
    if boundary_kind(function) is not None:
        return BOUNDARY
    if function.jvp is base.jvp or function is Refused:  # whose jvp raises, as its backward
        return BACKWARD_ONLY
    has_backward = function.backward is not base.backward or function.vjp is not base.vjp
    seen_with_jvp.add(True)
    return WITH_JVP if has_backward else JVP_ONLY


def _read_function(node: Node, signature: list[Any], tensors: list[Any]) -> None:
    """Read a node of an ``autograd.Function``: it can only be called."""
    del tensors
    signature.append(function_of(node))


def _read_ruled(node: Node, signature: list[Any], tensors: list[Any]) -> None:
    """Read a node of an operator with a rule of the user's."""
    signature += node.call.signature()
    tensors.append(node.saved_tensors)


def _read_nothing(node: Node, signature: list[Any], tensors: list[Any]) -> None:
    """Read a node of no known operator: it can only be called."""
    del node, signature, tensors


INDICES = "indices"  # what is saved under this name goes through `integers`


def integers(indices: Any) -> Any:
    """Return indices with masks as the positions where they hold: how many there are then shows in the shapes."""
    if type(indices) is not tuple or not any(
        i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices
    ):
        return indices
    found: list[Tensor | None] = []
    with torch._C.DisableTorchFunction():
        for index in indices:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                found.extend(index.nonzero(as_tuple=True))
            else:
                found.append(index)
    return tuple(found)


def _reader(tensor_names: list[str], value_names: list[str]) -> Read:
    """Write the function that reads one type of node: half the time of a loop over names."""
    lines = ["def read(node, signature, tensors):", "    pass"]
    for name in tensor_names:
        value = f"node._saved_{name}"
        lines.append(f"    tensors.append({f'integers({value})' if name == INDICES else value})")
    for name in value_names:
        lines += [
            f"    value = node._saved_{name}",
            "    signature.append(value if value else repr(value))",  # 0.0 and -0.0 are equal
        ]
    scope: dict[str, Any] = {"integers": integers}
    exec("\n".join(lines), scope)  # the names are PyTorch's, from its own table
    read: Read = scope["read"]
    read.is_plain = True  # type: ignore[attr-defined]
    return read


# Of functions in Python: each has a type of its own, under ``torch.func`` each call.
BACKWARD_ONLY, WITH_JVP, JVP_ONLY, MODULE_HOOKS, BOUNDARY = (
    NodeType(name, None, (), (), (), {}, None, _read_function, ALWAYS)
    for name in (
        *("function with backward", "function with jvp and backward", "function with jvp"),
        "hooks of a module",
        "boundary of distributed tensors",
    )
)
# Of what a watcher replaces: it is left where nobody watched.
UNSEEN = NodeType("torch.cond", None, (), (), (), {}, None, _read_function, ALWAYS)
RULED = NodeType("operator with a rule", None, (), (), (), {}, None, _read_ruled, ALWAYS)
# Empty as long as none was read in this process, so that nobody has to look for them.
seen_with_jvp: set[bool] = set()
calling_back: set[NodeType] = set()  # what calls functions of the user's, which may change
