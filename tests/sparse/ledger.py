"""CUTEst problems whose patterns asdex 0.5.1 reports with entries too many, written anew from their mathematics.

asdex's counts are those of its own tests (tests/test_cutest.py): entries reported, and nonzeros at the starting point.
Where it reports too many it is the indices, worked out in the function, that it does not follow: so are they here.
"""

import dataclasses
from collections.abc import Callable
from itertools import combinations_with_replacement, product
from typing import Literal

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Problem:
    """One matrix: the Jacobian of constraints or the Hessian of an objective, and how many entries it has.

    ``at_start`` counts its nonzeros at the starting point, as asdex's tests do: fewer than ``generic``, those at a
    point of no particular choice, which a pattern that holds everywhere must have.
    """

    name: str
    matrix: Literal["jacobian", "hessian"]
    func: Callable[[Tensor], Tensor]
    start: Tensor
    asdex: int
    at_start: int
    generic: int
    ours: int

    def __str__(self) -> str:
        return self.name


Bar = list[tuple[int, float]]  # The degrees of freedom that stretch it, and how much each does.


def truss(layers: int, height: int, freedom: Callable[[int, int, int], int]) -> list[Bar]:
    """The bars between neighbours of a grid of nodes, diagonals too, but none within layer 0, which is fixed.

    ``freedom(layer, place, axis)`` numbers the displacements of nodes. The stretch of a bar is per length, squared in
    the stiffness, in units where a bar along an axis has 1.
    """

    def bar(one: tuple[int, int], two: tuple[int, int]) -> Bar:
        across, along = two[0] - one[0], two[1] - one[1]
        length = across**2 + along**2
        ends = [(one, -1), (two, 1)]
        parts = product(ends, ((0, across), (1, along)))
        moving = [
            (node, axis, sign * step)
            for (node, sign), (axis, step) in parts
            if node[0] > 0 and step
        ]
        return [(freedom(*node, axis), step / length) for node, axis, step in moving]

    bars = []
    for layer, place in product(range(layers - 1), range(height - 1)):
        bars.append(bar((layer, place), (layer + 1, place)))
        bars.append(bar((layer, place), (layer + 1, place + 1)))
        bars.append(bar((layer + 1, place), (layer + 1, place + 1)))
        bars.append(bar((layer + 1, place), (layer, place + 1)))
    top = height - 1
    return bars + [bar((layer, top), (layer + 1, top)) for layer in range(layers - 1)]


def compliance(layers: int, height: int) -> Problem:
    """TRO: forces on the nodes of a truss, of bars of areas x, for displacements u."""
    bars = truss(
        layers, height, lambda layer, place, axis: 2 * (height * (layer - 1) + place) + axis
    )
    freedoms = 2 * height * (layers - 1)
    terms = [
        (number, row, column, (height - 1) ** 2 * one * two)
        for number, bar in enumerate(bars)
        for (row, one), (column, two) in product(bar, bar)
    ]
    elements = torch.tensor(terms, dtype=torch.float64)

    def forces(y: Tensor) -> Tensor:
        x, u = y[: len(bars)], y[len(bars) :]
        number, row, column = elements[:, :3].long().T
        parts = elements[:, 3] * x[number] * u[column]
        return y.new_zeros(freedoms).index_add(0, row, parts)

    areas = torch.full((len(bars),), 1 / len(bars), dtype=torch.float64)
    start = torch.cat([areas, torch.zeros(freedoms, dtype=torch.float64)])
    counts = {(11, 3): (9000, 446, 751), (5, 5): (4320, 298, 513)}[layers, height]
    return Problem(f"TRO{layers}X{height}", "jacobian", forces, start, *counts, counts[-1])


def haifam() -> Problem:
    """Energies of the 150 bars of a truss of 7 x 7 nodes, each below a common bound."""
    bars = truss(7, 7, lambda layer, place, axis: 49 * axis + 7 * layer + place)
    terms = [
        (number, one, two, 3.58564 * a * b * (1 if one == two else 2))
        for number, bar in enumerate(bars)
        for (one, a), (two, b) in combinations_with_replacement(bar, 2)
    ]
    elements = torch.tensor(terms, dtype=torch.float64)

    def excess(y: Tensor) -> Tensor:
        x = y[1:]
        number, one, two = elements[:, :3].long().T
        energies = 0.5 * elements[:, 3] * x[one] * x[two]
        return y.new_zeros(len(bars)).index_add(0, number, energies) - (100 * y[0] + x[91])

    # CUTEst starts at ones, where our even truss has unstretched bars, but not its own, of rounded coefficients.
    start = torch.linspace(0.7, 1.3, 99, dtype=torch.float64) ** 2
    return Problem("HAIFAM", "jacobian", excess, start, 12750, 711, 711, 711)


