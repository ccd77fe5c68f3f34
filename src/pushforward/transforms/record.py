"""Recording a caller's function: what every transform does between its checks and its derivatives."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pushforward.linear.block_sum import tensors_in
from pushforward.linear.differentiated import has_duals
from pushforward.planning.noting import Rows
from pushforward.tape import dual_run, pieces, trust
from pushforward.tape.batch import Batch
from pushforward.tape.continued import Begun, Continued
from pushforward.tape.copies import detached, has_version, write_back
from pushforward.tape.node_types import seen_with_jvp
from pushforward.tape.overwritten import end_cycles
from pushforward.tape.private_functorch import functorch_level
from pushforward.tape.private_torch import num_dispatch_modes, unseen
from pushforward.tape.reader import Reading, Signature, map_saved
from pushforward.tape.run import Run
from pushforward.tape.scripts import Script
from pushforward.transforms.arguments import Selected, Structure, check_outputs, split_aux
from pushforward.transforms.product import Products
from pushforward.transforms.swept_graph import SweptGraph
from pushforward.trees import TreeSpec, flatten, unflatten


@dataclasses.dataclass(slots=True)
class Recall:
    """What is the same for all tapes of a recording that is known by heart."""

    structure: Structure  # of the arguments
    spec: TreeSpec  # of the output
    signature: Signature
    grad_mode: bool
    products: Products = dataclasses.field(default_factory=dict)


class Tape(SweptGraph):
    """A function recorded at a point: its linear program, and what it returned."""

    __slots__ = (
        "__weakref__", "_cycles", "_is_trusted", "_known", "_structure", "_unwritten", "aux", "finish", "randomness",
        "results", "spec", "tangents",
    )  # fmt: skip

    results: list[Tensor]  # the outputs as the caller gets them
    finish: Callable[[Rows], Rows] | None  # makes Jacobians of what kernels give: of entries
    _structure: Structure  # of the arguments; only of tapes that are `recalled`

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
        may_share: bool = False,
        pushing: pieces.Pushing | None = None,
        begun: Begun | None = None,
    ) -> None:
        """Call ``func`` once. Unless ``is_kept``, use the tape in a ``with`` statement, and not after it.

        With ``pushing`` the function may be recorded in pieces. If it was, the tangents at the start of the last piece
        are in ``tangents``, else None. What was ``begun`` goes on.
        """
        self.name, self._is_kept, leaves = name, is_kept, selected.leaves
        self.randomness, self.finish = randomness, None
        self._known = known = trust.record_of(func)
        # Under dual numbers other operators may be recorded: those whose tangents PyTorch gets right.
        is_trusted, is_again = known.is_trusted and not has_duals(), False
        if known.has_cells and functorch_level() is not None:
            is_trusted = False
        takes_apart = takes_apart and not (known.asks or known.has_ties)
        may_share = may_share and not known.mixes
        if begun is not None:
            run: Run = Continued(name, leaves, randomness, known.scripts, begun)
        elif pushing is not None and pieces.may_cut(known, pushing, leaves, is_trusted):
            run = pieces.PieceRun(name, leaves, randomness, known, pushing)
        else:
            given = (name, leaves, randomness, takes_apart, not is_trusted, known.scripts)
            run = Run(*given, known.keeps_layout, known.needs_batch, may_share)
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
            rest = (None, known.keeps_layout, known.needs_batch, may_share)
            run = Run(name, leaves, randomness, is_apart, True, *rest)
        if seen_with_jvp and dual_run.is_needed(run, self.reading):
            dual = dual_run.DualRun(name, selected.leaves, randomness)
            try:
                self._record(dual, func, selected, kwargs, has_aux)
                run = dual
            except RuntimeError as error:
                if dual_run.is_only_way(self.reading) or not dual_run.is_refusal(error):
                    raise
        self.batch, self.shared = run.batch, run.shared
        self.tangents = run.tangents if isinstance(run, pieces.PieceRun) else None
        if isinstance(run, pieces.PieceRun) and self.tangents is None:
            run.note_whole()
        if self.tangents is None:
            self.inputs = run.inputs
        else:  # columns in chunks are not held, but taken one by one
            self.inputs = tensors_in(t for t in self.tangents if isinstance(t, (Tensor, tuple)))
        self._grad_mode = run.grad_mode
        self._begin()
        self._is_trusted = not (run.is_watched or self._cycles)
        if not num_dispatch_modes():  # under which sizes may not hash
            self._learn(run, func)
        if is_kept:
            self._keep()
        if not run.is_outermost:
            pieces.keep_whole(self)

    def note_mixing(self) -> None:
        """Note that members of a batch meet."""
        self._known.mixes = True

    def _learn(self, run: Run, func: Callable[..., Any]) -> None:
        """Note what may make the next call cheaper."""
        known, reading = self._known, self.reading
        known.calls += 1
        if run.is_watched:
            known.has_ties = known.has_ties or run.has_ties
            known.has_cells = known.has_cells or run.has_cells
            num_beside = run.num_beside(reading)
            known.learn(func, reading.types, run.is_quiet, num_beside, run.writes)
        script: Script | None = reading.script
        is_quiet = not run.is_watched or run.is_quiet
        if script is not None:
            script.is_quiet = script.is_quiet or is_quiet
            return
        signature = Signature(tuple(reading.signature))
        before = known.known(signature)
        reading.signature = signature if before is None else before
        if before is not None and known.wants_scripts:
            script = run.script(reading)
            if script is not None:
                script.is_quiet = is_quiet
                known.keep_script(script)

    @classmethod
    def recalled(
        cls,
        name: str,
        reading: Reading,
        inputs: list[Tensor],
        outputs: list[Tensor],
        results: list[Tensor],
        known: Recall,
        is_kept: bool,
        batch: Batch | None,
    ) -> Tape:
        """Return the tape of a function that left a graph, and did nothing else, as before."""
        self = cls.around(name, reading, inputs, outputs)
        self.batch = batch
        self.results, self.spec, self.aux, self.tangents = results, known.spec, None, None
        self.randomness, self._cycles, self._unwritten = "same", [], []
        self._signature, self._products = known.signature, known.products
        self._grad_mode, self._is_kept, self._structure = known.grad_mode, is_kept, known.structure
        if is_kept:
            self._keep()
        return self

    def arranged(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Return values for the inputs of a `recalled` tape in the structure of the arguments."""
        return tuple(self._structure.trees(values))

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
                if is_again and not run.is_quiet:
                    self._known.acts = True
                run.check_writes()
                leaves = run.followed(leaves)
                self.outputs = run.physical(leaves)
                self.reading = reading = run.reading(self.outputs)
                reading.anchors = self.outputs
                script: Script | None = reading.script
                is_known = run.is_watched or (script is not None and script.is_quiet)
                if not (is_known or self._known.knows(reading.types)):
                    raise trust.Unwatched
                run.note_written(func, self._known, reading)
                self.results: list[Tensor] = run.outputs(leaves, reading)
                if has_aux:
                    aux_leaves, aux_spec = flatten(aux)
                    aux = unflatten([run.handed_over(leaf) for leaf in aux_leaves], aux_spec)
                self.aux = aux
                self._unwritten = run.written()
                self._cycles = [] if run.grad_mode and reading.is_followed else run.cycles()
        except BaseException as error:
            run.leave(error)
            run.forget_unread(func, isinstance(error, trust.Unwatched))
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

        reading.tensors = unseen(functools.partial(map_saved, kept, reading.tensors))
        self._versions = versions
        if self._cycles:
            weakref.finalize(self, end_cycles, self._cycles)
        self.write_back()

    def by_heart(self) -> tuple[trust.Record, Script] | None:
        """Return the script of a call like this one; None where something else has to be done or decided."""
        if not self._is_trusted:
            return None
        reading = self.reading
        script: Script | None = reading.script
        if script is None or reading.geometries or self.aux is not None:
            return None
        if script.is_in_level or any(number < 0 for number, _ in reading.outputs):
            return None
        return self._known, script

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
