"""Gaussian processes: likelihoods, predictions and samples through Cholesky factors."""

from __future__ import annotations

import math

import torch
from models.zoo.model import Model, Params, randn
from torch import Tensor
from torch.distributions import MultivariateNormal


def kernel(p: Params, x: Tensor, y: Tensor) -> Tensor:
    """A squared exponential with a scale for each axis, and a periodic one."""
    apart = (x[:, None] - y) / p["scales"].exp()
    smooth = (-0.5 * apart.square().sum(-1)).exp()
    periodic = (-(apart[..., 0] * 2).sin().square()).exp()
    return p["height"].exp() * smooth + 0.3 * periodic


def hyperparameters() -> Params:
    return {
        "scales": randn(2, scale=0.3),
        "height": randn(scale=0.3),
        "noise": randn(scale=0.3) - 1,
        "y": randn(4),
    }


def covariance(p: Params, x: Tensor) -> Tensor:
    return kernel(p, x, x) + p["noise"].exp() * torch.eye(x.shape[0], dtype=x.dtype)


def marginal_likelihood() -> Model:
    """The logarithm of the density of the observations, by a Cholesky factor."""

    def call(p: Params, x: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(covariance(p, x))
        weights = torch.cholesky_solve(p["y"][:, None], factor)[:, 0]
        log_det = 2 * factor.diagonal().log().sum()
        value = -0.5 * (p["y"] @ weights + log_det + x.shape[0] * math.log(2 * math.pi))
        return torch.cat([value[None], weights])

    return Model(call, hyperparameters(), randn(4, 2))


def by_distribution() -> Model:
    """The same density by ``MultivariateNormal``, with a linear mean."""

    def call(p: Params, x: Tensor) -> Tensor:
        mean = x @ p["scales"]
        return MultivariateNormal(mean, covariance(p, x), validate_args=False).log_prob(p["y"])

    return Model(call, hyperparameters(), randn(4, 2))


def prediction() -> Model:
    """Mean and covariance at other places, and one sample of it."""
    places, noise = randn(3, 2), randn(3)

    def call(p: Params, x: Tensor) -> Tensor:
        new = places.to(x.dtype)
        factor = torch.linalg.cholesky(covariance(p, x))
        across = torch.linalg.solve_triangular(factor, kernel(p, x, new), upper=False)
        white = torch.linalg.solve_triangular(factor, p["y"][:, None], upper=False)
        mean = (across.mT @ white)[:, 0]
        rest = kernel(p, new, new) - across.mT @ across + 0.1 * torch.eye(3, dtype=x.dtype)
        sample = mean + torch.linalg.cholesky(rest) @ noise.to(x.dtype)
        return torch.cat([mean, rest.flatten(), sample])

    return Model(call, hyperparameters(), randn(4, 2))


def sparse_bound() -> Model:
    """The bound of the likelihood from two inducing places.

    References:
        Titsias, Variational Learning of Inducing Variables in Sparse Gaussian Processes (2009), equation 9.
    """

    def call(p: Params, x: Tensor) -> Tensor:
        noise, num = p["noise"].exp(), x.shape[0]
        places = p["places"]
        factor = torch.linalg.cholesky(
            kernel(p, places, places) + 0.1 * torch.eye(2, dtype=x.dtype)
        )
        across = torch.linalg.solve_triangular(factor, kernel(p, places, x), upper=False)
        inner = torch.eye(2, dtype=x.dtype) + across @ across.mT / noise
        sign, log_det = torch.linalg.slogdet(inner)
        fitted = across @ p["y"] / noise
        square = p["y"] @ p["y"] / noise - fitted @ torch.linalg.solve(inner, fitted)
        trace = (kernel(p, x, x).diagonal().sum() - across.square().sum()) / noise
        return -0.5 * (sign * log_det + num * p["noise"] + square + trace)

    return Model(call, hyperparameters() | {"places": randn(2, 2)}, randn(4, 2))


MODELS = {
    "gaussian process likelihood": marginal_likelihood,
    "gaussian process by distribution": by_distribution,
    "gaussian process prediction": prediction,
    "sparse gaussian process": sparse_bound,
}
