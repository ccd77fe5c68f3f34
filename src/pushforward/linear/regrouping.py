"""What a reshape does to the structure of a block: decided once for equal shapes and ties."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

from pushforward.linear.axes import Part, Shape, Tie, Tied, axis_of, reshape_groups


@dataclasses.dataclass(frozen=True, slots=True)
class Regrouping:
    """How a block is reshaped at its near end: ties are relabelled where groups of axes correspond."""

    untied: tuple[int, ...]  # seed axes whose deltas have to be written out first
    expanded: Shape  # near sizes of the values before they are reshaped, and after
    reshaped: Shape
    seed_shape: Shape
    tied: Tied


def regrouping(
    shape: Shape, target: Shape, seed_shape: Shape, tied: Tied, sizes: Shape
) -> Regrouping:
    """Return how a block of near ``shape`` is reshaped to ``target``; ``sizes`` are the near ones of its values."""
    try:
        return _cached(shape, target, seed_shape, tied, sizes)
    except TypeError:  # symbolic sizes do not hash
        return _found(shape, target, seed_shape, tied, sizes)


def _found(shape: Shape, target: Shape, seed_shape: Shape, tied: Tied, sizes: Shape) -> Regrouping:
    groups = reshape_groups(shape, target)
    expanded, reshaped = list(sizes), [1] * len(target)
    seeds: list[tuple[Shape, Tied]] = [((n,), (None,)) for n in seed_shape]  # what each becomes
    untied: list[int] = []
    for old, new in groups:
        for run in _runs(shape, seed_shape, tied, old):
            found = _spread(run, target, new)
            if found is None:
                untied += run.seeds
                for axis in run.axes:
                    expanded[axis] = shape[axis]
            else:
                for k in run.seeds:
                    seeds[k] = ((), ())
                seeds[run.seeds[0]] = found
    written = tuple(expanded)
    for old, new in groups:
        if any(written[a] != 1 for a in old) or 0 in (target[a] for a in new):
            for a in old:
                expanded[a] = shape[a]
            for a in new:
                reshaped[a] = target[a]
    return Regrouping(
        tuple(untied),
        tuple(expanded),
        tuple(reshaped),
        tuple(n for sizes_of, _ in seeds for n in sizes_of),
        tuple(t for _, ties_of in seeds for t in ties_of),
    )


_cached = functools.lru_cache(maxsize=4096)(_found)


@dataclasses.dataclass(slots=True)
class _Run:
    """Seed axes that are one when they are flattened, tied to one digit of the flat positions in a group of axes."""

    seeds: list[int]
    axes: list[int]  # which they are tied to
    within: int  # positions after each other with the same digit
    size: int


def _runs(shape: Shape, seed_shape: Shape, tied: Tied, axes: Sequence[int]) -> list[_Run]:
    """Return the seed axes tied to a group of near axes, in as few runs as can be."""
    runs: list[_Run] = []
    for k, tie in enumerate(tied):
        if tie is None or axis_of(tie) not in axes:
            continue
        axis = axis_of(tie)
        within = math.prod([shape[a] for a in axes if a > axis])
        within *= tie.within if isinstance(tie, Part) else 1
        size, last = seed_shape[k], runs[-1] if runs else None
        is_next = last is not None and last.within == within * size and len(axes) > 1
        if last is not None and is_next and _is_behind(k, last.seeds[-1], seed_shape):
            last.seeds.append(k)
            last.axes.append(axis)
            last.within, last.size = within, last.size * size
            continue
        runs.append(_Run([k], [axis], within, size))
    return runs


def _is_behind(k: int, other: int, seed_shape: Shape) -> bool:
    """Tell whether a seed axis follows another one: flattened they are one."""
    return all(n == 1 for n in seed_shape[other + 1 : k])


def _spread(run: _Run, target: Shape, axes: Sequence[int]) -> tuple[Shape, Tied] | None:
    """Return the seed axes that a run becomes, each tied to one of ``axes`` or to a part; None if they do not fit."""
    if 0 in (target[a] for a in axes):
        return None
    sizes: list[int] = []
    ties: list[Tie] = []
    end, start = run.within * run.size, math.prod([target[a] for a in axes])
    for axis in axes:
        stop, start = start, start // target[axis]
        low, high = max(start, run.within), min(stop, end)
        if high <= low:
            continue
        if low % start or high % low or stop % high:
            return None
        sizes.append(high // low)
        ties.append(axis if (low, high) == (start, stop) else Part(axis, low // start))
    return (tuple(sizes), tuple(ties)) if math.prod(sizes) == run.size else None
