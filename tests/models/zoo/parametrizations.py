"""Modules whose weights are computed: normalized, orthogonal, symmetric."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo.model import Model, Params, of_module, randn, switched
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize


def spectral_norm() -> Model:
    """In training each call improves the singular vectors by a step of the power method."""
    net = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(3, 4)),
        nn.Tanh(),
        nn.Unflatten(-1, (1, 4)),
        parametrizations.spectral_norm(nn.Conv1d(1, 2, 2), n_power_iterations=2),
    )
    return switched(net, randn(2, 3), is_smooth=False)  # the next call has other vectors


def weight_norm() -> Model:
    """Lengths and directions as parameters, for each row or for all."""
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 4)),
        nn.Softplus(),
        parametrizations.weight_norm(nn.Linear(4, 2), dim=None),
    )

    def plain(p: Params, x: Tensor) -> Tensor:
        """PyTorch's second derivative along an axis takes the lengths for constants."""
        lengths, directions = (p[f"0.parametrizations.weight.original{i}"] for i in (0, 1))
        x = F.linear(x, lengths * directions / directions.norm(dim=1, keepdim=True), p["0.bias"])
        length, direction = (p[f"2.parametrizations.weight.original{i}"] for i in (0, 1))
        return F.linear(F.softplus(x), length * direction / direction.norm(), p["2.bias"])

    return of_module(net, randn(2, 3), plain=plain)


def orthogonal() -> Model:
    """Orthogonal weights by both of the maps that PyTorch has for weights that are trained."""
    net = nn.Sequential(
        *(
            layer
            for how in ("matrix_exp", "cayley")
            for layer in (
                parametrizations.orthogonal(nn.Linear(3, 3), orthogonal_map=how),
                nn.ELU(),
            )
        )
    )
    return of_module(net, randn(2, 3))


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


class Definite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(x)


def definite_quadratic() -> Model:
    """A parametrization of a parametrization, computed once for all uses in a call."""

    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3, bias=False)
            parametrize.register_parametrization(self.linear, "weight", Symmetric())
            parametrize.register_parametrization(self.linear, "weight", Definite())

        def forward(self, x: Tensor) -> Tensor:
            with parametrize.cached():
                y = self.linear(x)
                return (self.linear(y.sin()) * x).sum(-1) + self.linear.weight.logdet()

    return of_module(Quadratic(), randn(2, 3))


MODELS = {
    "spectral norm": spectral_norm,
    "weight norm": weight_norm,
    "orthogonal weights": orthogonal,
    "definite weights": definite_quadratic,
}
