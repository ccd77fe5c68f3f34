"""What a model of the zoo is: a function of parameters and an input, and a point to differentiate it at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]
Function = Callable[[Params, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Model:
    """A function, a point, and what else there is to know for a comparison.

    Constants inside a function have the dtype of its arguments, so that it runs in single precision too.
    """

    call: Function
    params: Params
    x: Tensor
    net: nn.Module | None = None
    """The module behind the function: its buffers and its mode are state."""
    settings: tuple[Callable[[], object], ...] = ()
    """What the user switches between calls: training or evaluation."""
    plain: Function | None = None
    """The same function for PyTorch alone, where ``call`` uses this library's transforms or torch.func's."""
    order: int = 2
    """How often PyTorch itself can differentiate it."""
    draws: bool = False
    """Whether it draws random numbers: every call is made from a seed."""
    is_smooth: bool = True
    """Whether values change as derivatives say: not where numbers are read from tensors, or steps go straight
    through, and of what rejection draws only the expectation does."""
    has_vmap: bool = True
    """Whether PyTorch's ``vmap`` can run it."""

    @property
    def reference(self) -> Function:
        """The function that PyTorch differentiates."""
        return self.plain or self.call

    def to(self, dtype: torch.dtype) -> Model:
        """The same model in another precision."""
        if self.net is not None:
            self.net.to(dtype)
        params = {name: p.to(dtype) for name, p in self.params.items()}
        return dataclasses.replace(self, params=params, x=self.x.to(dtype))


def of_module(net: nn.Module, x: Tensor, **facts: object) -> Model:
    """The function that a module computes, its parameters as an argument."""
    net = net.double()
    params = {name: p.detach().clone() for name, p in net.named_parameters()}
    return Model(lambda p, x: torch.func.functional_call(net, p, (x,)), params, x, net=net, **facts)


def switched(net: nn.Module, x: Tensor, **facts: object) -> Model:
    """A module that is trained and evaluated in turns."""
    return of_module(net, x, settings=(net.train, net.eval), **facts)


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64)
