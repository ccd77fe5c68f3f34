"""The Brusselator in CasADi: ``python -m sparse_cases.with_casadi NAME SIZE CLOCK CORE``."""

from __future__ import annotations

from typing import Any

import casadi as ca
import numpy as np

from sparse_cases.problems import Data
from sparse_cases.serving import Clock, serve


def brusselator(size: int, scale: float) -> ca.Function:
    """Return the Brusselator, row-major, of scalar expressions."""
    w = ca.SX.sym("w", 2 * size * size)
    place = np.arange(2 * size * size).reshape(2, size, size)

    def at(places: np.ndarray) -> ca.SX:
        return w[places.reshape(-1).tolist()]

    def laplace(p: np.ndarray) -> ca.SX:
        near = (
            at(np.roll(p, 1, 0))
            + at(np.roll(p, -1, 0))
            + at(np.roll(p, 1, 1))
            + at(np.roll(p, -1, 1))
        )
        return near - 4 * at(p)

    u, v = at(place[0]), at(place[1])
    uuv = u * u * v
    du = 1 + uuv - 4.4 * u + scale * laplace(place[0])
    dv = 3.4 * u - uuv + scale * laplace(place[1])
    return ca.Function("f", [w], [ca.vertcat(du, dv)])


class CasADi:
    """CasADi: detection, then a symbolic Jacobian, evaluated by its virtual machine."""

    def __init__(self, name: str, data: Data) -> None:
        self._x = data["x"].reshape(-1)
        self._f = brusselator(data["x"].shape[-1], data["scale"])
        self.parts: dict[str, float] = {}
        self.numbers: dict[str, int] = {}

    def prepare(self, clock: Clock) -> None:
        start = clock()
        self._f.jac_sparsity(0, 0)
        detected = clock()
        self._derivative = self._f.jacobian()
        self._last = self._derivative(self._x, 0)
        self.parts = {"detect": detected - start, "compile": clock() - detected}
        self.numbers = {"columns": self._last.shape[1], "stored": self._last.nnz()}

    def value(self) -> Any:
        return self._f(self._x)

    def matrix(self) -> Any:
        self._last = self._derivative(self._x, 0)
        return self._last

    def product(self, vector: np.ndarray) -> np.ndarray:
        return np.asarray(ca.mtimes(self._last, ca.DM(vector))).reshape(-1)

    def true(self) -> dict[str, int]:
        return {}


def warm_up() -> None:
    """Differentiate another function."""
    x = ca.SX.sym("x", 3)
    ca.Function("g", [x], [ca.sin(x)]).jacobian()(np.zeros(3), 0)


if __name__ == "__main__":
    serve(CasADi, warm_up)
