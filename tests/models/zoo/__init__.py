"""Small versions of models that people know, built from torch alone, with random weights.

Every builder returns a function of ``(params, x)``, its parameters by name, and an input. Sizes are the
smallest at which every layer still mixes something. One module for each family.
"""

from collections.abc import Callable

import torch
from models.zoo import (
    attention,
    distributions,
    ensembles,
    experts,
    filters,
    flows,
    gaussian_processes,
    graphs,
    images,
    molecules,
    odes,
    parametrizations,
    physics,
    recurrent,
    renderers,
    spectral,
)
from models.zoo.model import Model

_FAMILIES = (
    images,
    attention,
    recurrent,
    graphs,
    filters,
    flows,
    renderers,
    molecules,
    odes,
    gaussian_processes,
    spectral,
    experts,
    parametrizations,
    distributions,
    ensembles,
    physics,
)
BUILDERS: dict[str, Callable[[], Model]] = {
    name: builder for family in _FAMILIES for name, builder in family.MODELS.items()
}
assert len(BUILDERS) == sum(len(family.MODELS) for family in _FAMILIES)


def build(name: str, dtype: torch.dtype = torch.float64) -> Model:
    """The model of that name; the same weights in every test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return BUILDERS[name]().to(dtype)
