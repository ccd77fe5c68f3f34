"""Recording a caller's function: what every transform does between its checks and its derivatives."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.block import seeds
from pushforward.linear.block_sum import Blocks, tensors_in, to_rows
from pushforward.linear.program import LinearProgram, check_versions
from pushforward.planning.kernels import Replay, written
from pushforward.planning.memory import shadow_program, shadows_of
from pushforward.planning.noting import Rows
from pushforward.planning.replay import Known, ready, replayed, swept
from pushforward.tape import dual_run, pieces, trust
from pushforward.tape.continued import Begun, Continued
from pushforward.tape.copies import detached, has_version, owned, write_back
from pushforward.tape.distributed_tensors import sweep_of
from pushforward.tape.interrupts import in_grad_mode
from pushforward.tape.lowering import lower, pull
from pushforward.tape.node_types import seen_with_jvp
from pushforward.tape.overwritten import end_cycles
from pushforward.tape.private_functorch import functorch_level, without_functorch
from pushforward.tape.private_torch import in_backward_pass, is_autocasting, num_dispatch_modes
from pushforward.tape.reader import Reading, Signature, map_saved, metadata_of
from pushforward.tape.recomputation import in_pass_of_its_own
from pushforward.tape.run import Run
from pushforward.tape.scripts import Script
from pushforward.transforms.arguments import Selected, check_outputs, split_aux
from pushforward.trees import TreeSpec, flatten, unflatten


class Tape:
    """A function recorded at a point: its linear program, and what it returned."""

    __slots__ = (
        "__weakref__", "_cycles", "_grad_mode", "_is_kept", "_is_trusted", "_known", "_program",
        "_signature", "_unwritten", "_versions", "answer", "aux", "batch", "inputs", "name", "outputs", "randomness",
        "reading", "results", "spec", "tangents",
    )  # fmt: skip

    inputs: Sequence[Tensor]  # as autograd recorded them: under vmap with the batch as first axis
    outputs: Sequence[Tensor]  # likewise
    results: list[Tensor]  # the outputs as the caller gets them
    reading: Reading  # the graph that autograd recorded

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
        takes_apart: bool = False,
        pushing: pieces.Pushing | None = None,
        begun: Begun | None = None,
    ) -> None:
        """Call ``func`` once. Unless ``is_kept``, use the tape in a ``with`` statement, and not after it.

        With ``pushing`` the function may be recorded in pieces. If it was, the tangents at the start of the last piece
        are in ``tangents``, else None. What was ``begun`` goes on.
        """
        self.name, self._is_kept, leaves = name, is_kept, selected.leaves
        self.randomness = randomness
        self._known = known = trust.record_of(func)
        is_trusted, is_again = known.is_trusted, False
        takes_apart = takes_apart and not (known.asks or known.has_ties)
        may_cut = not (known.asks or known.keeps_layout or is_trusted)
        if begun is not None:
            run: Run = Continued(name, leaves, randomness, known.scripts, begun)
        elif pushing is not None and may_cut and pieces.fits(leaves):
            run = pieces.PieceRun(name, leaves, randomness, known.scripts, pushing)
        else:
            given = (name, leaves, randomness, takes_apart, not is_trusted, known.scripts)
            run = Run(*given, known.keeps_layout, known.needs_batch)
        while True:
            try:
                self._record(run, func, selected, kwargs, has_aux, is_again)
                break
            except (trust.Unwatched, trust.AskedError) as reason:
                if not run.is_meant_by(reason):
                    raise
                known.note(reason)
                is_again = True
            is_apart = takes_apart and not known.asks
            rest = (None, known.keeps_layout, known.needs_batch)
            run = Run(name, leaves, randomness, is_apart, True, *rest)
        if seen_with_jvp and dual_run.is_needed(run, self.reading):
            dual = dual_run.DualRun(name, selected.leaves, randomness)
            try:
                self._record(dual, func, selected, kwargs, has_aux)
                run = dual
            except RuntimeError as error:
                if dual_run.is_only_way(self.reading) or not dual_run.is_refusal(error):
                    raise
        self.batch = run.batch
        self.tangents = run.tangents if isinstance(run, pieces.PieceRun) else None
        self.inputs = run.inputs if self.tangents is None else tensors_in(self.tangents)
        self._grad_mode = run.grad_mode
        self._program: LinearProgram | None = None
        self._signature: Signature | None = None
        self._versions: list[tuple[Tensor, int]] = []
        self.answer: tuple[Known, bool] | None = None  # kernels, and whether autograd records them
        self._is_trusted = not (run.is_watched or self._cycles)
        if not num_dispatch_modes():  # under which sizes may not hash
            self._learn(run, func)
        if is_kept:
            self._keep()
        if not run.is_outermost:
            pieces.keep_whole(self)

    def _learn(self, run: Run, func: Callable[..., Any]) -> None:
        """Note what may make the next call cheaper."""
        known, reading = self._known, self.reading
        if run.is_watched:
            known.has_ties = known.has_ties or run.has_ties
            known.learn(func, reading.types, run.is_quiet, run.num_beside(reading))
        else:
            run.forget(func, known, reading)
        if reading.known_edges is not None:  # by a script
            return
        signature = Signature(tuple(reading.signature))
        before = known.known(signature)
        reading.signature = signature if before is None else before
        if before is not None and known.wants_scripts:
            script = run.script(reading)
            if script is not None:
                known.keep_script(script)

    def shadow(self) -> Tape:
        """Return a tape of the same maps without numbers, of which sweeps can be computed."""
        other = Tape.around(self.name, self.reading, *map(shadows_of, (self.inputs, self.outputs)))
        other.batch, other._program = self.batch, shadow_program(self.program)
        return other

    def forget_maps(self) -> None:
        """Let sweeps make the maps anew: they may have been made in another grad mode, and take memory."""
        self._program = None

    @classmethod
    def around(
        cls, name: str, reading: Reading, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> Tape:
        """Return the tape of a graph that was read already."""
        self = cls.__new__(cls)
        self.name, self._is_kept, self.reading = name, False, reading
        self.inputs, self.outputs, self.batch, self._grad_mode = inputs, outputs, None, False
        self._program, self._signature, self._versions, self._unwritten = None, None, [], []
        return self

    @classmethod
    def recalled(
        cls,
        name: str,
        reading: Reading,
        inputs: list[Tensor],
        outputs: list[Tensor],
        results: list[Tensor],
        spec: TreeSpec,
        signature: Signature,
        grad_mode: bool,
        is_kept: bool,
    ) -> Tape:
        """Return the tape of a function that left a graph, and did nothing else, as before."""
        self = cls.around(name, reading, inputs, outputs)
        self.results, self.spec, self.aux, self.tangents, self._cycles = (
            results,
            spec,
            None,
            None,
            [],
        )
        self._signature, self._grad_mode, self._is_kept = signature, grad_mode, is_kept
        if is_kept:
            self._keep()
        return self

    def _record(
        self,
        run: Run,
        func: Callable[..., Any],
        selected: Selected,
        kwargs: dict[str, Any],
        has_aux: bool,
        is_again: bool = False,
    ) -> None:
        try:
            with run:
                if is_again:
                    run.begin_again(func)
                result = run.call(func, selected.replaced(run.tracked), kwargs)
                output, aux = split_aux(self.name, result, has_aux)
                leaves, self.spec = flatten(output)
                check_outputs(self.name, output, leaves)
                run.check_randomness()
                run.check_writes()
                leaves = run.followed(leaves)
                self.outputs = run.physical(leaves)
                self.reading = reading = run.reading(self.outputs)
                reading.anchors = self.outputs
                is_known = run.is_watched or reading.known_edges is not None
                if not (is_known or self._known.knows(reading.types)):
                    raise trust.Unwatched
                self.results: list[Tensor] = run.outputs(leaves, reading)
                if has_aux:
                    aux_leaves, aux_spec = flatten(aux)
                    aux = unflatten([run.handed_over(leaf) for leaf in aux_leaves], aux_spec)
                self.aux = aux
                self._unwritten = run.written()
                self._cycles = [] if run.grad_mode and reading.is_followed else run.cycles()
        except BaseException as error:
            run.leave(error)
            raise

    def _keep(self) -> None:
        """Let the tape outlive the call."""
        reading, is_followed = self.reading, self.reading.is_followed
        versions: list[tuple[Tensor, int]] = []

        def kept(t: Tensor) -> Tensor:
            t = detached(t) if t.requires_grad and not is_followed else t
            if has_version(t):
                versions.append((t, t._version))
            return t

        reading.tensors, self._versions = map_saved(kept, reading.tensors), versions
        if self._cycles:
            weakref.finalize(self, end_cycles, self._cycles)
        self.write_back()

    @property
    def num_batch(self) -> int:
        """How many axes come first that all tensors share: one under ``vmap``."""
        return 0 if self.batch is None else 1

    @property
    def num_bytes(self) -> int:
        """How much memory is kept by what the nodes saved."""
        saved = self.reading.all_saved()
        return sum({id(t): t.nbytes for t in saved if t.layout is torch.strided}.values())

    @property
    def program(self) -> LinearProgram:
        """The linear program."""
        if self._program is None:
            self._program = self.new_program()
        return self._program

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
                (reading.signature, self.num_batch, self._grad_mode, *_casting(), *found)
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
    ) -> Rows:
        """Return ``compute()``, by the kernels that it ran for another tape with the same signature, if there was one.

        ``kind`` says what is computed, ``given`` are tensors that it takes beside those of the tape, as `physical`
        gives them; ``lifetime`` is that of `planning.replay.swept`, ``place`` that of the batch in the results.
        The maps of ``is_one_of_many`` sweeps are kept for the next one, unless there are kernels.
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
        key: Hashable = (kind, is_recording, level, self.signature, _casting())
        if given:
            key = (key, *[(t.shape, t.stride(), t.dtype, t.requires_grad) for t in given])
        values, known = self._values(given), ready(key)
        if known is not None and known.replay is not None:
            self.answer = None if given else (known, is_recording)
            replay = functools.partial(replayed, known.replay, values)
            return self._computed(replay, is_recording, is_below, given, place)
        anew = compute if is_one_of_many else functools.partial(self.anew, compute)
        write = functools.partial(self._written, compute, given)
        sweep = functools.partial(swept, key, values, anew, lifetime, write)
        return self._computed(sweep, is_recording, is_below, given, place)

    def by_heart(self) -> tuple[trust.Record, Script] | None:
        """Return the script of a call like this one; None where something else has to be done or decided."""
        if not self._is_trusted or self.batch is not None:
            return None
        reading, scripts = self.reading, self._known.scripts
        if reading.known_edges is None or reading.geometries or not scripts or self.aux is not None:
            return None
        if any(number < 0 for number, _ in reading.outputs):
            return None
        return self._known, scripts[0]

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

    def pushed(self, tangents: Sequence[Tensor], batch: tuple[int, ...] = ()) -> list[Tensor]:
        """Push one tangent, or a batch, of every input; a batch is the first axis, here and of the results."""
        tangents = self.physical(tangents, len(batch))

        def compute() -> Rows:
            blocks = self.program.push([(seeds(t, batch, 0),) for t in tangents])
            pairs = zip(blocks, self.outputs, strict=True)
            return [[to_rows(b, tuple(y.shape), batch, like=y) for b, y in pairs]]

        (row,) = self.swept(("pushed", batch), compute, given=tangents, place=len(batch))
        return row

    def pulled(self, cotangents: Sequence[Blocks]) -> list[Blocks]:
        """Pull cotangent blocks of the outputs to the inputs."""
        if self._program is None and not self.reading.hooks:
            return pull(self.name, self.reading.typed(), cotangents)
        return self.program.pull(cotangents)

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

    def _written(self, compute: Callable[[], Rows], given: Sequence[Tensor]) -> Replay | None:
        """Write down the kernels of ``compute()``."""
        reading, tensors = self.reading, self.reading.tensors
        # The number in 4 * x is saved as a tensor that modes see as a number.
        reading.tensors = map_saved(lambda t: t if t.dim() else t.clone(), tensors)
        try:
            return written(self._values(given), functools.partial(self.anew, compute))
        finally:
            reading.tensors, self._program = tensors, None

    def anew(self, compute: Callable[[], Rows]) -> Rows:
        """Return ``compute()``, which makes the maps itself."""
        self._program = None
        return compute()

    def __enter__(self) -> Tape:
        """Use the program."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Carry out the writes to the caller's tensors, which had to wait as maps hold their old values."""
        self.write_back()
        if self._cycles:
            end_cycles(self._cycles)

    def write_back(self) -> None:
        """Carry out the writes to the caller's tensors."""
        unwritten, self._unwritten = self._unwritten, []
        write_back(unwritten)


def _casting() -> tuple[torch.dtype, bool]:
    """Return what the dtypes of sweeps depend on beside a tape."""
    return torch.get_default_dtype(), is_autocasting()


def _computed_below(compute: Callable[[], Rows], given: Sequence[Tensor]) -> Rows:
    """Compute out of sight of ``torch.func``."""
    with without_functorch():
        rows = compute()
        return [[owned(t, given) for t in row] for row in rows] if given else rows
