"""What a reshape does to the structure of a block: decided once for equal shapes and ties."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from pushforward.linear.axes import Shape, Tied, reshape_groups


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
    untied = [k for old, _ in groups for k in _not_mergeable(shape, seed_shape, tied, old)]
    ties = list(tied)
    expanded, reshaped = list(sizes), [1] * len(target)
    for k in untied:
        axis = ties[k]
        assert axis is not None
        expanded[axis], ties[k] = shape[axis], None
    written = tuple(expanded)
    seeds: list[tuple[Shape, Tied]] = [((n,), (None,)) for n in seed_shape]  # what each becomes
    for old, new in groups:
        if any(written[a] != 1 for a in old) or 0 in (target[a] for a in new):
            for a in old:
                expanded[a] = shape[a]
            for a in new:
                reshaped[a] = target[a]
        real = _real(shape, old)
        held = [k for k, tie in enumerate(ties) if tie is not None and tie in real]
        new_real = tuple(_real(target, new))
        for k in held:
            seeds[k] = ((), ())
        for k in held[:: max(len(real), 1)]:
            seeds[k] = (tuple(target[a] for a in new_real), new_real)
    return Regrouping(
        tuple(untied),
        tuple(expanded),
        tuple(reshaped),
        tuple(n for sizes_of, _ in seeds for n in sizes_of),
        tuple(t for _, ties_of in seeds for t in ties_of),
    )


_cached = functools.lru_cache(maxsize=4096)(_found)


def _real(shape: Shape, axes: Sequence[int]) -> list[int]:
    return [a for a in axes if shape[a] != 1]


def _not_mergeable(
    shape: Shape, seed_shape: Shape, tied: Tied, axes: Sequence[int]
) -> Sequence[int]:
    """Return the seed axes tied to a group of near axes, unless the ties outlive that the group becomes another."""
    real = _real(shape, axes)
    held = [k for k, tie in enumerate(tied) if tie is not None and tie in real]
    if not held or len(real) == 1:
        return ()
    for i in range(0, len(held), len(real)):
        run = held[i : i + len(real)]
        between = (k for k in range(run[0], run[-1]) if k not in run)
        if [tied[k] for k in run] != real or any(seed_shape[k] != 1 for k in between):
            return held
    return ()
