"""Under one ``vmap`` of ``torch.func``: tensors are taken apart, so that plain autograd records physical operators.

The tape then shows the batch as one more axis, first of all, which every block keeps; sweeps run on plain tensors, out
of sight of ``torch.func``.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from pushforward.tape.private_torch import (
    add_batch_axis,
    batch_axis_at,
    functorch_stack,
    unwrapped,
    vmap_size,
    without_functorch,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """The one level of ``torch.func`` that is on: a ``vmap``."""

    level: int
    size: int

    def physical(self, tensor: Tensor) -> Tensor:
        """Return the tensor with the batch as its first axis; one that is the same for all is repeated."""
        axis = batch_axis_at(tensor, self.level)
        with without_functorch():
            if axis is None:
                return tensor.expand((self.size, *tensor.shape))
            inner: Tensor = unwrapped(tensor)
            return inner.movedim(axis, 0) if axis else inner

    def wrapped(self, physical: Tensor) -> Tensor:
        """Return a tensor whose first axis is the batch as the function under ``vmap`` sees it."""
        tensor: Tensor = add_batch_axis(physical, 0, self.level)
        return tensor


def current_batch() -> Batch | None:
    """Return the ``vmap`` that is on, if it is all of ``torch.func`` that is."""
    stack = functorch_stack()
    if stack is None or len(stack) != 1:
        return None
    size = vmap_size(stack[0])
    return None if size is None else Batch(stack[0].level(), size)
