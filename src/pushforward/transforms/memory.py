"""What a call needs of memory, and the chunks that keep it within a limit."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor

from pushforward.errors import MemoryLimitError, message
from pushforward.planning.explain import size_text
from pushforward.planning.memory import (
    Need,
    available_bytes,
    held_bytes,
    maps_in,
    num_copies,
    peak_of_making,
    storage_bytes,
)
from pushforward.planning.plans import PLANS
from pushforward.tape.modules import parameters_of, tensors_of
from pushforward.tape.private_functorch import functorch_level
from pushforward.tape.private_torch import num_dispatch_modes
from pushforward.tape.randomness import state_bytes
from pushforward.transforms.assemble import directions, result_bytes
from pushforward.transforms.by_entries import by_entries, num_known
from pushforward.transforms.chunks import Chunks, in_chunks, num_seeds, pull_from, push_from, units
from pushforward.transforms.record import Tape
from pushforward.trees import flatten

NEEDS = "needs"  # what they are stored as
SHARE = 2  # of the memory that is available a call takes at most one in so many parts, if no limit is given

# Sweeps at once.
Whole = Callable[[Tape], Any]


def sized_rows(
    name: str,
    chunks: Chunks,
    tape: Tape,
    outside: Iterable[Tensor],
    kind: Hashable,
    whole: Whole,
    *,
    is_forward: bool,
    may_be_few: bool = False,
) -> list[list[Tensor]]:
    """Return the Jacobians of a tape, as many columns or rows at a time as the caller's limit allows.

    Where entries ``may_be_few``, these are computed in place of one sweep. The other arguments are those of `need_of`.
    """
    size = chunks.size
    if not chunks.is_fixed:
        need = None  # where sizes may not be numbers
        if not num_dispatch_modes():
            few = num_known(tape) if may_be_few else None
            need = need_of(tape, outside, kind, whole, is_forward=is_forward, few=few)
            tape.forget_maps()
        size = None if need is None else _size(name, need, chunks.limit, tape.inputs[0].device)
    with chunks.reporting(name, num_seeds(tape, is_forward=is_forward)) as done:
        if isinstance(size, int):
            return in_chunks(tape, size, done, is_forward=is_forward)
        rows = by_entries(tape) if may_be_few and not chunks.is_fixed else None
        if rows is None:
            rows = tape.swept(kind, functools.partial(whole, tape), is_jacobian=True)
        done(num_seeds(tape, is_forward=is_forward))
        return rows


def _size(name: str, need: Need, limit: int | None, device: torch.device) -> int | None:
    """Return how many columns or rows to carry at once; None for all, in one sweep."""
    size = chosen_size(need, limit, device)
    if size == 0:
        if limit is not None:
            refuse(name, need, limit)
        return None if need.is_kept else 1
    return size


def chosen_size(need: Need, limit: int | None, device: torch.device) -> int | None:
    """Return the largest chunk within the limit, or within what is available: None for all, 0 if there is none."""
    return need.largest_chunk(available_bytes(device) // SHARE if limit is None else limit)


def refuse(name: str, need: Need, limit: int) -> NoReturn:
    """Refuse a limit that cannot be kept."""
    raise MemoryLimitError(_refusal(name, need, limit))


def _refusal(name: str, need: Need, limit: int) -> str:
    least = min(need.peak(None), need.peak(1))
    parts = f"{size_text(need.result)} the Jacobian, {size_text(need.tape)} the tape"
    way_out = "Raise it, or ask for a product (jvp, vjp) or fewer arguments at a time."
    if need.is_kept:
        way_out = (
            "Raise it, or call under torch.no_grad(): autograd keeps every step of what it records."
        )
    return message(
        name,
        "memory_limit",
        f"{limit} ({size_text(limit)})",
        f"at least {least} ({size_text(least)}: {parts})",
        way_out,
    )


def need_of(
    tape: Tape,
    outside: Iterable[Tensor],
    kind: Hashable,
    whole: Whole,
    *,
    is_forward: bool,
    few: int | None = None,
) -> Need:
    """Return what the rest of a call needs, estimated once for each signature.

    Args:
        tape: What was recorded.
        outside: Tensors that there were before the call.
        kind: What tells sweeps of one signature from others.
        whole: Computes the result in one sweep.
        is_forward: Whether chunks are pushed.
        few: How many entries are computed in place of one sweep, if they are.
    """
    is_kept = _is_kept(tape)
    key = (kind, is_forward, is_kept, few, tape.signature)
    found: Need | None = PLANS.find(NEEDS, key)
    if found is None:
        found = _estimated(tape, [*outside], whole, is_forward, is_kept)
        if few is not None:  # with a temporary for each
            size = max(t.element_size() for t in (*tape.inputs, *tape.outputs))
            results = found.result * (1 + is_kept)  # autograd knows them apart from the zeros
            found = dataclasses.replace(found, whole=results + 2 * few * size)
        PLANS.keep(NEEDS, key, found)
    return found


def _is_kept(tape: Tape) -> bool:
    """Tell whether autograd records the sweeps: in a level of torch.func what was saved tells, followed or not."""
    if not (torch.is_grad_enabled() and tape.reading.is_followed):
        return False
    return functorch_level() is None or any(t.requires_grad for t in tape.reading.all_saved())


def _estimated(
    tape: Tape, outside: list[Tensor], whole: Whole, is_forward: bool, is_kept: bool
) -> Need:
    saved = tape.reading.all_saved()
    made = storage_bytes([*saved, *tape.outputs], but=outside)
    maps = storage_bytes(maps_in(tape.program), but=[*outside, *saved])
    making = peak_of_making(tape.new_program) if functorch_level() is None else maps
    shadow = tape.shadow(is_kept)
    ends = shadow.inputs if is_forward else shadow.outputs
    sweep = push_from if is_forward else pull_from
    copies = num_copies()
    counts = [math.prod(directions(end)) for end in ends]
    widest = max(range(len(ends)), key=counts.__getitem__)

    def held(compute: Callable[[], Any]) -> tuple[int, int]:
        peak, left = held_bytes(compute, is_kept)
        return max(making, maps + copies * peak), copies * left

    def chunk(size: int) -> tuple[int, int]:
        size = min(size, counts[widest])
        return held(lambda: sweep(shadow, widest, units(ends[widest], 0, size)))

    one, most = chunk(1), chunk(counts[widest])
    # Kept until it is compared with another
    state = state_bytes(tape.inputs) if tape.randomness == "error" else 0
    return Need(
        tape=made + state,
        run=state,
        whole=held(lambda: whole(shadow))[0],
        result=copies * result_bytes(tape.outputs, tape.inputs),
        num_seeds=counts[widest],
        one=one[0],
        most=most[0],
        kept=(one[1], most[1]) if is_kept else None,
    )


def there_before(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterable[Tensor]:
    """Return the tensors that a function finds when it is called, as far as they can be found."""
    leaves, _ = flatten((args, kwargs))
    yield from (leaf for leaf in leaves if isinstance(leaf, Tensor))
    yield from tensors_of(func)
    yield from parameters_of(func)
