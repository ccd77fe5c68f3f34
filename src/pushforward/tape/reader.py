"""Reading autograd's graph: which nodes lead from the inputs to the outputs, their signature, what they saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from pushforward.tape.aliases import Aliases, aliases
from pushforward.tape.node_types import _TYPES, ALWAYS, NodeType, node_type
from pushforward.tape.overwritten import Restored
from pushforward.tape.private_torch import (
    Node,
    in_backward_pass,
    is_held,
    is_zero_without_memory,
    num_dispatch_modes,
    output_metadata,
    sequence_number,
)
from pushforward.tape.recomputation import in_pass_of_its_own

# Sizes and strides of a base, and sizes, strides and offset of a view of it.
Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
# The number of a node (inputs first), and which of its outputs; (-1, 0): no derivative
Edge = tuple[int, int]

Made = list[tuple[int, Node, Any]]  # sequence number, node, edges

_first = itemgetter(0)
# By whether numbers are complex: what decides the dtype of a product with one that counts as a number alone.
_NARROW = torch.zeros((), dtype=torch.float16), torch.zeros((), dtype=torch.complex64)


class Signature:
    """All that a reading says but the tensors' elements; hashed once."""

    __slots__ = ("_hash", "entries")

    def __init__(self, entries: tuple[Any, ...]) -> None:
        """Hash the entries."""
        self.entries = entries
        self._hash = hash(entries)

    def __hash__(self) -> int:
        """Return what was worked out."""
        return self._hash

    def __eq__(self, other: object) -> bool:
        """Compare the entries."""
        return self is other or (isinstance(other, Signature) and self.entries == other.entries)


@dataclasses.dataclass(slots=True)
class Reading:
    """The part of a graph between inputs and outputs.

    Nodes are numbered: the inputs' first, then those that follow, in the order in which they were made.
    """

    num_inputs: int
    nodes: list[Node]
    types: list[NodeType]
    signature: Any  # entries while it is read, then a `Signature`
    # What the nodes saved, one after the other; a node of no known operator stands for itself.
    tensors: list[Any]
    starts: list[int]  # where each node's tensors begin
    numbers: dict[Node, int]
    outputs: list[Edge]
    is_followed: bool  # whether other leaves, or older nodes, are reached
    geometries: dict[Node, Geometry]
    all_edges: list[list[Edge]]  # where the inputs of each node come from
    # Shapes of what was joined, by place, where constants are among it; None until the node was asked.
    joined: dict[int, Any] = dataclasses.field(default_factory=dict)
    script: Any = None  # that read it, None where it was read node by node
    aliases: Aliases = dataclasses.field(default_factory=list)  # among all that was saved
    # Which saved tensors require grad outside of a level of torch.func, in which the graph does not tell.
    followed: tuple[bool, ...] = ()
    # What depends on all that is recorded, where that may be differentiated again.
    anchors: Sequence[Tensor] = ()
    hooks: dict[Edge, list[Any]] = dataclasses.field(default_factory=dict)  # as registered
    hooked: set[int] = dataclasses.field(default_factory=set)  # places of nodes that may have some
    # Whether there are hooks, of tensors, nodes or modules: sweeps are not repeated for a plan.
    calls_back: bool = False
    is_distributed: bool = False  # whether `DTensor`s have a part in it; likewise
    mesh: Any = None  # over which such inputs lie

    def edges(self, place: int) -> list[Edge]:
        """Return where the inputs of a node come from."""
        return self.all_edges[place]

    def sign(self) -> bool:
        """Add what a plan depends on of the tensors; tell whether dual numbers left zeros that have no memory.

        Kernels write to temporaries, and products with such zeros are no better: they get memory.
        """
        has_zeros = sign_tensors(self.tensors, self.signature)
        self.aliases = aliases(self.all_saved())
        self.signature += self.aliases
        if has_zeros:
            self.tensors = map_saved(
                lambda t: t.clone() if is_zero_without_memory(t) else t, self.tensors
            )
        return has_zeros

    def typed(self) -> Reading:
        """Return the reading with saved numbers as tensors that have a dtype of their own.

        Nodes save the number in ``x / 3.0`` as a tensor that counts as a number: its inverse has the default dtype.
        """
        with torch._C.DisableTorchFunction():
            return dataclasses.replace(self, tensors=map_saved(_typed, self.tensors))

    def empty(self) -> None:
        """Let go of the graph, and of what it saved."""
        self.tensors, self.nodes, self.numbers, self.geometries, self.anchors = [], [], {}, {}, ()

    def ask(self) -> None:
        """Ask the nodes whose inputs' shapes nobody saved."""
        for place in self.joined:
            asked = self.types[place].joined
            assert asked is not None
            self.joined[place] = shapes = asked(self.nodes[place])
            self.signature.append(shapes)

    def all_saved(self) -> list[Tensor]:
        """Return the tensors that the nodes saved."""
        items = [s if type(s) is tuple else (s,) for s in self.tensors]
        return [t for item in items for t in item if isinstance(t, Tensor)]

    def described(self) -> list[tuple[Node, NodeType, list[Any]]]:
        """Return every node with its type and what it saved."""
        each = enumerate(zip(self.nodes, self.types, strict=True))
        return [(node, kind, self.saved(place)) for place, (node, kind) in each]

    def saved(self, place: int) -> list[Any]:
        """Return what a node saved."""
        start = self.starts[place]
        end = self.starts[place + 1] if place + 1 < len(self.starts) else len(self.tensors)
        return self.tensors[start:end]


