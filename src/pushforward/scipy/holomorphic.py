"""Jacobians with respect to complex numbers, for solvers that know those of holomorphic functions only."""

from __future__ import annotations

import torch
from torch import Tensor

from pushforward.errors import UnsupportedError, message


def holomorphic(name: str, parts: Tensor) -> Tensor:
    """Return complex derivatives from those along both directions ``(..., 2)``.

    Math: Cauchy and Riemann, ∂f/∂b = i ∂f/∂a at a + ib.
    """
    real, imaginary = parts.unbind(-1)
    precision = torch.finfo(parts.dtype).eps ** 0.5
    if not torch.allclose(imaginary, 1j * real, rtol=precision, atol=precision):
        raise UnsupportedError(
            message(
                name,
                "a function of complex numbers",
                "one that is not holomorphic (it has .conj(), .abs(), .real or the like)",
                "one with a complex derivative, as SciPy takes no other",
                "Solve for the real and imaginary parts: torch.view_as_real.",
            )
        )
    return real