def arglina(y: Tensor) -> Tensor:
    """Least squares of full rank whose normal matrix is 2I, as dense parts of it cancel."""
    mean = y.sum() * (2 / 400)
    return torch.cat([y - mean - 1, (-mean - 1).expand(200)]).square().sum()


def hadamard(y: Tensor) -> Tensor:
    """Columns of a matrix of order 20 are orthogonal, of length sqrt(20): the upper triangle of QᵀQ - 20 I."""
    q = y[1:].reshape(20, 20).T
    ends = torch.arange(1, 21).cumsum(0)
    place = torch.arange(210)
    column = torch.searchsorted(ends, place, right=True)
    row = place - (ends - torch.arange(1, 21))[column]
    return (q.T @ q)[row, column] - 20.0 * (row == column)


def vandanmsls(y: Tensor) -> Tensor:
    """Ten measurements fitted by a cubic spline of 22 coefficients: all lie in the first interval between knots."""
    step = 5.5 / 19
    points = 0.245569 + 0.000358 * torch.arange(10, dtype=y.dtype)
    distances = (points[:, None] / step - torch.arange(-1, 21)).abs()
    outer = (2 - distances).clamp(min=0) ** 3 / 6
    basis = torch.where(distances < 1, 2 / 3 - distances**2 * (1 - distances / 2), outer)
    measured = torch.tensor(
        [0.26, 1.74, 0.96, 0.04, 2.58, 1.42, 2.0, 1.23, 0.77, 4.0], dtype=y.dtype
    )
    deviations = torch.tensor(
        [0.51, 1.32, 0.98, 0.2, 1.61, 1.19, 1.41, 1.11, 0.88, 2.0], dtype=y.dtype
    )
    return ((basis @ y - measured) / deviations).square().sum()


def oet2(y: Tensor) -> Tensor:
    """Bounds on both sides of 1 / (1 + w) - x exp(w z), at 501 points of [-1/2, 1/2]."""
    u, x, z = y
    w = torch.linspace(-0.5, 0.5, 501, dtype=y.dtype)
    error = 1 / (1 + w) - x * torch.exp(w * z)
    return torch.stack([u + error, u - error], 1).reshape(-1)


def tenbars(y: Tensor) -> Tensor:
    """Forces on the four free nodes of a truss of ten bars: the equations that all four problems share."""
    u1, u2, u3, u4, u5, u6, u7, u8 = y[:8]
    x = y[8:]
    fall, load = 8**-0.5, 589.884
    a, g, i = x[0] * u1, x[3] * u3, x[8] * (u3 - u7)
    c, e, j = x[5] * (u1 - u5), x[4] * (u2 - u4), x[9] * (u6 - u8)
    b, d = fall * x[2] * (u1 + u2), fall * x[6] * (u1 + u8 - u2 - u7)
    f, h = fall * x[1] * (u3 - u4), fall * x[7] * (u3 + u4 - u5 - u6)
    forces = [
        a + c + b + d,
        b + e - d,
        h + i + g + f,
        h - e - f + load,
        -h - c,
        j - h,
        -d - i,
        d - j + load,
    ]
    return torch.stack(forces)


def fletcher(y: Tensor) -> Tensor:
    """A right-angled triangle contains the unit circle."""
    x1, x2, x3, x4 = y
    inside = (x1 * x3 + x2 * x4) ** 2 / (x1**2 + x2**2)
    return (inside - x3**2 - x4**2 + 1).reshape(1)


def _zeros(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


def _ones(size: int) -> Tensor:
    return torch.ones(size, dtype=torch.float64)


PROBLEMS = [
    Problem("ARGLINA", "hessian", arglina, _ones(200), 40000, 200, 200, 40000),
    Problem(
        "HADAMARD",
        "jacobian",
        hadamard,
        torch.cat([_zeros(1), _ones(400)]),
        84000,
        8000,
        8000,
        8000,
    ),
    haifam(),
    compliance(11, 3),
    compliance(5, 5),
    Problem("VANDANMSLS", "hessian", vandanmsls, _zeros(22), 484, 16, 16, 484),
    Problem("OET2", "jacobian", oet2, _zeros(3), 3006, 2004, 3004, 3006),
    *(Problem(f"TENBARS{n}", "jacobian", tenbars, _zeros(18), 62, 0, 62, 62) for n in range(1, 5)),
    Problem("FLETCHER", "jacobian", fletcher, _ones(4), 4, 0, 4, 4),
]
