"""Custom autograd functions and stateful modules for programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Functions:
    """Custom functions."""

    class Sine(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return g * x.cos()

    class Doubling(Function):
        """Has both modes, and says that its derivative is not that of what it computes."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * 2

        @staticmethod
        def jvp(ctx: Any, t: Tensor) -> Tensor:
            return t * 2

    class Cubing(Function):
        """Saves its output."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            y = x.exp()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (y,) = ctx.saved_tensors
            return g * y

    class Scaling(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, number: float) -> Tensor:
            ctx.number = number
            ctx.save_for_backward(x)
            return x * x * number

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
            (x,) = ctx.saved_tensors
            return g * 2 * x * ctx.number, None

    class Splitting(Function):
        """Two in, two out."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            ctx.save_for_backward(x, y)
            return x * y, x + y

        @staticmethod
        def backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            x, y = ctx.saved_tensors
            return g * y + h, g * x + h

    class InPlace(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.mark_dirty(x)
            return x.mul_(3)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * 3

    class OnceDifferentiable(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return g * 2 * x

    class WithSetup(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.sin() * x

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return g * (x.cos() * x + x.sin())

        @staticmethod
        def jvp(ctx: Any, t: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return t * (x.cos() * x + x.sin())

    class WithVmap(Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x * x

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return 2 * x * g

        @staticmethod
        def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, Any]:
            return Functions.WithVmap.apply(x), in_dims[0]

    class KeepingNumbers(Function):
        """Keeps a tensor as an attribute, and one that is no function of the input."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.weight = torch.cos(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape)
            return x * ctx.weight

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * ctx.weight

    class Ignoring(Function):
        """No gradient for one input, and none is materialized."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            ctx.set_materialize_grads(False)
            mask = x > 0
            ctx.mark_non_differentiable(mask)
            ctx.save_for_backward(y)
            return x * y.detach(), mask

        @staticmethod
        def backward(ctx: Any, g: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
            (y,) = ctx.saved_tensors
            return (None if g is None else g * y), None

    class Straight(Function):
        """Another derivative than that of the value."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.round()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g


CUTTING = ("Straight", "Ignoring")  # whose derivative differences do not see


class Modules:
    """Modules that change."""

    class Keeping(nn.Module):
        """Keeps what it computed as an attribute, and a running mean in a buffer."""

        def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
            super().__init__()
            self.register_buffer("mean", torch.full(shape, 0.3, dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            self.kept = x.sin()
            if self.training:
                self.mean = 0.9 * self.mean + 0.1 * x.detach()
            return self.kept * self.mean

    class Counting(nn.Module):
        """Updates a buffer in place."""

        def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros((), dtype=torch.long))
            self.register_buffer("sum", torch.full(shape, 0.5, dtype=dtype))
            self.scale = nn.Parameter(torch.full((), 1.25, dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.count += 1
                with torch.no_grad():
                    self.sum.add_(x)
            return x * self.sum * self.scale + self.count

    class Caching(nn.Module):
        """Writes what depends on the input to a buffer, and reads it."""

        def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
            super().__init__()
            self.register_buffer("cache", torch.zeros((2, *shape), dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            self.cache[0] = x
            self.cache[1].copy_(x * x)
            return self.cache.sum(0)
