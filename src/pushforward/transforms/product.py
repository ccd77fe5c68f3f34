"""Product: a sweep that multiplies what it is given, known by heart."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from pushforward.planning.kernels import Replay
from pushforward.tape.aliases import Aliases, aliases
from pushforward.tape.surroundings import Surroundings, surroundings

MAX_PRODUCTS = 8  # with other numbers of seeds, of one recording known by heart


@dataclasses.dataclass(slots=True)
class Product:
    """A sweep that multiplies what is given, known by heart."""

    surroundings: Surroundings
    given: list[tuple[torch.Size, tuple[int, ...], torch.dtype]]
    same: Aliases
    replay: Replay
    is_recording: bool

    def fits(self, given: Sequence[Tensor]) -> bool:
        """Tell whether tensors, here and now, are as those of before."""
        for t, (shape, stride, dtype) in zip(given, self.given, strict=True):
            is_same = type(t) is Tensor and t.shape == shape and t.dtype is dtype
            if not is_same or t.stride() != stride or t.requires_grad:
                return False
        if len(given) > 1 and aliases(given) != self.same:
            return False
        return surroundings() == self.surroundings


Products = dict[Hashable, Product]  # by kind