def read(
    inputs: Sequence[Node],
    outputs: Sequence[tuple[Node | None, int]],
    oldest: int,
    geometries: dict[Node, Geometry],
    restored: Restored | None = None,
) -> Reading:
    """Read the graph between ``inputs`` and ``outputs``.

    Args:
        inputs: The nodes of the inputs; what lies behind them is not looked at.
        outputs: The node of each output, None for one without history, and which of the node's outputs it is.
        oldest: Nodes with a lower sequence number were made before the function ran, and cannot depend on its inputs.
        geometries: Where the views lie that were copied into, by the nodes that this left.
        restored: Stand-ins for nodes that saved what was overwritten since.
    """
    ends = [node for node, _ in outputs if node is not None]
    made, numbers, is_followed = _reachable(inputs, [*ends], oldest)
    try:
        return _read(made, numbers, is_followed, len(inputs), outputs, geometries, restored)
    except KeyError:  # several threads made them, or views were asked for their history later
        made, numbers, is_followed = _reachable(inputs, ends, oldest)
        made = _in_order(made)

        def again() -> Reading:
            return _read(made, numbers, is_followed, len(inputs), outputs, geometries, restored)

        # In one pass a checkpoint gives what it has computed again only once.
        return in_pass_of_its_own(again) if in_backward_pass() else again()


def _read(
    made: Made,
    numbers: dict[Node, int],
    is_followed: bool,
    num_inputs: int,
    outputs: Sequence[tuple[Node | None, int]],
    geometries: dict[Node, Geometry],
    restored: Restored | None,
) -> Reading:
    """Read the nodes ``made``; each comes after those that it depends on, or there is a KeyError."""
    signature: list[Any] = []
    tensors: list[Any] = []
    nodes: list[Node] = []
    types: list[NodeType] = []
    starts: list[int] = []
    joined: dict[int, Any] = {}
    all_edges: list[list[Edge]] = []
    count = num_inputs
    known, number_of = _TYPES.get, numbers.get
    for _, node, edges in made:
        sources: list[Any] = []
        pairs: list[Edge] = []
        is_active = is_cut = False
        for target, nr in edges:
            source = -1 if target is None else numbers[target]
            if source < 0:
                is_cut = True
            else:
                is_active = True
            pair = (source, nr)
            pairs.append(pair)
            sources.append(pair if nr else source)
        if not is_active:
            numbers[node] = -1
            continue
        numbers[node] = count
        count += 1
        described = known(type(node)) or node_type(node)
        signature.append(described)
        signature += sources
        if restored and node in restored:
            node = restored[node]
        nodes.append(node)
        types.append(described)
        all_edges.append(pairs)
        starts.append(len(tensors))
        geometry = geometries.get(node) if geometries else None
        if geometry is None:
            described.read(node, signature, tensors)
        else:
            signature.append(geometry)
        needs = described.needs_shape
        if needs and (is_cut or needs == ALWAYS):
            for metadata in output_metadata(node):
                signature.append(tuple(metadata.shape))
                signature.append(metadata.dtype)
            if is_cut and described.joined is not None:
                joined[len(nodes) - 1] = None
    found = [(-1 if node is None else number_of(node, -1), nr) for node, nr in outputs]
    signature += found
    return Reading(
        num_inputs,
        nodes,
        types,
        signature,
        tensors,
        starts,
        numbers,
        found,
        is_followed,
        geometries,
        all_edges,
        joined,
    )


def ends_of(outputs: Sequence[Any]) -> list[tuple[Node | None, int]]:
    """Return the node of each output, None for one without history, and which of the node's outputs it is."""
    return [(y.grad_fn, y.output_nr) if y.requires_grad else (None, 0) for y in outputs]


def oldest_of(inputs: Sequence[Tensor], starts: Sequence[Node]) -> int:
    """Return the lowest sequence number of what the function makes of ``inputs``, whose nodes are ``starts``."""
    for x in inputs:
        if x.is_cuda:  # whose nodes may come from several threads, which count by themselves
            return 0
    return sequence_number(starts[0]) if starts else 0


