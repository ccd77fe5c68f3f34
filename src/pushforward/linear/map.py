"""What every linear map can do."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pushforward.linear.axes import Pairs, Shape, shape_text
from pushforward.linear.block import Block

Pattern = tuple[Tensor, Tensor]  # (rows, cols): flat output and input positions that may be nonzero


@dataclasses.dataclass(slots=True)
class AbstractLinearMap:
    """The derivative of one primitive, from one input to one output, at one point.

    A map is R-linear. ``pull`` is its adjoint for the real inner product Re⟨a, b⟩ = Re Σ conj(a)·b, which is
    the convention of ``torch.autograd`` for complex numbers.

    Every kind defines the methods below. No ``abc.ABC``: asking for an instance of one takes five times longer.
    """

    in_shape: Shape
    out_shape: Shape

    def push(self, block: Block) -> Block:
        """Return the block of the output, from that of the input."""
        raise NotImplementedError

    def pull(self, block: Block) -> Block:
        """Return the cotangent block of the input, from that of the output."""
        raise NotImplementedError

    def pattern(self) -> Pattern:
        """Return where the Jacobian may be nonzero, as flat (rows, cols) without repetition."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Show kind and shapes on one line."""
        return f"{type(self).__name__}({shape_text(self.out_shape)} ← {shape_text(self.in_shape)})"


def positions(shape: Shape) -> Tensor:
    """Return the flat position of every element, in an array of ``shape``."""
    size = 1
    for n in shape:
        size *= n
    return torch.arange(size).reshape(shape)


def broadcast_pattern(in_shape: Shape, out_shape: Shape) -> Pattern:
    """Return the pattern of a map that goes element by element, broadcasting the input."""
    return positions(out_shape).flatten(), positions(in_shape).expand(out_shape).flatten()


def dense_pattern(in_shape: Shape, out_shape: Shape, kept: Pairs) -> Pattern:
    """Return the pattern of a map that mixes everything but the ``kept`` (input axis, output axis) pairs."""
    in_ndim, out_ndim = len(in_shape), len(out_shape)
    rows = positions(out_shape).reshape(out_shape + (1,) * in_ndim)
    cols = positions(in_shape).reshape((1,) * out_ndim + in_shape)
    rows, cols = torch.broadcast_tensors(rows, cols)
    mask = torch.ones_like(rows, dtype=torch.bool)
    for in_axis, out_axis in kept:
        eye = torch.eye(in_shape[in_axis], dtype=torch.bool)
        shape = [1] * (out_ndim + in_ndim)
        shape[out_axis] = shape[out_ndim + in_axis] = in_shape[in_axis]
        mask = mask & eye.reshape(shape)
    return rows[mask], cols[mask]
