"""Which functions need no watching: those that, while watched, did nothing that autograd's graph does not tell.

Watching costs a microsecond for each call of PyTorch, and five for each function of ``torch.nn.functional``. So a
function that was watched twice and was quiet is trusted: it runs as it is, as long as it leaves nodes of the kinds that
it left before. Another kind of node, or what goes wrong without a watcher, ends the trust (`Unwatched`), and the
function is run again with one.
"""

from __future__ import annotations

import dataclasses
import itertools
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pushforward.tape.modules import Modes, modes_of, tensors_of
from pushforward.tape.node_types import NodeType
from pushforward.tape.private_functorch import is_wrapped
from pushforward.tape.private_torch import sequence_number
from pushforward.tape.reader import Reading, Signature
from pushforward.tape.scripts import Script

# Calls; twice as many each time that it went wrong without a watcher, from the second time on, and up to so often
WATCHED_FIRST = 2
MAX_DOUBLINGS = 5
MAX_FUNCTIONS = 2048
MAX_GRAPHS = 64  # for each function
MAX_CLOSURES = 4  # within each other
MAX_SCRIPTS = 4  # of each function at a time
# In all, and one more for so many calls that are made the whole way: each takes as long as a few dozen readings.
MAX_MADE = 16
CALLS_FOR_ONE = 64

UNTOLD = -1  # the number of nodes beside a graph, where nodes are made by others, too

_EMPTY = types.CellType()
_OF_PLACES = {"AsStridedBackward0"}  # whose tensor may be an input, and that does not lie as it did


class Unwatched(Exception):
    """A function that was not watched did what has to be seen."""


class AskedError(BaseException):
    """A function asked autograd of a batch that was taken apart. No `Exception`, which the function might handle."""

    def __init__(self, watcher: Any) -> None:
        """Say whose run is to be made again: runs within it end, too."""
        super().__init__()
        self.watcher = watcher


class LayoutError(AskedError):
    """A function reads memory by numbers, and the copy of an input lies otherwise than the input."""


class RefusedError(AskedError):
    """A function does what ``torch.func`` refuses in a level of its own, and allows where a batch was taken apart."""


def is_refusal(error: RuntimeError) -> bool:
    """Tell whether ``torch.func`` refused a write to a tensor from outside a transform, or to look at elements."""
    text = str(error)
    return "would mutate a captured Tensor" in text or text.startswith("vmap: It looks like you")


@dataclasses.dataclass(slots=True)
class Record:
    """What is known of one function."""

    asks: bool = False  # autograd, so that batches have to be left whole
    has_ties: bool = False  # so that they have to be, too
    has_cells: bool = False  # of recurrent networks, so that it is watched under ``torch.func``
    keeps_layout: bool = False  # of its inputs in memory
    needs_batch: bool = False  # in all inputs, as ``torch.func`` refuses what it does in a level
    mixes: bool = (
        False  # members of a batch, as far as ties tell, so that inputs without it need a level
    )
    # The part of results that nodes save, where it is recorded in pieces, by whether tangents go in chunks
    pieces: dict[bool, float] = dataclasses.field(default_factory=dict)
    # Bytes of inputs of which it was too short to be recorded in pieces, by the way that these would be pushed
    uncut: dict[Any, int] = dataclasses.field(default_factory=dict)
    quiet: int = 0  # calls since the last that was not
    failures: int = 0  # times that it did without a watcher what has to be seen
    acts: bool = False  # at times, which it had to be run a second time for
    may_write: bool = False  # to tensors from outside it, in place of memory of its own
    modes: Modes | None = None  # of the modules that it was quiet with
    graphs: set[int] = dataclasses.field(default_factory=set)  # by the hash of their kinds of nodes
    types: set[NodeType] = dataclasses.field(default_factory=set)  # of the nodes of all of those
    # How many nodes were made beside those
    beside: set[int] = dataclasses.field(default_factory=set)
    signatures: dict[Signature, Signature] = dataclasses.field(default_factory=dict)
    scripts: list[Script] = dataclasses.field(default_factory=list)  # the last that fitted first
    calls: int = 0  # that were not made by heart
    num_scripts: int = 0  # that were made
    repeats: dict[Any, Any] = dataclasses.field(default_factory=dict)  # calls known by heart
    num_repeats: int = 0  # that were written
    misses: int = 0  # calls that were not as what was known by heart

    @property
    def is_trusted(self) -> bool:
        """Whether the function may run without a watcher: it was quiet, and its modules train if they did then."""
        if self.quiet < self._watched_first or self.acts:
            return False
        return self.modes is None or self.modes.are_same()

    @property
    def _watched_first(self) -> int:
        return WATCHED_FIRST << min(max(self.failures - 1, 0), MAX_DOUBLINGS)

    def note(self, reason: BaseException) -> None:
        """Note why a run has to be made again; it may have come so far that it wrote something."""
        self.quiet = 0
        self.failures += isinstance(reason, Unwatched)
        if isinstance(reason, LayoutError):
            self.keeps_layout = True
        elif isinstance(reason, RefusedError):
            self.needs_batch = True
        elif isinstance(reason, AskedError):
            self.asks = True

    def knows(self, types: Sequence[NodeType]) -> bool:
        """Tell whether the function left nodes of these types before, while it was watched and quiet."""
        return self.has_left(types) or self.types.issuperset(types)

    def has_left(self, types: Sequence[NodeType]) -> bool:
        """Tell whether the function left such a graph before, node by node."""
        return hash(tuple(types)) in self.graphs

    def learn(
        self,
        func: Callable[..., Any],
        types: Sequence[NodeType],
        is_quiet: bool,
        num_beside: int,
        writes: bool,
    ) -> None:
        """Note what a watched run left, whether it did nothing that has to be seen, and whether it wrote at all."""
        if not is_quiet:
            self.quiet = 0
            return
        self.quiet += 1
        self.may_write = self.may_write or (writes and any(map(_may_be_written, tensors_of(func))))
        if self.quiet >= self._watched_first:
            self.modes = modes_of(func)
        self._add(types)
        self.types.update(kind for kind in types if kind.name not in _OF_PLACES)
        self.beside.add(num_beside)

    def _add(self, types: Sequence[NodeType]) -> None:
        if len(self.graphs) >= MAX_GRAPHS:
            self.graphs.clear()
        self.graphs.add(hash(tuple(types)))

    def written(
        self, func: Callable[..., Any], reading: Reading, num_beside: int, oldest: int
    ) -> Sequence[torch.Tensor]:
        """Return tensors that a run that was not watched gave a history, as far as the function reaches them.

        It is looked for them where the run left another graph than those before, or made nodes that are not on the way
        to its outputs, as it did not before; and where it may write to one of them what it wrote to its own.
        """
        is_usual = num_beside in self.beside or num_beside == UNTOLD
        is_known = (reading.script is not None and reading.script.is_quiet) or self.has_left(
            reading.types
        )
        if is_usual and is_known and not self.may_write:
            return ()
        found = written_by(func, oldest)
        if found:
            self.quiet = 0
            return found
        self._add(reading.types)
        if len(self.beside) < MAX_GRAPHS:
            self.beside.add(num_beside)
        return ()

    def known(self, signature: Signature) -> Signature | None:
        """Return the same signature as it came before, None if it comes for the first time."""
        found = self.signatures.get(signature)
        if found is None:
            if len(self.signatures) >= MAX_GRAPHS:
                self.signatures.clear()
            self.signatures[signature] = signature
        return found

    @property
    def wants_scripts(self) -> bool:
        """Whether another script is worth its while: not where more graphs come in turn than are kept."""
        return self.may_spend(self.num_scripts, MAX_MADE)

    def may_spend(self, spent: int, at_first: int) -> bool:
        """Tell whether what makes calls faster is tried once more, after so many times: at first, and now and then."""
        return spent < at_first + self.calls // CALLS_FOR_ONE

    def keep_script(self, script: Script) -> None:
        """Read such graphs by a script from now on."""
        self.num_scripts += 1
        self.scripts.insert(0, script)
        del self.scripts[MAX_SCRIPTS:]


