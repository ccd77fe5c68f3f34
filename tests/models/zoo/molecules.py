"""Energies and descriptors of molecules, functions of the positions of atoms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo.model import Model, Params, randn
from torch import Tensor

FIRST, SECOND = torch.triu_indices(5, 5, offset=1)


def molecular_energy() -> Model:
    """Bonds, angles, one torsion, Lennard-Jones and screened charges of five atoms; energy and terms."""
    params = {
        "length": 1 + 0.1 * randn(4),
        "stiffness": randn(4).exp(),
        "charge": randn(5),
        "sigma": 0.8 + 0.1 * randn(5),
    }

    def call(p: Params, x: Tensor) -> Tensor:
        apart = x[FIRST] - x[SECOND]
        distance = torch.linalg.vector_norm(apart, dim=-1)
        sigma = 0.5 * (p["sigma"][FIRST] + p["sigma"][SECOND])
        ratio = (sigma / distance) ** 6
        dispersion = 0.1 * (ratio**2 - ratio)
        charge = p["charge"][FIRST] * p["charge"][SECOND] * torch.exp(-distance) / distance
        bond = x[1:] - x[:-1]
        stretch = 0.5 * p["stiffness"] * (bond.norm(dim=-1) - p["length"]) ** 2
        cosine = F.cosine_similarity(-bond[:-1], bond[1:], dim=-1)
        bend = (torch.acos(cosine.clamp(-0.999, 0.999)) - 1.9) ** 2
        n1 = torch.linalg.cross(bond[0], bond[1])
        n2 = torch.linalg.cross(bond[1], bond[2])
        torsion = torch.atan2(bond[1].norm() * (bond[0] @ n2), n1 @ n2)
        terms = [dispersion.sum(), charge.sum(), stretch.sum(), bend.sum(), 1 + (3 * torsion).cos()]
        return torch.stack([sum(terms), *terms])

    chain = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1.4, 0.9, 0], [2.4, 1, 0.5], [2.7, 1.9, 1]])
    return Model(call, params, chain.double() + randn(5, 3, scale=0.1))


def symmetry_functions() -> Model:
    """Radial descriptors from ``cdist`` and ``pdist``, cut off smoothly, into a small network per atom."""
    params = {
        "centers": torch.linspace(0.5, 2, 3, dtype=torch.float64),
        "w": randn(3, 4),
        "v": randn(4),
    }

    def by_hand(
        x: Tensor, y: Tensor
    ) -> Tensor:  # PyTorch's cdist and pdist have no second derivative
        squared = (x[:, None] - y).square().sum(-1)
        return torch.where(squared > 0, squared, 1.0).sqrt().where(squared > 0, 0.0)

    def call(p: Params, x: Tensor) -> Tensor:
        return energies(p, torch.cdist(x, x.roll(1, 0)), F.pdist(x))

    def plain(p: Params, x: Tensor) -> Tensor:
        first, second = torch.triu_indices(4, 4, offset=1)
        return energies(p, by_hand(x, x.roll(1, 0)), by_hand(x, x)[first, second])

    def energies(p: Params, distance: Tensor, pairs: Tensor) -> Tensor:
        cutoff = torch.where(distance < 2.5, 0.5 * (1 + (torch.pi * distance / 2.5).cos()), 0.0)
        radial = (torch.exp(-((distance[..., None] - p["centers"]) ** 2)) * cutoff[..., None]).sum(
            1
        )
        energy = (radial @ p["w"]).tanh() @ p["v"]
        return torch.cat([energy, pairs.reciprocal().sum()[None]])

    return Model(call, params, randn(4, 3), plain=plain)


MODELS = {
    "molecular energy": molecular_energy,
    "symmetry functions": symmetry_functions,
}
