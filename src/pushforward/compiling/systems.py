"""Small systems of equations as numbers: elimination with partial pivoting, step by step as in LAPACK.

Rows change places by choices between numbers, so that there are no branches. A pivot that could be rounding error is
refused: then PyTorch's own functions run, and tell whether the matrix is singular.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pushforward.compiling.number_rules import Program, UnsuitableError
from pushforward.rules.linalg import keeps_own_factors

aten = torch.ops.aten

MAX_UNKNOWNS = 8
DOUBTFUL = 32  # units of rounding for each unknown, of the largest number in a column


class _Systems:
    """Systems whose numbers have a dtype."""

    def __init__(self, program: Program, dtype: torch.dtype) -> None:
        self.program, self.dtype = program, dtype

    def of(self, name: str, *arrays: Tensor) -> Tensor:
        """Return the numbers of an operation."""
        return self.program.of(name, self.dtype, *arrays)

    def is_equal(self, array: Tensor, value: float) -> Tensor:
        """Tell which numbers have a value."""
        return self.of("eq", array, self.program.array(value))

    def larger(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the larger numbers; the second where one is NaN."""
        return self.of("where", self.of("gt", x, y), x, y)

    def refuse(self, is_refused: Tensor) -> None:
        """Leave calls to PyTorch in which this is true."""
        self.program.numbers.refused += is_refused.flatten().tolist()

    def decomposed(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return L and U in one array, and with which row, counted from 1, each row changed places."""
        n = _num_unknowns(a)
        tolerance = self.program.array(DOUBTFUL * n * torch.finfo(self.dtype).eps)
        rows, pivots = list(a.unbind(-2)), []
        for k in range(n):
            largest = self.of("abs", a[..., 0, k])
            for r in range(1, n):
                largest = self.larger(self.of("abs", a[..., r, k]), largest)
            best, pivot = self.of("abs", rows[k][..., k]), self.program.array(k + 1)
            for r in range(k + 1, n):
                size = self.of("abs", rows[r][..., k])
                is_larger = self.of("gt", size, best)
                pivot = self.of("where", is_larger, self.program.array(r + 1), pivot)
                best = self.of("where", is_larger, size, best)
            self.refuse(self.of("le", best, self.of("mul", tolerance, largest)))
            pivots.append(pivot.expand(best.shape))
            self.exchange(rows, k, pivots[k])
            for r in range(k + 1, n):
                factor = self.of("div", rows[r][..., k], rows[k][..., k])[..., None]
                terms = self.of("mul", factor, rows[k][..., k + 1 :])
                rest = self.of("sub", rows[r][..., k + 1 :], terms)
                rows[r] = torch.cat([rows[r][..., :k], factor, rest], -1)
        return torch.stack(rows, -2), torch.stack(pivots, -1)

    def exchange(self, rows: list[Tensor], k: int, pivot: Tensor) -> None:
        """Have row k and that of the pivot change places."""
        first = rows[k]
        for r in range(k + 1, len(rows)):
            is_it = self.is_equal(pivot, r + 1)[..., None]
            rows[k] = self.of("where", is_it, rows[r], rows[k])
            rows[r] = self.of("where", is_it, first, rows[r])

    def signed(self, array: Tensor, pivot: Tensor, k: int) -> Tensor:
        """Return the negative where row k changed places."""
        return self.of("where", self.is_equal(pivot, k + 1), array, self.of("neg", array))

    def substituted(
        self, factors: tuple[Tensor, Tensor], right: Tensor, is_adjoint: bool = False
    ) -> Tensor:
        """Return X of A X = B, or Aᵀ X = B, by the factors of A."""
        lu, pivots = factors
        places = range(lu.shape[-1])
        rows = list(right.unbind(-2))
        if not is_adjoint:
            for k in places:
                self.exchange(rows, k, pivots[..., k])
            rows = self.triangular(lu, rows, is_upper=False, is_unit=True)
            return torch.stack(self.triangular(lu, rows, is_upper=True), -2)
        rows = self.triangular(lu.mT, rows, is_upper=False)
        rows = self.triangular(lu.mT, rows, is_upper=True, is_unit=True)
        for k in reversed(places):
            self.exchange(rows, k, pivots[..., k])
        return torch.stack(rows, -2)

    def triangular(
        self, a: Tensor, right: Sequence[Tensor], *, is_upper: bool, is_unit: bool = False
    ) -> list[Tensor]:
        """Return the rows of X of A X = B, of which A is triangular, with a diagonal of ones if it ``is_unit``."""
        rows = list(right)
        places = range(len(rows))
        for i in reversed(places) if is_upper else places:
            for j in places[i + 1 :] if is_upper else places[:i]:
                rows[i] = self.of("sub", rows[i], self.of("mul", a[..., i, j, None], rows[j]))
            if not is_unit:
                rows[i] = self.of("div", rows[i], a[..., i, i, None])
        return rows


def _num_unknowns(a: Tensor) -> int:
    n = a.shape[-1]
    if a.shape[-2] != n or not 0 < n <= MAX_UNKNOWNS:
        raise UnsuitableError
    return n


def _turned(
    solve: Callable[[Tensor, bool], Tensor], right: Tensor, *, left: bool, adjoint: bool
) -> Tensor:
    """Return X of A X = B, or X A = B if not ``left``; of Aᵀ if it is ``adjoint``."""
    if left:
        return solve(right, adjoint)
    return solve(right.mT, not adjoint).mT


def _systems(program: Program, node: fx.Node) -> _Systems:
    value = node.meta["val"]
    return _Systems(program, (value if isinstance(value, Tensor) else value[0]).dtype)


def _solved(program: Program, node: fx.Node) -> tuple[Any, ...]:
    systems, value = _systems(program, node), node.meta["val"][0]
    a, b = map(program.array, node.args)
    is_vector = b.dim() == 1 or (b.dim() == a.dim() - 1 and b.shape == a.shape[:-1])
    factors = systems.decomposed(a)
    x = _turned(
        lambda right, is_adjoint: systems.substituted(factors, right, is_adjoint),
        b[..., None] if is_vector else b,
        left=bool(node.kwargs.get("left", True)),
        adjoint=False,
    )
    kept = factors if keeps_own_factors("cpu") else (None, None)
    return x.reshape(value.shape), *kept, None


def _inverse(program: Program, node: fx.Node) -> tuple[Any, ...]:
    systems, a = _systems(program, node), program.array(node.args[0])
    unit = torch.where(
        torch.eye(_num_unknowns(a), dtype=torch.bool), program.array(1), program.array(0)
    )
    return systems.substituted(systems.decomposed(a), unit.expand(a.shape)), None


def _factors(program: Program, node: fx.Node) -> tuple[Any, ...]:
    if not node.kwargs.get("pivot", True):
        raise UnsuitableError
    return *_systems(program, node).decomposed(program.array(node.args[0])), None


def _substituted(program: Program, node: fx.Node) -> Tensor:
    systems = _systems(program, node)
    lu, pivots, right = map(program.array, node.args)
    found = _turned(
        lambda b, is_adjoint: systems.substituted((lu, pivots), b, is_adjoint),
        right,
        left=bool(node.kwargs.get("left", True)),
        adjoint=bool(node.kwargs.get("adjoint", False)),
    )
    return found.reshape(node.meta["val"].shape)


def _unpacked(program: Program, node: fx.Node) -> tuple[Any, ...]:
    if len(node.args) > 2 or node.kwargs:
        raise UnsuitableError
    systems = _systems(program, node)
    lu, pivots = map(program.array, node.args)
    n = _num_unknowns(lu)
    zero, one = program.array(0), program.array(1)
    unit = torch.where(torch.eye(n, dtype=torch.bool), one, zero).expand(lu.shape)
    is_lower = torch.ones(n, n, dtype=torch.bool).tril(-1)
    rows = list(unit.unbind(-2))
    for k in reversed(range(n)):
        systems.exchange(rows, k, pivots[..., k])
    lower, upper = torch.where(is_lower, lu, unit), torch.where(is_lower, zero, lu)
    return torch.stack(rows, -2), lower, upper


def _triangular(program: Program, node: fx.Node) -> Tensor:
    systems = _systems(program, node)
    a, right = map(program.array, node.args)
    _num_unknowns(a)
    is_upper, is_unit = (bool(node.kwargs.get(n)) for n in ("upper", "unitriangular"))

    def solve(b: Tensor, is_adjoint: bool) -> Tensor:
        matrix = a.mT if is_adjoint else a
        rows = systems.triangular(
            matrix, b.unbind(-2), is_upper=is_upper != is_adjoint, is_unit=is_unit
        )
        return torch.stack(rows, -2)

    left = bool(node.kwargs.get("left", True))
    return _turned(solve, right, left=left, adjoint=False).reshape(node.meta["val"].shape)


def _cholesky(program: Program, node: fx.Node) -> tuple[Any, ...]:
    systems, a = _systems(program, node), program.array(node.args[0])
    n, is_upper = _num_unknowns(a), bool(node.kwargs.get("upper", False))
    a = a.mT if is_upper else a
    tolerance = program.array(DOUBTFUL * n * torch.finfo(systems.dtype).eps)
    zero = program.array(0).expand(a.shape[:-2])
    entries = [[zero] * n for _ in range(n)]
    for j in range(n):
        for i in range(j, n):
            rest = a[..., i, j]
            for k in range(j):
                rest = systems.of("sub", rest, systems.of("mul", entries[i][k], entries[j][k]))
            if i == j:
                least = systems.of("mul", tolerance, systems.of("abs", a[..., j, j]))
                is_positive = systems.of("gt", rest, least)  # false for NaN
                systems.refuse(program.of("logical_not", torch.bool, is_positive))
                entries[j][j] = systems.of("sqrt", rest)
            else:
                entries[i][j] = systems.of("div", rest, entries[j][j])
    lower = torch.stack([torch.stack(row, -1) for row in entries], -2)
    return lower.mT if is_upper else lower, None


def _determinant(program: Program, node: fx.Node) -> tuple[Any, ...]:
    systems = _systems(program, node)
    lu, pivots = systems.decomposed(program.array(node.args[0]))
    found = program.array(1)
    for k, pivot in enumerate(pivots.unbind(-1)):
        found = systems.signed(systems.of("mul", found, lu[..., k, k]), pivot, k)
    return found, None, None


def _log_determinant(program: Program, node: fx.Node) -> tuple[Any, ...]:
    systems = _systems(program, node)
    lu, pivots = systems.decomposed(program.array(node.args[0]))
    sign, logarithm = program.array(1), program.array(0)
    for k, pivot in enumerate(pivots.unbind(-1)):
        sign = systems.of("mul", sign, systems.of("sign", lu[..., k, k]))
        sign = systems.signed(sign, pivot, k)
        size = systems.of("log", systems.of("abs", lu[..., k, k]))
        logarithm = systems.of("add", logarithm, size)
    return sign, logarithm, None, None


def _checked(program: Program, node: fx.Node) -> None:
    """Leave out a check of what was refused where it would fail."""
    source: Any = node.args[0]
    if source in program.known:
        if bool(program.known[source].any()):
            raise UnsuitableError
    elif not any(n.target in SYSTEMS for n in source.all_input_nodes):
        raise UnsuitableError


SYSTEMS: dict[Any, Callable[[Program, fx.Node], Any]] = {
    aten._linalg_solve_ex.default: _solved,
    aten.linalg_inv_ex.default: _inverse,
    aten.linalg_lu_factor_ex.default: _factors,
    aten.linalg_lu_solve.default: _substituted,
    aten.lu_unpack.default: _unpacked,
    aten.linalg_solve_triangular.default: _triangular,
    aten.linalg_cholesky_ex.default: _cholesky,
    aten._linalg_det.default: _determinant,
    aten._linalg_slogdet.default: _log_determinant,
    aten._linalg_check_errors.default: _checked,
}
