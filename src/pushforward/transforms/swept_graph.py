"""A graph that was read, and the sweeps of it: by kernels where they are known."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from pushforward.linear.block import seeds
from pushforward.linear.block_sum import Blocks, to_rows
from pushforward.linear.differentiated import has_duals
from pushforward.linear.program import LinearProgram, Look, check_versions
from pushforward.planning.kernels import Replay, written
from pushforward.planning.memory import shadow_program, shadows_of
from pushforward.planning.noting import Rows
from pushforward.planning.replay import Known, foreseen, ready, replayed, swept
from pushforward.planning.shadowed import pays
from pushforward.planning.sharing import Sharing
from pushforward.tape.aliases import Apart, aliases
from pushforward.tape.batch import Batch
from pushforward.tape.copies import detached, owned
from pushforward.tape.distributed_tensors import sweep_of
from pushforward.tape.interrupts import in_grad_mode
from pushforward.tape.lowering import lower, pull
from pushforward.tape.private_functorch import functorch_level, without_functorch
from pushforward.tape.private_torch import (
    PythonNode,
    in_backward_pass,
    is_autocasting,
    num_dispatch_modes,
    unseen,
)
from pushforward.tape.reader import Reading, Signature, map_saved, metadata_of
from pushforward.tape.recomputation import in_pass_of_its_own
from pushforward.tape.surroundings import surroundings
from pushforward.transforms.assemble import result_bytes
from pushforward.transforms.product import MAX_PRODUCTS, Product, Products


class SweptGraph:
    """A graph that was read: its linear program, and what is computed from it."""

    __slots__ = (
        "_grad_mode", "_is_kept", "_products", "_program", "_shared", "_signature", "_versions", "answer", "batch",
        "inputs", "name", "outputs", "reading", "shared",
    )  # fmt: skip

    name: str  # of the transform, for messages
    batch: Batch | None
    shared: frozenset[int]  # the places of inputs without the batch
    inputs: Sequence[Tensor]  # as autograd recorded them: under vmap with the batch as first axis
    outputs: Sequence[Tensor]  # likewise
    reading: Reading  # the graph that autograd recorded
    # Kernels that made the last sweep, and whether autograd recorded them
    answer: tuple[Known, bool] | None
    _grad_mode: bool  # when it was recorded
    _is_kept: bool  # beyond a call
    _versions: list[tuple[Tensor, int]]  # of what was saved, as it is to be

    def _begin(self) -> None:
        """Start with nothing computed."""
        self._program: LinearProgram | None = None
        self._signature: Signature | None = None
        self._products: Products | None = None  # None: none is known by heart
        self.answer = None
        self._versions = []
        self._shared: dict[int, tuple[Sharing, list[Tensor]]] = {}

    @classmethod
    def around(
        cls, name: str, reading: Reading, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> Self:
        """Return one of a graph that was read already."""
        self = cls.__new__(cls)
        self.name, self._is_kept, self.reading = name, False, reading
        self.inputs, self.outputs, self.batch, self._grad_mode = inputs, outputs, None, False
        self.shared = frozenset()
        self._begin()
        return self

    def shadow(self, is_recording: bool = False) -> Self:
        """Return the same maps without numbers, of which sweeps can be computed, and recorded by autograd."""
        other = self.around(self.name, self.reading, *map(shadows_of, (self.inputs, self.outputs)))
        other.batch, other.shared = self.batch, self.shared
        other._program = shadow_program(self.program, is_recording, is_whole=True)
        return other

    def forget_maps(self) -> None:
        """Let sweeps make the maps anew: they may have been made in another grad mode, and take memory."""
        self._program = None

    @property
    def num_batch(self) -> int:
        """How many axes come first that all tensors share: one under ``vmap``."""
        return 0 if self.batch is None else 1

    def num_batch_of(self, place: int) -> int:
        """Return how many of those axes an input has."""
        return 0 if place in self.shared else self.num_batch

    @property
    def num_bytes(self) -> int:
        """How much memory is kept by what the nodes saved."""
        saved = self.reading.all_saved()
        return sum({id(t): t.nbytes for t in saved if t.layout is torch.strided}.values())

    @property
    def has_hooks(self) -> bool:
        """Whether there are hooks, which may change cotangents."""
        return self.reading.calls_back and not self.reading.is_distributed

    @property
    def program(self) -> LinearProgram:
        """The linear program."""
        program = self._program  # which another thread, with the same kept tape, may forget
        if program is None:
            program = self._program = self.new_program()
        return program

    def new_program(self) -> LinearProgram:
        """Make the linear program."""
        return lower(self.name, self.reading.typed())

    @property
    def signature(self) -> Signature:
        """All that what is computed from the tape depends on but the tensors' elements."""
        if self._signature is None:
            reading = self.reading
            if type(reading.signature) is list:
                reading.signature = Signature(tuple(reading.signature))
            found = metadata_of(self.inputs, self.outputs)
            self._signature = Signature(
                (
                    reading.signature,
                    reading.followed,
                    self.num_batch,
                    self.shared,
                    self._grad_mode,
                    *_casting(),
                    *found,
                )
            )
        return self._signature

    def _values(self, given: Sequence[Tensor]) -> list[Any]:
        """Return all that a sweep starts from: what the nodes saved, the nodes, and what the caller gave."""
        return [*self.reading.tensors, self.reading.nodes, *given]

    def swept(
        self,
        kind: Hashable,
        compute: Callable[[], Rows],
        lifetime: Callable[[int], float] | None = None,
        given: Sequence[Tensor] = (),
        place: int = 0,
        is_one_of_many: bool = False,
        is_last: bool = False,
        lets_go: bool = False,
        may_let_go: Callable[[], bool] | None = None,
        is_jacobian: bool = False,
    ) -> Rows:
        """Return ``compute()``, by the kernels that it ran for another tape with the same signature, if there was one.

        ``kind`` says what is computed, ``given`` are tensors that it takes beside those of the tape, as `physical`
        gives them; ``lifetime`` is that of `planning.replay.swept`, ``place`` that of the batch in the results.
        The maps of ``is_one_of_many`` sweeps are kept for the next one, unless there are kernels. Where there are, the
        list ``given`` is emptied for one that ``lets_go``, and the graph too for one that ``is_last`` and that autograd
        does not record, so that kernels let go of what they contain; where it ``may_let_go``, if that is given.
        ``is_jacobian``: all derivatives are returned, and the result is as large.
        """
        check_versions(self._versions)
        level = functorch_level()
        is_below = level is not None and self._is_below
        is_recording = torch.is_grad_enabled() and (
            self.reading.is_followed
            or any(t.requires_grad for t in given)
            or (self._is_kept and level is not None and not is_below)
        )
        if num_dispatch_modes() or self.reading.calls_back:
            # Modes may want to see it as written, or trace it with sizes that do not hash; hooks are called once.
            compute = sweep_of(self.reading, compute)
            return self._computed(compute, is_recording, is_below, given, place)
        key: Hashable = (kind, is_recording, has_duals(), level, self.signature, _casting())
        if given:
            as_now = unseen(
                lambda: [(t.shape, t.stride(), t.dtype, t.requires_grad) for t in given]
            )
            key = (key, *as_now, *aliases(given))
        values, known = self._values(given), ready(key)
        if known is not None and known.replay is not None:
            self._remember(kind, given, known, is_recording)
        elif not (is_recording or is_one_of_many) and self._is_foreseeable(
            given, is_below, is_jacobian=is_jacobian
        ):
            write = functools.partial(self._foreseen, compute, given, is_below)
            known = foreseen(key, lifetime, write)
        if known is not None and known.replay is not None:
            does_let_go = (lets_go or is_last) and (may_let_go is None or may_let_go())
            if does_let_go and type(given) is list:
                given.clear()
                values = self._emptied(values) if is_last and not is_recording else values
            replay = functools.partial(replayed, known.replay, values)
            if is_one_of_many and type(known.replay) is Sharing:
                replay = functools.partial(self._sharing, known.replay, values)
            return self._computed(replay, is_recording, is_below, given, place)
        anew = compute if is_one_of_many else functools.partial(self.anew, compute)
        num_shared = len(values) - len(given) if is_one_of_many else None
        write = functools.partial(self._written, compute, given, num_shared)
        sweep = functools.partial(swept, key, values, anew, lifetime, write)
        return self._computed(sweep, is_recording, is_below, given, place)

    def _emptied(self, values: list[Any]) -> list[Any]:
        """Let go of the graph and of all tensors but ``values``, which lead to the graph no more."""
        self.reading.empty()
        self.inputs, self.outputs = (), [detached(y) for y in self.outputs]
        return map_saved(detached, values)

    def _remember(
        self, kind: Hashable, given: Sequence[Tensor], known: Known, is_recording: bool
    ) -> None:
        """Note what the kernels ``known`` answered, for calls that are made by heart."""
        self.answer = None if given else (known, is_recording)
        products, around = self._products, surroundings()
        if products is None or around is None or known.replay is None:
            return
        if not given or any(type(t) is not Tensor or t.requires_grad for t in given):
            return
        if len(products) >= MAX_PRODUCTS:
            products.clear()
        described = [(t.shape, t.stride(), t.dtype) for t in given]
        products[kind] = Product(around, described, aliases(given), known.replay, is_recording)

    def product(self, kind: Hashable, given: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the one row of a sweep that is known by heart, None of any other."""
        known = self._products.get(kind) if self._products else None
        if known is None or not known.fits(given):
            return None
        check_versions(self._versions)
        replay = functools.partial(known.replay, self._values(given))
        if known.is_recording is known.surroundings[0]:
            return replay()[0]
        return in_grad_mode(known.is_recording, replay)[0]

    def computed(self, compute: Callable[[], Rows]) -> Rows:
        """Return ``compute()``, which is not to be repeated."""
        is_recording = torch.is_grad_enabled() and self.reading.is_followed
        return self._computed(compute, is_recording, self._is_below)

    def _computed(
        self,
        compute: Callable[[], Rows],
        is_recording: bool,
        is_below: bool,
        given: Sequence[Tensor] = (),
        place: int = 0,
    ) -> Rows:
        """Compute with autograd on or off, and under ``vmap`` on physical tensors."""
        if in_backward_pass():
            compute = functools.partial(in_pass_of_its_own, compute)
        if is_below:
            compute = functools.partial(_computed_below, compute, given)
        rows = in_grad_mode(is_recording, compute)
        if self.batch is None:
            return rows
        wrapped = self.batch.wrapped if is_below else self.batch.put_in
        return [[wrapped(t, place) for t in row] for row in rows]

    def pushed(
        self, tangents: Sequence[Tensor], batch: tuple[int, ...] = (), *, is_last: bool = False
    ) -> list[Tensor]:
        """Push one tangent, or a batch, of every input; a batch is the first axis, here and of the results.

        ``is_last`` is that of `swept`.
        """
        kind = ("pushed", batch)
        known = self.product(kind, tangents)
        if known is not None:
            return known
        if not is_last:
            tangents = self.physical(tangents, len(batch))

        def compute() -> Rows:
            blocks = self.program.push([(seeds(t, batch, 0),) for t in tangents])
            pairs = zip(blocks, self.outputs, strict=True)
            return [[to_rows(b, tuple(y.shape), batch, like=y) for b, y in pairs]]

        (row,) = self.swept(kind, compute, given=tangents, place=len(batch), is_last=is_last)
        return row

    def pulled(self, cotangents: Sequence[Blocks], look: Look | None = None) -> list[Blocks]:
        """Pull cotangent blocks of the outputs to the inputs; ``look`` is that of `program.pulled`."""
        if self._program is None and not self.reading.hooks:
            return pull(self.name, self.reading.typed(), cotangents, look)
        return self.program.pull(cotangents, look)

    @property
    def _is_below(self) -> bool:
        """Whether sweeps run below the ``vmap``: kept tapes may be used where other transforms have to see it."""
        batch = self.batch
        return batch is not None and (not self._is_kept or batch.is_alone(self.name))

    def physical(self, tensors: Sequence[Tensor], place: int = 0) -> list[Tensor]:
        """Return tensors of the caller's as the tape has its own, but with the batch as axis ``place``."""
        if self.batch is None:
            return list(tensors)
        physical = self.batch.physical if self._is_below else self.batch.taken_out
        return [physical(t, place) for t in tensors]

    def _sharing(self, replay: Sharing, values: list[Any]) -> Rows:
        """Run kernels, of which the first part was run already in an earlier sweep, if there was one."""
        found = self._shared.get(id(replay))
        if found is None:
            (row,) = replayed(replay.first, list(values))
            found = self._shared[id(replay)] = replay, row
        return replayed(replay.rest, [*values, *found[1]])

    def _written(
        self,
        compute: Callable[[], Rows],
        given: Sequence[Tensor],
        num_shared: int | None,
        *,
        is_foreseen: bool = False,
    ) -> Replay | None:
        """Write down the kernels of ``compute()``; those that are ``is_foreseen`` without computing what is large."""
        reading, tensors = self.reading, self.reading.tensors
        reading.tensors = map_saved(Apart(reading.aliases, given), tensors)
        device = self.outputs[0].device if is_foreseen else None
        try:
            compute = functools.partial(self.anew, compute)
            return written(self._values(given), compute, num_shared, device)
        finally:
            reading.tensors, self._program = tensors, None

    def _is_foreseeable(
        self, given: Sequence[Tensor], is_below: bool, *, is_jacobian: bool
    ) -> bool:
        """Tell whether kernels are to be found at the first call, and can be: all is PyTorch's, and on one device."""
        size = sum(t.nbytes for t in given)
        if is_jacobian:
            size += result_bytes(self.outputs, self.inputs)
        if not pays(size) or has_duals():
            return False
        if any(isinstance(node, PythonNode) for node in self.reading.nodes):
            return False  # whose backward somebody wrote
        devices = {t.device for t in (*self.inputs, *self.outputs, *given)}
        return len(devices) == 1 and (is_below or functorch_level() is None)

    def _foreseen(
        self, compute: Callable[[], Rows], given: Sequence[Tensor], is_below: bool
    ) -> Replay | None:
        """Write down the kernels of ``compute()`` before anything large is computed."""
        found: list[Replay | None] = []

        def write() -> Rows:
            found.append(self._written(compute, given, None, is_foreseen=True))
            return []

        self._computed(write, is_recording=False, is_below=is_below, given=given)
        return found[0]

    def anew(self, compute: Callable[[], Rows]) -> Rows:
        """Return ``compute()``, which makes the maps itself."""
        self._program = None
        return compute()


def _casting() -> tuple[torch.dtype, bool]:
    """Return what the dtypes of sweeps depend on beside a tape."""
    return torch.get_default_dtype(), is_autocasting()


def _computed_below(compute: Callable[[], Rows], given: Sequence[Tensor]) -> Rows:
    """Compute out of sight of ``torch.func``."""
    with without_functorch():
        rows = compute()
        return [[owned(t, given) for t in row] for row in rows] if given else rows
