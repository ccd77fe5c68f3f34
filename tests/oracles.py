"""Derivatives by means other than pushforward, for tests to compare with.

Central differences in float64 see only values: they share no fault with any engine.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# The step that balances truncation (h²) against rounding (eps/h) in float64: about eps ** (1/3).
STEP = 6e-6
# Truncation plus rounding at STEP is below 1e-9 for functions with derivatives of order 1.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}


def central_jacobian(func: Callable[..., Tensor], *args: Tensor, argnum: int = 0) -> Tensor:
    """Return the Jacobian of ``func`` for one real float64 argument, shape ``(*out, *in)``.

    ``func`` gets fresh copies of the arguments at every call, so it may write into them.
    """
    x = args[argnum].detach()
    assert x.dtype == torch.float64, f"central differences need float64, got {x.dtype}"
    columns = []
    for index in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=x.dtype)
        step[index] = STEP
        columns.append(_difference(func, args, argnum, step.reshape(x.shape)))
    if not columns:
        out = func(*copies(args))
        return torch.zeros((*out.shape, *x.shape), dtype=torch.promote_types(out.dtype, x.dtype))
    return torch.stack(columns, dim=-1).reshape((*columns[0].shape, *x.shape))


def central_jvp(
    func: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor]
) -> Tensor:
    """Return the derivative of ``func`` at ``primals`` along ``tangents``."""
    there = [x.detach() + STEP * t for x, t in zip(primals, tangents, strict=True)]
    back = [x.detach() - STEP * t for x, t in zip(primals, tangents, strict=True)]
    return (func(*there) - func(*back)).detach() / (2 * STEP)


def assert_close(actual: Tensor, expected: Tensor, **tolerances: float) -> None:
    """Compare a result with central differences: shape exactly, values within ``TOLERANCE``."""
    torch.testing.assert_close(
        actual.detach(), expected.detach(), check_dtype=False, **(TOLERANCE | tolerances)
    )


def assert_owned(jac: Tensor) -> None:
    """A result is a plain, contiguous tensor that owns its memory, no more, and can be written."""
    assert type(jac) is Tensor
    assert jac.is_contiguous()
    assert jac.untyped_storage().nbytes() == jac.numel() * jac.element_size()
    expected = jac.detach().clone() + 1
    jac.detach().add_(1)
    assert torch.equal(jac.detach(), expected)
    jac.detach().sub_(1)


def copies(args: Sequence[Tensor]) -> list[Tensor]:
    """Detached copies of tensors; anything else as it is."""
    return [a.detach().clone() if isinstance(a, Tensor) else a for a in args]


def _difference(
    func: Callable[..., Tensor], args: Sequence[Tensor], argnum: int, step: Tensor
) -> Tensor:
    there, back = copies(args), copies(args)
    there[argnum] = there[argnum] + step
    back[argnum] = back[argnum] - step
    return (func(*there).detach() - func(*back).detach()) / (2 * STEP)
