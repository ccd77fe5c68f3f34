"""Derivatives along a direction by differences, with an estimate of their error: to check others against."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Values = list[Tensor]
Evaluate = Callable[[Sequence[Tensor]], Values]

COLUMNS = 10  # how often the step is shrunk
SHRINK = 1.4
KINK = 1e-2  # a bend, relative to the slope, that is no rounding
COMPLEX_STEP = 1e-30


@dataclasses.dataclass(frozen=True)
class Difference:
    """One output's derivative along a direction."""

    value: Tensor
    error: Tensor  # as estimated, for each element; inf at a kink


def directional(
    evaluate: Evaluate, point: Sequence[Tensor], direction: Sequence[Tensor]
) -> list[Difference]:
    """Return the derivative of every output, by central differences extrapolated to step zero.

    References:
        Ridders, Accurate computation of F'(x) and F'(x)F''(x), Advances in Engineering Software 4 (1982).
    """
    scale = max((float(x.abs().max()) for x in point if x.numel()), default=1.0)
    length = max((float(v.abs().max()) for v in direction if v.numel()), default=1.0)
    step = 0.1 * max(scale, 0.1) / max(length, 1e-300)
    table: list[list[Values]] = []  # by step, by order of extrapolation
    best: Values = []
    errors: Values = []
    for number in range(COLUMNS):
        row = [_central(evaluate, point, direction, step)]
        factor = SHRINK**2
        for order in range(number):
            row.append(
                [
                    (fine * factor - coarse) / (factor - 1)
                    for fine, coarse in zip(row[order], table[-1][order], strict=True)
                ]
            )
            factor *= SHRINK**2
        if not table:
            best = row[0]
            errors = [torch.full_like(y.abs(), torch.inf) for y in best]
        for order in range(1, len(row)):
            for i, value in enumerate(row[order]):
                change = torch.maximum(
                    (value - row[order - 1][i]).abs(), (value - table[-1][order - 1][i]).abs()
                )
                is_better = change < errors[i]
                best[i] = torch.where(is_better, value, best[i])
                errors[i] = torch.where(is_better, change, errors[i])
        table.append(row)
        step /= SHRINK
    wide, narrow = (_bends(evaluate, point, direction, step * SHRINK**n) for n in (COLUMNS, 1))
    return [
        Difference(value, torch.where((b > a / 2) & (b > KINK * value.abs()), torch.inf, error))
        for value, error, a, b in zip(best, errors, wide, narrow, strict=True)
    ]


def _bends(
    evaluate: Evaluate, point: Sequence[Tensor], direction: Sequence[Tensor], step: float
) -> Values:
    """Return by how much slopes ahead and behind differ: as much as the step, but at kinks."""
    ahead = evaluate([x + step * v for x, v in zip(point, direction, strict=True)])
    behind = evaluate([x - step * v for x, v in zip(point, direction, strict=True)])
    here = evaluate(point)
    return [(a + b - 2 * c).abs() / step for a, b, c in zip(ahead, behind, here, strict=True)]


def _central(
    evaluate: Evaluate, point: Sequence[Tensor], direction: Sequence[Tensor], step: float
) -> Values:
    ahead = evaluate([x + step * v for x, v in zip(point, direction, strict=True)])
    behind = evaluate([x - step * v for x, v in zip(point, direction, strict=True)])
    return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]


def by_complex_step(
    evaluate: Evaluate, point: Sequence[Tensor], direction: Sequence[Tensor]
) -> Values | None:
    """Return the derivatives without cancellation, from a complex step; None where the function does not take one.

    Right for functions that are analytic; whether this one is has to be seen from ordinary differences.

    References:
        Squire and Trapp, Using complex variables to estimate derivatives of real functions, SIAM Review 40 (1998).
    """
    if any(x.is_complex() for x in point):
        return None
    try:
        moved = evaluate(
            [torch.complex(x, COMPLEX_STEP * v) for x, v in zip(point, direction, strict=True)]
        )
    except Exception:  # whatever a function does with numbers that it was not written for
        return None
    if not all(y.is_complex() for y in moved):
        return None
    return [y.imag / COMPLEX_STEP for y in moved]
