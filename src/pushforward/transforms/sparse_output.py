"""Jacobians as sparse matrices: the terms of a tape laid out, and the plans that keep the layouts."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from pushforward.errors import ArgumentValueError, UnsupportedError, message
from pushforward.planning.plans import PLANS
from pushforward.sparse.blocks import blocked
from pushforward.sparse.layout import Layout, layout
from pushforward.sparse.sweep import TooManyEntriesError, pushed
from pushforward.sparse.symbolic import Answers, ChangedError, Symbolic
from pushforward.sparse.term import identity
from pushforward.tape.private_functorch import functorch_level
from pushforward.tape.private_torch import copied_when_written
from pushforward.transforms.assemble import directions, jacobian_dtype
from pushforward.transforms.chunks import Chunks
from pushforward.transforms.compressed import compressed, given_pattern
from pushforward.transforms.record import Tape
from pushforward.transforms.unbuilt import built, depend, is_put_off

Output = Literal["dense", "coo", "csr", "csc", "bsr", "auto"]
OUTPUTS = ("dense", "coo", "csr", "csc", "bsr", "auto")
AUTO_DENSITY = 0.1  # above which 'auto' gives a dense tensor

PLAN = "sparse"
_numbers = itertools.count()


@dataclasses.dataclass(slots=True)
class SparsePlan:
    """What is worked out once for a signature and the elements of its index tensors."""

    number: int = dataclasses.field(default_factory=_numbers.__next__)
    answers: Answers = dataclasses.field(default_factory=Answers)
    layouts: list[list[Layout]] = dataclasses.field(default_factory=list)  # by output and input


def check_output(name: str, output: Any, mode: str, chunks: Chunks, pattern: Any = None) -> None:
    """Refuse an unknown form of the result, and options that sparse results have no use for."""
    if output not in OUTPUTS:
        raise ArgumentValueError(
            message(name, "output", repr(output), f"one of {OUTPUTS}", "Leave it out for dense.")
        )
    if output == "dense" and pattern is None:
        return
    if mode not in ("auto", "forward"):
        raise ArgumentValueError(
            message(
                name,
                "mode",
                f"{mode!r} with output={output!r}",
                "'auto'",
                "Sparse Jacobians are pushed forward, whatever their shape: leave mode out.",
            )
        )
    if not chunks.is_whole:
        raise ArgumentValueError(
            message(
                name,
                "chunk_size, memory_limit and progress",
                f"{chunks} with output={output!r}",
                "none of them",
                "Sparse Jacobians carry no columns: leave them out.",
            )
        )
    if functorch_level() is not None:
        raise UnsupportedError(
            message(
                name,
                "output",
                f"{output!r} under a transform of torch.func",
                "'dense' there, as torch.func knows no sparse tensors",
                "Put the batch into the function, whose Jacobian is then sparse by blocks, or differentiate the values "
                "of a sparse result by pushforward or autograd.",
            )
        )


def sparse_rows(name: str, tape: Tape, output: Output, pattern: Any = None) -> list[list[Tensor]]:
    """Return the Jacobians of every output with respect to every input, in the form ``output``."""
    by_columns = output == "csc"
    given = given_pattern(name, pattern)
    if given is not None:
        found, known = compressed(name, tape, given, by_columns)
        return [[_matrix(found, known, output, tape.outputs[0], tape.inputs[0])]]
    values, plan = _values(tape, by_columns)
    return [
        [
            _matrix(found, known, output, y, x)
            for found, known, x in zip(row, layouts, tape.inputs, strict=True)
        ]
        for row, layouts, y in zip(values, plan.layouts, tape.outputs, strict=True)
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class Few:
    """How many entries there may be, those of terms that overlap counted each, where few are hoped for."""

    on_the_way: int
    in_the_end: int


def entries_of(tape: Tape, few: Few | None = None) -> tuple[list[list[Tensor]], SparsePlan]:
    """Return the values of the entries, by output and input, and the plan with their layouts.

    Raises:
        TooManyEntriesError: There are more than ``few``, or as many terms as few entries never have.
        DependentError: ``few`` is given, and a graph that is compiled would depend on the elements of index tensors.
    """
    return _values(tape, False, few)


def layouts_of(tape: Tape) -> list[list[Layout]]:
    """Return where entries may be nonzero, by output and input."""
    return _values(tape, False)[1].layouts


def _values(
    tape: Tape, by_columns: bool, few: Few | None = None
) -> tuple[list[list[Tensor]], SparsePlan]:
    if tape.reading.is_distributed:
        raise UnsupportedError(
            message(
                tape.name,
                "sparse entries",
                "a function with distributed tensors in it",
                "plain ones, or a pattern to read the entries by",
                "To share a sparse Jacobian out, use pushforward.distributed.jacobian.",
            )
        )
    key = (by_columns, tape.signature)
    plan: SparsePlan | None = PLANS.find(PLAN, key)
    if plan is not None:
        try:
            *rows, met = tape.swept(
                (PLAN, plan.number), functools.partial(_sweep, tape, by_columns, plan, few)
            )
            plan.answers.check(met)
        except ChangedError:
            PLANS.drop(PLAN, key)
        else:
            depend(met, plan.answers.indices)
            return rows, plan
    plan = SparsePlan()
    *rows, met = tape.computed(functools.partial(_sweep, tape, by_columns, plan, few))
    PLANS.keep(PLAN, key, plan)
    depend(met, plan.answers.indices)
    return rows, plan


def _sweep(
    tape: Tape, by_columns: bool, plan: SparsePlan, few: Few | None = None
) -> list[list[Tensor]]:
    """Return the values of each matrix, and at the end the index tensors on which the plan depends."""
    symbolic = Symbolic(plan.answers, may_depend=few is None or not is_put_off())
    starts = [identity(tuple(x.shape), x, i) for i, x in enumerate(tape.inputs)]
    outputs = pushed(tape.program, starts, symbolic, few.on_the_way if few else None)
    if few is not None and sum(t.size for terms in outputs for t in terms) > few.in_the_end:
        raise TooManyEntriesError  # before places are worked out, which take ten times the memory
    is_new = not plan.layouts
    layouts: list[list[Layout]] = []
    rows = []
    for y, terms in zip(tape.outputs, outputs, strict=True):
        row, known = [], []
        for number, x in enumerate(tape.inputs):
            mine = [t for t in terms if t.source == number]
            num_columns = math.prod(directions(x))
            found = layout(mine, y.numel(), num_columns, by_columns, symbolic, y)
            known.append(found)
            values = found.placement.written([t.values for t in mine], y)
            row.append(values.to(jacobian_dtype(y, x)))
        rows.append(row)
        layouts.append(known)
    symbolic.end()
    if is_new:
        plan.layouts = layouts
    return [*rows, symbolic.met]


def _matrix(values: Tensor, known: Layout, output: Output, y: Tensor, x: Tensor) -> Tensor:
    size = (y.numel(), math.prod(directions(x)))
    if output == "auto":
        output = "csr" if values.numel() <= AUTO_DENSITY * math.prod(size) else "dense"
    if output == "dense":
        return dense_of(values, known, (*y.shape, *directions(x)))
    block = (_last(y), _last(x) * (2 if x.is_complex() else 1))
    if output == "bsr":
        values = known.form(block, lambda: blocked(known, *block)).filled(values)
    matrix: Tensor = built(values, functools.partial(_put_together, known, output, size, block))
    return matrix


def _put_together(
    known: Layout, output: Output, size: tuple[int, int], block: tuple[int, int], values: Tensor
) -> Tensor:
    """Return the matrix. Its indices are copies: what the caller does to a result must not reach the plan."""
    if output == "coo":
        return torch.sparse_coo_tensor(
            copied_when_written(known.indices),
            values,
            size,
            check_invariants=False,
            is_coalesced=True,
        )
    warned_of_beta()
    if output == "bsr":
        form = known.form(block, lambda: blocked(known, *block))
        indices = copied_when_written(form.starts), copied_when_written(form.columns)
        return torch.sparse_bsr_tensor(*indices, values, size, check_invariants=False)
    make = torch.sparse_csr_tensor if output == "csr" else torch.sparse_csc_tensor
    indices = copied_when_written(known.starts), copied_when_written(known.columns)
    return make(*indices, values, size, check_invariants=False)


def dense_of(values: Tensor, known: Layout, shape: tuple[int, ...]) -> Tensor:
    """Write entries, in compressed rows, into a dense Jacobian."""
    dense = torch.zeros(math.prod(shape), dtype=values.dtype, device=values.device)
    places = known.flat
    if torch.is_grad_enabled() and values.requires_grad:
        return dense.index_copy(0, places, values).reshape(shape)
    return dense.index_copy_(0, places, values).reshape(shape)


def _last(tensor: Tensor) -> int:
    return tensor.shape[-1] if tensor.dim() else 1


@functools.cache
def warned_of_beta() -> None:
    """Take PyTorch's one warning that compressed sparse tensors are in beta state upon us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        none = torch.zeros(1, dtype=torch.int64)
        torch.sparse_csr_tensor(none, none[:0], torch.zeros(0), (0, 0), check_invariants=False)
