"""What is measured: a function in PyTorch, a point, and the derivative that is wanted of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Workload:
    """A derivative at a point.

    Attributes:
        name: As printed.
        kind: A key of `kinds.KINDS`.
        function: What is differentiated; other libraries have theirs under the same ``__name__``.
        args: What the derivative is called with: pytrees of tensors.
        data: Tensors and modules that the function has captured, for other libraries.
        batch: The axis of each argument along which the derivative is mapped; None where it is not mapped.
        peer_kind: What libraries without our ``jacobian`` do.
    """

    name: str
    kind: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    data: dict[str, Tensor | nn.Module]
    batch: tuple[int | None, ...] | None = None
    peer_kind: str = "jacrev"

    def arrays(self) -> dict[str, Any]:
        """Return the data as arrays, parameters by their names behind the module's."""
        found: dict[str, Any] = {}
        for name, value in self.data.items():
            if isinstance(value, Tensor):
                found[name] = value.numpy()
            else:
                found |= {f"{name}.{n}": p.detach().numpy() for n, p in value.named_parameters()}
                found |= {f"{name}.{n}": b.numpy() for n, b in value.named_buffers()}
        return found


WORKLOADS: dict[str, Workload] = {}


def workload(
    name: str, kind: str, *args: Any, data: dict[str, Any] | None = None, **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a derivative of the decorated function."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        assert name not in WORKLOADS
        WORKLOADS[name] = Workload(name, kind, function, args, data or {}, **options)
        return function

    return register


class Draws:
    """Random tensors that depend on a seed only."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return normal numbers."""
        return torch.randn(shape, generator=self._generator, dtype=dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return numbers between 0 and 1."""
        return torch.rand(shape, generator=self._generator, dtype=dtype)