def written_by(func: Callable[..., Any], oldest: int) -> list[torch.Tensor]:
    """Return tensors that ``func`` reaches, and that were given a history after the node ``oldest``."""
    return [t for t in tensors_of(func) if _is_written(t, oldest)]


def _is_written(tensor: torch.Tensor, oldest: int) -> bool:
    """Tell whether a tensor was written to after the node ``oldest``, and followed."""
    if is_wrapped(tensor) or tensor.is_inference() or not tensor._version:
        return False
    node = tensor.grad_fn
    return node is not None and sequence_number(node) >= oldest


def _may_be_written(tensor: torch.Tensor) -> bool:
    """Tell whether autograd may give a tensor a history."""
    is_floating = tensor.is_floating_point() or tensor.is_complex()
    return is_floating and not (tensor.requires_grad or is_wrapped(tensor))


_records: dict[Any, Record] = {}
# Of objects that are called, by `id`, with what tells of their end
_numbers: dict[int, tuple[int, Any]] = {}
_count = itertools.count()


def _key(func: Callable[..., Any], depth: int = 0) -> Any:
    """Return what functions that are made anew for each call have in common: their code, and what they call by closure.

    Objects that are called, such as modules, count one by one, and whether they train or not.
    """
    if isinstance(func, torch.nn.Module):  # one that trains writes to its buffers
        return type(func), _number(func), func.training
    code = getattr(func, "__code__", None)
    if code is None:
        return type(func), _number(func)
    closure = getattr(func, "__closure__", None)
    if not closure or depth > MAX_CLOSURES:
        return code
    called = [
        _key(cell.cell_contents, depth + 1)
        for cell in closure
        if cell != _EMPTY and callable(cell.cell_contents)
    ]
    return (code, *called) if called else code


def _number(called: Any) -> int:
    """Return the number of an object. Another one gets another, also if it is made where this one was."""
    name = id(called)
    found = _numbers.get(name)
    if found is None:
        number = next(_count)
        try:
            held: Any = weakref.ref(called, lambda _: _numbers.pop(name, None))
        except TypeError:  # it lives until all is forgotten
            held = called
        found = _numbers[name] = (number, held)
    return found[0]


def record_of(func: Callable[..., Any]) -> Record:
    """Return what is known of ``func``."""
    key = _key(func)
    record = _records.get(key)
    if record is None:
        if len(_records) >= MAX_FUNCTIONS:
            clear()
            key = _key(func)
        record = _records[key] = Record()
    return record


def clear() -> None:
    """Forget all."""
    _records.clear()
    _numbers.clear()
