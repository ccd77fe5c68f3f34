"""What can be done with sparse tensors that depend on the inputs: each operator by dense ones on the values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.tape.coordinates import Coordinates, ravel, refused
from pushforward.tape.sparse_tensors import (
    FUNCTIONS,
    LAYOUTS,
    coordinates_of,
    is_sparse,
    standing_for,
)

# Makers


def _from_dense(x: Tensor, layout: torch.layout, sparse_dim: int | None = None) -> Tensor:
    if layout not in LAYOUTS:
        raise refused("conversion", str(layout), "COO, CSR or CSC")
    present = x != 0
    axes = x.ndim if sparse_dim is None else sparse_dim
    if axes < x.ndim:
        present = present.flatten(axes).any(-1)
    indices = present.nonzero().t().contiguous()
    if layout is torch.sparse_csc:
        indices = present.t().nonzero().t().flip(0)
    values = x[tuple(indices)]
    shape = tuple(x.shape)
    return standing_for(Coordinates(indices, values, shape, layout, layout is torch.sparse_coo, x))


def _to_sparse(
    x: Any,
    sparse_dim: int | None = None,
    *,
    layout: torch.layout | None = None,
    blocksize: Any = None,
    dense_dim: int | None = None,
) -> Tensor:
    layout = torch.sparse_coo if layout is None else layout
    if is_sparse(x):
        coordinates = coordinates_of(x).coalesced()
        return standing_for(dataclasses.replace(coordinates, layout=layout))
    if blocksize is not None or layout not in LAYOUTS:
        raise refused("conversion", "blocks", "COO, CSR or CSC")
    if dense_dim is not None:
        sparse_dim = x.ndim - dense_dim
    return _from_dense(x, layout, sparse_dim)


def _converter(layout: torch.layout) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: _to_sparse(x, layout=layout)


def _blocks(x: Any, *args: Any, **kwargs: Any) -> Tensor:
    raise refused("conversion", "blocks", "COO, CSR or CSC")


def _built(place: int, func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Take places and shape from the same call on values that are constants."""

    def build(*args: Any, **kwargs: Any) -> Tensor:
        is_positional = len(args) > place
        values = args[place] if is_positional else kwargs["values"]
        constant = values.detach()
        if is_positional:
            real = func(*args[:place], constant, *args[place + 1 :], **kwargs)
        else:
            real = func(*args, **(kwargs | {"values": constant}))
        coordinates = coordinates_of(real)
        return standing_for(coordinates.with_values(values.to(real.dtype)))

    return build


def _sparse_mask(x: Tensor, mask: Any) -> Tensor:
    places = coordinates_of(mask)
    return standing_for(places.with_values(places.at_places(_densified(x))))


def _sampled_addmm(
    input: Any, mat1: Tensor, mat2: Tensor, *, beta: complex = 1, alpha: complex = 1
) -> Tensor:
    places = coordinates_of(input).matrix()
    rows, columns = places.indices
    products = (mat1.index_select(0, rows) * mat2.t().index_select(0, columns)).sum(1)
    return standing_for(places.with_values(beta * places.values + alpha * products))


def _spdiags(
    diagonals: Tensor, offsets: Tensor, shape: Any, layout: torch.layout | None = None
) -> Tensor:
    """Take the places from the same call on an array of positions, which count from 1."""
    order = torch.arange(1, diagonals.numel() + 1).reshape(diagonals.shape)
    place = torch.sparse.spdiags(order, offsets, shape).coalesce()
    values = diagonals.reshape(-1)[place.values() - 1]
    layout = torch.sparse_coo if layout is None else layout
    return standing_for(Coordinates(place.indices(), values, tuple(shape), layout, True))


# Operators


def _densified(x: Any) -> Any:
    return coordinates_of(x).dense() if is_sparse(x) else x


def _product(left: Any, right: Any, reduce: str | None = None) -> Any:
    if reduce is not None and reduce != "sum":
        return _reduced_product(left, right, reduce)
    if not is_sparse(right):
        return coordinates_of(left).times(right)
    transposed = coordinates_of(right).transposed()
    if not is_sparse(left):
        result = transposed.times(left.t() if left.ndim == 2 else left)
        return result.t() if left.ndim == 2 else result
    first, second = coordinates_of(left).matrix(), coordinates_of(right).matrix()
    reached = first.with_values(torch.ones_like(first.values, requires_grad=False).detach())
    ones = second.with_values(torch.ones_like(second.values, requires_grad=False).detach())
    places = reached.times(ones.dense()).nonzero().t()
    values = first.times(second.dense())[tuple(places)]
    shape = (first.shape[0], second.shape[1])
    return standing_for(Coordinates(places, values, shape, first.layout, True))


