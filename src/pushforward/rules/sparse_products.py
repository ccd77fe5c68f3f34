"""Products of a dense, differentiated operand with a sparse matrix that is a constant."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, kept_axes, with_size
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.take_along import TakeAlong
from pushforward.linear.map import AbstractLinearMap, Pattern
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten


@dataclasses.dataclass(slots=True, repr=False)
class SparseProduct(General):
    """Multiply one axis by a sparse matrix.

    Math: ẏ = A ẋ along ``axis``, x̄ = Aᴴ ȳ. Jacobian: the places of A; the other axes stay tied.
    """

    matrix: Tensor | None = None  # COO, (out, in)
    axis: int = 0

    def pattern(self) -> Pattern:
        """Place the matrix at every position of the other axes."""
        assert self.matrix is not None
        rows, columns = self.matrix._indices().cpu()
        out, into = (_moved_positions(s, self.axis) for s in (self.out_shape, self.in_shape))
        return out[rows].flatten(), into[columns].flatten()


def _moved_positions(shape: Shape, axis: int) -> Tensor:
    count = 1
    for n in shape:
        count *= n
    place = torch.arange(count).reshape(shape).movedim(axis, 0)
    return place.reshape(shape[axis], count // max(shape[axis], 1))


def product_along(in_shape: Shape, axis: int, matrix: Tensor) -> AbstractLinearMap:
    """Return the map that multiplies ``axis`` by a sparse matrix (out, in) of any layout."""
    coo = matrix.to_sparse_coo().coalesce()
    back = coo.t().coalesce()
    if coo.is_complex():
        back = torch.sparse_coo_tensor(back.indices(), back.values().conj(), back.shape)
    out_shape = with_size(in_shape, axis, coo.shape[0])

    def multiply(by: Tensor, seeds: Tensor) -> Tensor:
        moved = seeds.movedim(axis + 1, 0)
        columns = moved.reshape(moved.shape[0], -1) if moved.numel() else moved.flatten(1)
        product: Tensor = torch.sparse.mm(by.to(columns.dtype), columns)
        return product.reshape(by.shape[0], *moved.shape[1:]).movedim(0, axis + 1)

    return SparseProduct(
        in_shape,
        out_shape,
        lambda seeds: multiply(coo, seeds),
        lambda seeds: multiply(back, seeds),
        kept_axes(len(in_shape), axis),
        uniform=True,
        matrix=coo,
        axis=axis,
    )


def sparse_contraction(
    in_shape: Shape, in_letters: str, const: Tensor, const_letters: str, out_letters: str
) -> AbstractLinearMap | None:
    """Return the map of a product with a sparse matrix ``const``; None if it is no matrix."""
    contracted = [c for c in in_letters if c in const_letters and c not in out_letters]
    if const.ndim != 2 or len(contracted) != 1:
        return None
    axis = in_letters.index(contracted[0])
    matrix = const if const_letters[1] == contracted[0] else const.to_sparse_coo().t()
    return product_along(in_shape, axis, matrix)


@with_output
def scaled_summand(
    self: Tensor, mat1: Tensor, mat2: Tensor, *, beta: complex = 1, alpha: complex = 1, out: Tensor
) -> AbstractLinearMap:
    """Return the map of what a product is added to: beta · self."""
    return Scale(tuple(self.shape), tuple(out.shape), beta)


def _sparse_addmm_right(
    self: Tensor, mat1: Tensor, mat2: Tensor, *, beta: complex = 1, alpha: complex = 1
) -> AbstractLinearMap:
    product = product_along(tuple(mat2.shape), 0, mat1)
    return compose(product, Scale(product.out_shape, product.out_shape, alpha))


rule(aten._sparse_addmm, scaled_summand, None, _sparse_addmm_right)


@with_output
def _reduced_right(
    self: Tensor, other: Tensor, reduce: str, *, out: tuple[Tensor, Tensor]
) -> tuple[AbstractLinearMap, None]:
    """Return the map of a product whose terms are summed, averaged, or compared in each row."""
    coo = self.detach().to_sparse_coo().coalesce()
    (rows, columns), values = coo.indices(), coo.values()
    shape, out_shape = tuple(other.shape), tuple(out[0].shape)
    if reduce == "sum":
        return product_along(shape, 0, coo), None
    ones = torch.ones_like(values)
    if reduce == "mean":
        count = values.new_zeros(self.shape[0]).index_add(0, rows, ones).clamp(min=1)
        share = torch.sparse_coo_tensor(coo.indices(), values / count[rows], coo.shape)
        return product_along(shape, 0, share), None
    # The first of equal terms counts, as in PyTorch.
    hits = values.unsqueeze(1) * other.detach().index_select(0, columns) == out[0][rows]
    number = torch.arange(len(values), device=values.device).unsqueeze(1)
    number = torch.where(hits, number, len(values))
    none = torch.full(out_shape, len(values), device=values.device)
    first = none.scatter_reduce(0, rows.unsqueeze(1).expand_as(number), number, "amin")
    is_empty = first == len(values)
    first = torch.where(is_empty, 0, first)
    source = torch.where(is_empty, -1, columns[first])
    taken = TakeAlong(shape, out_shape, 0, source)
    return compose(taken, Scale(out_shape, out_shape, values[first])), None


rule(aten._sparse_mm_reduce_impl, None, _reduced_right)
