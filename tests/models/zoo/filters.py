"""Filters: linear Gaussian state space models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from models.zoo.model import Model, Params, randn
from torch import Tensor

import pushforward as pf


def kalman_filter() -> Model:
    """Log likelihood and last state of a linear Gaussian model with 3 states, 2 observed, 3 steps."""
    params = {
        "transition": 0.8 * torch.eye(3, dtype=torch.float64) + randn(3, 3, scale=0.1),
        "observe": randn(2, 3),
        "process": randn(3, 3, scale=0.3),
        "noise": randn(2, 2, scale=0.3),
    }

    def call(p: Params, observed: Tensor) -> Tensor:
        eye = torch.eye(3, dtype=observed.dtype)
        q = p["process"] @ p["process"].mT + 0.1 * eye
        r = p["noise"] @ p["noise"].mT + 0.2 * torch.eye(2, dtype=observed.dtype)
        a, h = p["transition"], p["observe"]
        mean, cov = observed.new_zeros(3), eye
        total = observed.new_zeros(())
        for y in observed:
            mean, cov = a @ mean, a @ cov @ a.mT + q
            innovation = y - h @ mean
            factor = torch.linalg.cholesky(h @ cov @ h.mT + r)
            gain = torch.cholesky_solve(h @ cov, factor).mT
            white = torch.linalg.solve_triangular(factor, innovation[:, None], upper=False)
            total = total - 0.5 * white.square().sum() - factor.diagonal().log().sum()
            mean = mean + gain @ innovation
            keep = eye - gain @ h
            cov = keep @ cov @ keep.mT + gain @ r @ gain.mT
        return torch.cat([total[None], mean, cov.flatten()])

    return Model(call, params, randn(3, 2))


def kalman_smoother_by_solve() -> Model:
    """The information form: one banded system for all states, by ``solve`` and ``slogdet``."""
    params = {
        "transition": 0.7 * torch.eye(2, dtype=torch.float64) + randn(2, 2, scale=0.1),
        "log_q": randn(2),
    }

    def call(p: Params, observed: Tensor) -> Tensor:
        steps = observed.shape[0]
        eye = torch.eye(2, dtype=observed.dtype)
        weight = p["log_q"].exp().diag()
        block = p["transition"].mT @ weight @ p["transition"]
        rows = []
        for t in range(steps):
            row = [torch.zeros_like(eye)] * steps
            row[t] = eye + weight + (block if t + 1 < steps else 0)
            if t > 0:
                row[t - 1] = -weight @ p["transition"]
            if t + 1 < steps:
                row[t + 1] = -p["transition"].mT @ weight
            rows.append(torch.cat(row, dim=1))
        precision = torch.cat(rows)
        states = torch.linalg.solve(precision, observed.flatten())
        sign, log_det = torch.linalg.slogdet(precision)
        return torch.cat([states, (sign * log_det)[None], torch.linalg.inv(precision)[0]])

    return Model(call, params, randn(3, 2))


def extended_kalman_filter() -> Model:
    """A state that moves along a curve, and is seen by a distance and an angle: both made linear at each step."""
    params = {"turn": randn(), "q": randn(3, scale=0.3) - 2, "r": randn(2, scale=0.3) - 1}

    def move(p: Params, state: Tensor) -> Tensor:
        x, y, angle = state.unbind()
        return torch.stack([x + angle.cos(), y + angle.sin(), angle + p["turn"].tanh()])

    def see(p: Params, state: Tensor) -> Tensor:
        x, y = state[0] + 3, state[1] + p["turn"]
        return torch.stack([torch.hypot(x, y), torch.atan2(y, x)])

    def filtered(p: Params, observed: Tensor, jacobian: Callable[..., Tensor]) -> Tensor:
        mean, cov = observed.new_zeros(3), torch.eye(3, dtype=observed.dtype)
        total = observed.new_zeros(())
        for z in observed:
            a = jacobian(move, p, mean)
            mean, cov = move(p, mean), a @ cov @ a.mT + p["q"].exp().diag()
            h = jacobian(see, p, mean)
            spread = h @ cov @ h.mT + p["r"].exp().diag()
            gain = torch.linalg.solve(spread, h @ cov).mT
            surprise = z - see(p, mean)
            total = total - surprise @ torch.linalg.solve(spread, surprise) - spread.logdet()
            mean, cov = mean + gain @ surprise, cov - gain @ h @ cov
        return torch.cat([total[None], mean, cov.diagonal()])

    def ours(func: Callable[..., Tensor], p: Params, state: Tensor) -> Tensor:
        return pf.jacfwd(func, argnums=1)(p, state)

    def by_autograd(func: Callable[..., Tensor], p: Params, state: Tensor) -> Tensor:
        state = state if state.requires_grad else state.detach().requires_grad_()
        rows = [torch.autograd.grad(y, state, create_graph=True)[0] for y in func(p, state)]
        return torch.stack(rows)

    return Model(
        lambda p, x: filtered(p, x, ours),
        params,
        randn(2, 2),
        plain=lambda p, x: filtered(p, x, by_autograd),
    )


def hidden_markov_model() -> Model:
    """The forward recursion in logarithms, and the best path by maxima."""
    params = {"transition": randn(3, 3), "start": randn(3), "mean": randn(3), "scale": randn(3)}

    def call(p: Params, observed: Tensor) -> Tensor:
        transition, start = p["transition"].log_softmax(-1), p["start"].log_softmax(-1)
        apart = (observed[:, None] - p["mean"]) * (-p["scale"]).exp()
        emission = -0.5 * apart.square() - p["scale"]
        forward = best = start + emission[0]
        for log_prob in emission[1:]:
            forward = torch.logsumexp(forward[:, None] + transition, dim=0) + log_prob
            best = (best[:, None] + transition).max(dim=0).values + log_prob
        return torch.stack([forward.logsumexp(0), best.max()])

    return Model(call, params, randn(5))


MODELS = {
    "kalman filter": kalman_filter,
    "kalman smoother by solve": kalman_smoother_by_solve,
    "extended kalman filter": extended_kalman_filter,
    "hidden markov model": hidden_markov_model,
}