def nodes_between(
    inputs: Sequence[Node], outputs: Sequence[tuple[Node | None, int]], oldest: int
) -> Iterable[tuple[Node, NodeType]]:
    """Return the nodes that a reading looks at, in order, and their types."""
    ends = [node for node, _ in outputs if node is not None]
    for _, node, _ in _in_order(_reachable(inputs, ends, oldest)[0]):
        yield node, node_type(node)


def sign_tensors(saved: Iterable[Any], signature: list[Any]) -> bool:
    """Append what a plan depends on but the elements; tell whether there are zeros that have no memory."""
    has_zeros = False
    for tensor in saved:
        if isinstance(tensor, Tensor):
            has_zeros = has_zeros or is_zero_without_memory(tensor)
            try:
                signature += (tensor.shape, tensor.stride(), tensor.dtype)
            except RuntimeError:  # sparse tensors have no strides
                signature += (tensor.shape, tensor.layout, tensor._nnz(), tensor.dtype)
        elif type(tensor) is tuple:
            signature.append(len(tensor))
            has_zeros = sign_tensors(tensor, signature) or has_zeros
        else:
            signature.append(tensor is None)
    return has_zeros


def has_zeros_without_memory(saved: Iterable[Any]) -> bool:
    """Tell whether dual numbers left such zeros among what nodes saved."""
    for item in saved:
        if isinstance(item, Tensor):
            if is_zero_without_memory(item):
                return True
        elif type(item) is tuple and has_zeros_without_memory(item):
            return True
    return False


def _typed(tensor: Tensor) -> Tensor:
    if tensor.dim() or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    if num_dispatch_modes():
        # They get it as a number of Python's: that has no clone, whatever its dtype is.
        narrow = _NARROW[tensor.is_complex()]
        is_number = torch.result_type(tensor, narrow) is narrow.dtype
        return tensor.to(tensor.dtype, copy=True) if is_number else tensor
    return tensor if torch.result_type(tensor, 1.0) is tensor.dtype else tensor.clone()


def metadata_of(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Any]:
    """Return what a plan depends on of a function's inputs and outputs."""
    found: list[Any] = []
    for x in inputs:
        found += (type(x), x.shape, x.dtype, x.device)
    for y in outputs:
        found += (type(y), y.shape, y.stride(), y.dtype)
    return found


def map_saved(function: Callable[[Tensor], Tensor], saved: Iterable[Any]) -> list[Any]:
    """Apply ``function`` to every tensor that nodes saved."""
    return [
        function(t)
        if isinstance(t, Tensor)
        else tuple(map_saved(function, t))
        if type(t) is tuple
        else t
        for t in saved
    ]


def reaches_others(node: Node, inputs: Sequence[Node], oldest: int) -> bool:
    """Tell whether a graph has leaves, or older nodes, beside ``inputs``."""
    return _reachable(inputs, [node], oldest)[2]


def _reachable(
    inputs: Sequence[Node], outputs: list[Node], oldest: int
) -> tuple[Made, dict[Node, int], bool]:
    """Return what was made since, the numbers of the nodes it reaches, and whether it reaches older ones, or leaves.

    An input has its own number; all else that was not made since has -1.
    """
    numbers: dict[Node, int] = {node: i for i, node in enumerate(inputs)}
    is_followed = False
    made: Made = []
    seen = set(inputs)
    stack = outputs
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        edges = node.next_functions
        number = sequence_number(node)
        if not edges or number < oldest:
            numbers[node] = -1
            is_followed = is_followed or bool(edges) or not is_lost_leaf(node)
            continue
        made.append((number, node, edges))
        for target, _ in edges:
            if target is not None:
                stack.append(target)
    made.sort(key=_first)
    return made, numbers, is_followed


def is_lost_leaf(node: Node) -> bool:
    """Tell whether a node is that of a leaf which nobody holds, as runs within this one made of constants."""
    leaf = getattr(node, "variable", None)
    return leaf is not None and not is_held(leaf)


def _in_order(made: list[tuple[int, Node, Any]]) -> list[tuple[int, Node, Any]]:
    """Sort by depth first search, without recursion: graphs may be deep."""
    entries = {entry[1]: entry for entry in made}
    done: set[Node] = set()
    order = []
    for _, root, _ in made:
        stack = [(root, False)]
        while stack:
            node, is_left = stack.pop()
            if is_left:
                order.append(entries[node])
                continue
            if node in done or node not in entries:
                continue
            done.add(node)
            stack.append((node, True))
            stack.extend((target, False) for target, _ in entries[node][2] if target is not None)
    return order