def _reduced_product(left: Any, right: Any, reduce: str) -> Any:
    """Return the mean, the largest or the least of the terms of a product, for each row and column."""
    places = coordinates_of(left).matrix()
    rows, columns = places.indices
    terms = places.values.unsqueeze(1) * _densified(right).index_select(0, columns)
    zeros = terms.new_zeros((places.shape[0], terms.shape[1]))
    return zeros.scatter_reduce(
        0, rows.unsqueeze(1).expand_as(terms), terms, reduce, include_self=False
    )


def _added_product(
    input: Any, mat1: Any, mat2: Any, *, beta: complex = 1, alpha: complex = 1
) -> Any:
    return _added(_scaled(input, beta), _product(mat1, mat2), alpha=alpha)


def _scaled(x: Any, factor: complex) -> Any:
    return x if factor == 1 else x * factor


def _added(left: Any, right: Any, *, alpha: complex = 1) -> Any:
    if not (is_sparse(left) and is_sparse(right)):
        return torch.add(_densified(left), _densified(right), alpha=alpha)
    first, second = coordinates_of(left), coordinates_of(right)
    indices = torch.cat([first.indices, second.indices], 1)
    values = torch.cat([first.values, alpha * second.values])
    return standing_for(Coordinates(indices, values, first.shape, first.layout).coalesced())


def _subtracted(left: Any, right: Any, *, alpha: complex = 1) -> Any:
    return _added(left, right, alpha=-alpha)


def _multiplied(left: Any, right: Any) -> Any:
    sparse, other = (left, right) if is_sparse(left) else (right, left)
    coordinates = coordinates_of(sparse).coalesced()
    if isinstance(other, Tensor) and other.ndim:
        other = coordinates.at_places(_densified(other))
    return standing_for(coordinates.with_values(coordinates.values * other))


def _divided(left: Any, right: Any) -> Any:
    if not is_sparse(left) or is_sparse(right):
        raise refused("a division", "a sparse divisor", "a sparse tensor over a number or tensor")
    coordinates = coordinates_of(left).coalesced()
    if isinstance(right, Tensor) and right.ndim:
        right = coordinates.at_places(right)
    return standing_for(coordinates.with_values(coordinates.values / right))


def _summed(x: Any, dim: Any = None, dtype: torch.dtype | None = None) -> Any:
    coordinates = coordinates_of(x)
    values = coordinates.values if dtype is None else coordinates.values.to(dtype)
    if dim is None or dim == ():
        return values.sum()
    ndim, num_sparse = len(coordinates.shape), coordinates.num_sparse
    axes = {d % ndim for d in ([dim] if isinstance(dim, int) else dim)}
    dense = [a - num_sparse + 1 for a in axes if a >= num_sparse]
    values = values.sum(dense) if dense else values
    kept = [a for a in range(num_sparse) if a not in axes]
    if not kept:
        return values.sum(0)
    shape = tuple(n for a, n in enumerate(coordinates.shape) if a not in axes)
    return standing_for(Coordinates(coordinates.indices[kept], values, shape).coalesced())


def _softmax(x: Any, dim: int, dtype: torch.dtype | None = None, *, log: bool = False) -> Any:
    """Normalize the values present along ``dim``; what is absent counts as minus infinity."""
    coordinates = coordinates_of(x).coalesced()
    values = coordinates.values if dtype is None else coordinates.values.to(dtype)
    axis = dim % len(coordinates.shape)
    if coordinates.num_sparse != len(coordinates.shape):
        raise refused("softmax", "a tensor with dense axes", "sparse axes only")
    others = [a for a in range(len(coordinates.shape)) if a != axis]
    sizes = [coordinates.shape[a] for a in others]
    group = ravel(coordinates.indices[others], sizes)
    zeros = values.new_zeros(math.prod(sizes))
    largest = zeros.scatter_reduce(0, group, values, "amax", include_self=False).detach()
    shifted = values - largest[group]
    powers = shifted.exp()
    totals = zeros.index_add(0, group, powers)[group]
    return standing_for(coordinates.with_values(shifted - totals.log() if log else powers / totals))


def _log_softmax(x: Any, dim: int, dtype: torch.dtype | None = None) -> Any:
    return _softmax(x, dim, dtype, log=True)


