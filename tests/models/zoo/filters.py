"""Filters: linear Gaussian state space models."""

from __future__ import annotations

import torch
from models.zoo.model import Model, Params, randn
from torch import Tensor


def kalman_filter() -> Model:
    """Log likelihood and last state of a linear Gaussian model with 3 states, 2 observed, 4 steps."""
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

    return Model(call, params, randn(4, 2))


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


MODELS = {
    "kalman filter": kalman_filter,
    "kalman smoother by solve": kalman_smoother_by_solve,
}
