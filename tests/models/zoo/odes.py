"""Neural differential equations: integrators of fixed and of adaptive step, explicit and implicit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from models.zoo.model import Model, Params, randn
from torch import Tensor

import pushforward as pf


def field(p: Params, t: float, y: Tensor) -> Tensor:
    """A small network with time as one more input."""
    time = y.new_full((*y.shape[:-1], 1), t)
    return (torch.cat([y, time], dim=-1) @ p["w"] + p["b"]).tanh() @ p["v"]


def weights() -> Params:
    return {"w": randn(3, 4), "b": randn(4), "v": randn(4, 2, scale=0.7)}


def runge_kutta() -> Model:
    """Four steps of the classical fourth-order method; every state is returned."""

    def call(p: Params, y: Tensor) -> Tensor:
        states, h = [], 0.25
        for step in range(4):
            t = step * h
            k1 = field(p, t, y)
            k2 = field(p, t + h / 2, y + h / 2 * k1)
            k3 = field(p, t + h / 2, y + h / 2 * k2)
            k4 = field(p, t + h, y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            states.append(y)
        return torch.stack(states)

    return Model(call, weights(), randn(2, 2))


# Dormand and Prince (1980), the pair of orders 5 and 4: stages, and the difference of the two solutions.
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
TIMES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
ERRORS = (
    71 / 57600,
    0.0,
    -71 / 16695,
    71 / 1920,
    -17253 / 339200,
    22 / 525,
    -1 / 40,
)


def combination(y: Tensor, h: float, factors: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return y + h * sum(c * k for c, k in zip(factors, slopes, strict=True) if c)


def dormand_prince() -> Model:
    """Steps as long as the estimated error allows: which are refused depends on values."""

    def call(p: Params, y: Tensor) -> Tensor:
        t, h, end = 0.0, 0.5, 1.0
        first = field(p, t, y)
        while t < end:
            h = min(h, end - t)
            slopes = [first]
            for factors, time in zip(STAGES, TIMES, strict=True):
                y_new = combination(y, h, factors, slopes)
                slopes.append(field(p, t + time * h, y_new))
            error = combination(torch.zeros_like(y), h, ERRORS, slopes)
            ratio = error.detach().abs().max().item() / 1e-3
            if ratio <= 1:
                t, y, first = t + h, y_new, slopes[-1]
            h = h * min(5.0, max(0.2, 0.9 * (ratio + 1e-10) ** -0.2))
        return y

    params = {k: 2 * v for k, v in weights().items()}
    return Model(call, params, randn(2, 2), has_vmap=False, is_smooth=False)


def implicit_midpoint() -> Model:
    """A stiff equation, each step solved by Newton's method until its residual is small."""
    params = {"rates": torch.tensor([1.0, 40.0]).double(), "coupling": randn(2, 2)}

    def slope(p: Params, y: Tensor) -> Tensor:
        return -p["rates"] * y + (p["coupling"] @ y).sin()

    def jacobian(p: Params, y: Tensor) -> Tensor:
        return (p["coupling"] @ y).cos()[:, None] * p["coupling"] - p["rates"].diag()

    def call(p: Params, y: Tensor) -> Tensor:
        h, eye = 0.1, torch.eye(2, dtype=y.dtype)
        for _ in range(2):
            new = y
            for _ in range(8):
                middle = (y + new) / 2
                residual = new - y - h * slope(p, middle)
                new = new - torch.linalg.solve(eye - h / 2 * jacobian(p, middle), residual)
                if residual.abs().max() < 1e-3:
                    break
            y = new
        return y

    return Model(call, params, randn(2), has_vmap=False)


def hamiltonian() -> Model:
    """Leapfrog steps of a learned energy, whose gradient is the force."""
    params = {"w": randn(2, 4), "v": randn(4), "mass": randn(2)}

    def energy(p: Params, q: Tensor) -> Tensor:
        return (q @ p["w"]).tanh() @ p["v"] + q.square().sum()

    def plain_force(p: Params, q: Tensor) -> Tensor:
        q = q if q.requires_grad else q.detach().requires_grad_()
        return -torch.autograd.grad(energy(p, q), q, create_graph=True)[0]

    def force(p: Params, q: Tensor) -> Tensor:
        return -pf.grad(energy, argnums=1)(p, q)

    def leapfrog(p: Params, state: Tensor, force: Callable[..., Tensor]) -> Tensor:
        q, momentum = state.unbind()
        for _ in range(3):
            momentum = momentum + 0.1 * force(p, q)
            q = q + 0.2 * momentum / p["mass"].exp()
            momentum = momentum + 0.1 * force(p, q)
        return torch.stack([q, momentum])

    return Model(
        lambda p, x: leapfrog(p, x, force),
        params,
        randn(2, 2),
        plain=lambda p, x: leapfrog(p, x, plain_force),
    )


MODELS = {
    "runge-kutta": runge_kutta,
    "dormand-prince": dormand_prince,
    "implicit midpoint": implicit_midpoint,
    "hamiltonian network": hamiltonian,
}