def _on_values(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function with f(0) = 0 applied to the values."""

    def apply(x: Any, *args: Any, **kwargs: Any) -> Tensor:
        coordinates = coordinates_of(x).coalesced()
        return standing_for(coordinates.with_values(function(coordinates.values, *args, **kwargs)))

    return apply


def _power(x: Any, exponent: Any) -> Tensor:
    if isinstance(exponent, Tensor) or not exponent > 0:
        raise refused("a power", f"exponent {exponent!r}", "a positive number")
    return _on_values(torch.pow)(x, exponent)


def _compressed(x: Any, axis: int) -> Tensor:
    coordinates = coordinates_of(x)
    counts = torch.bincount(coordinates.indices[axis], minlength=coordinates.shape[axis])
    return torch.nn.functional.pad(counts.cumsum(0), [1, 0])


def _transposed(x: Any, *dims: Any) -> Tensor:
    return standing_for(coordinates_of(x).transposed())


def _method(name: str) -> list[Any]:
    """Return the functions of this name, of ``torch`` and as methods."""
    owners = (torch, torch.Tensor)
    return [getattr(owner, name) for owner in owners if hasattr(owner, name)]


_ZERO_PRESERVING = (
    "abs", "asin", "asinh", "atan", "atanh", "ceil", "deg2rad", "erf", "erfinv", "expm1", "floor", "log1p", "neg",
    "rad2deg", "relu", "round", "sgn", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh", "trunc", "__neg__",
    "__abs__",
)  # fmt: skip


def _table() -> dict[Any, Callable[..., Any]]:
    t: Any = torch.Tensor
    sparse: Any = torch.sparse
    table: dict[Any, Callable[..., Any]] = {}

    def put(handler: Callable[..., Any], *functions: Any) -> None:
        table.update(dict.fromkeys(functions, handler))

    put(lambda x: coordinates_of(x).layout, t.layout.__get__)
    put(lambda x: coordinates_of(x).layout is torch.sparse_coo, t.is_sparse.__get__)
    put(lambda x: coordinates_of(x).layout is torch.sparse_csr, t.is_sparse_csr.__get__)
    put(lambda x: coordinates_of(x).is_coalesced, t.is_coalesced)
    put(lambda x: coordinates_of(x).num_sparse, t.sparse_dim)
    put(lambda x: len(coordinates_of(x).shape) - coordinates_of(x).num_sparse, t.dense_dim)
    put(lambda x: coordinates_of(x).values.shape[0], t._nnz)
    put(lambda x: coordinates_of(x).values, t.values, t._values)
    put(lambda x: coordinates_of(x).indices, t.indices, t._indices)
    put(lambda x: _compressed(x, 0), t.crow_indices)
    put(lambda x: _compressed(x, 1), t.ccol_indices)
    put(lambda x: coordinates_of(x).indices[1], t.col_indices)
    put(lambda x: coordinates_of(x).indices[0], t.row_indices)
    put(lambda x, *args, **kwargs: coordinates_of(x).dense(), t.to_dense)
    put(lambda x: standing_for(coordinates_of(x).coalesced()), t.coalesce)
    put(lambda x, **kwargs: standing_for(coordinates_of(x)), *_method("clone"))
    put(_on_values(torch.detach), *_method("detach"))
    put(_to_sparse, t.to_sparse)
    put(_converter(torch.sparse_coo), t.to_sparse_coo)
    put(_converter(torch.sparse_csr), t.to_sparse_csr)
    put(_converter(torch.sparse_csc), t.to_sparse_csc)
    put(_blocks, t.to_sparse_bsr, t.to_sparse_bsc)
    put(lambda x: coordinates_of(x).values.requires_grad, t.requires_grad.__get__)
    put(_sparse_mask, t.sparse_mask)
    put(_sampled_addmm, sparse.sampled_addmm)
    put(_spdiags, sparse.spdiags)
    put(_transposed, *_method("t"), *_method("transpose"), t.T.__get__, t.mT.__get__)
    for name in ("mm", "matmul", "mv", "smm", "__matmul__"):
        put(_product, *_method(name))
    put(lambda left, right: _product(right, left), t.__rmatmul__)
    put(_product, sparse.mm)
    put(_added_product, *_method("addmm"), sparse.addmm)
    put(_added, *_method("add"), t.__add__, t.__radd__)
    put(_subtracted, *_method("sub"), t.__sub__)
    put(_multiplied, *_method("mul"), t.__mul__, t.__rmul__)
    put(_divided, *_method("div"), t.__truediv__)
    put(_power, *_method("pow"), t.__pow__)
    put(_summed, *_method("sum"), torch._sparse_sum)
    put(_softmax, sparse.softmax)
    put(_log_softmax, sparse.log_softmax)
    for name in _ZERO_PRESERVING:
        for function in _method(name):
            put(_on_values(function), function)
    return table


FUNCTIONS.update(_table())

# What makes sparse tensors out of dense ones.
MAKERS: dict[Any, Callable[..., Tensor]] = {
    maker: FUNCTIONS[maker]
    for maker in (
        *(Tensor.to_sparse, Tensor.to_sparse_coo, Tensor.to_sparse_csr, Tensor.to_sparse_csc),
        *(Tensor.to_sparse_bsr, Tensor.to_sparse_bsc, Tensor.sparse_mask),
        *(torch.sparse.sampled_addmm, torch.sparse.spdiags),
    )
}
MAKERS |= {torch.sparse_coo_tensor: _built(1, torch.sparse_coo_tensor)}
MAKERS |= {
    maker: _built(2, maker)
    for maker in (torch.sparse_csr_tensor, torch.sparse_csc_tensor, torch.sparse_compressed_tensor)
}
