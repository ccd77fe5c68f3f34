"""Sparse tensors inside a recorded function: places, which are constants, and traced values.

Every operator on one is done on its values by ordinary dense operators, so that only those are ever
differentiated. What is not listed here is refused, never computed without its derivative.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import UnsupportedError
from pushforward.recording import functional
from pushforward.recording.metadata import METADATA
from pushforward.recording.tracer import Tracer

aten = torch.ops.aten

_LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """A sparse tensor as places and values; places that occur several times add up."""

    indices: Tensor  # (sparse axes, values): integers
    values: Tensor  # (values, *dense axes): may be traced
    shape: tuple[int, ...]
    layout: torch.layout = torch.sparse_coo
    is_coalesced: bool = False  # sorted, each place once
    source: Tensor | None = None  # the dense tensor it was made from: also its zeros are traced

    @property
    def num_sparse(self) -> int:
        """How many axes are sparse."""
        return self.indices.shape[0]

    @property
    def flat(self) -> Tensor:
        """Return the flat place of every value within the sparse axes."""
        return _ravel(self.indices, self.shape[: self.num_sparse])

    def with_values(self, values: Tensor) -> Coordinates:
        """Return other values at the same places."""
        return dataclasses.replace(self, values=values, source=None)

    def coalesced(self) -> Coordinates:
        """Add up what stands at the same place, and sort."""
        if self.is_coalesced:
            return self
        places, slots = torch.unique(self.flat, return_inverse=True)
        zeros = self.values.new_zeros((places.shape[0], *self.values.shape[1:]))
        indices = _unravel(places, self.shape[: self.num_sparse])
        values = zeros.index_add(0, slots, self.values)
        return dataclasses.replace(self, indices=indices, values=values, is_coalesced=True)

    def dense(self) -> Tensor:
        """Return the dense tensor."""
        if self.source is not None:
            return self.source.clone()
        sizes = self.shape[: self.num_sparse]
        zeros = self.values.new_zeros((math.prod(sizes), *self.values.shape[1:]))
        return zeros.index_add(0, self.flat, self.values).reshape(self.shape)

    def matrix(self) -> Coordinates:
        """Return itself if it is a matrix of numbers."""
        if len(self.shape) != 2 or self.num_sparse != 2:
            raise _refused(
                "a product", f"a sparse tensor of shape {self.shape}", "a matrix without dense axes"
            )
        return self

    def transposed(self) -> Coordinates:
        """Exchange the two sparse axes of a matrix."""
        self.matrix()
        source = None if self.source is None else self.source.t()
        swapped = {torch.sparse_csr: torch.sparse_csc, torch.sparse_csc: torch.sparse_csr}
        return Coordinates(
            self.indices.flip(0),
            self.values,
            self.shape[::-1],
            swapped.get(self.layout, self.layout),
            source=source,
        )

    def times(self, other: Tensor) -> Tensor:
        """Return the product with a dense matrix or vector."""
        rows, columns = self.matrix().indices
        values = self.values if other.ndim == 1 else self.values.unsqueeze(1)
        terms = values * other.index_select(0, columns)
        zeros = terms.new_zeros((self.shape[0], *terms.shape[1:]))
        return zeros.index_add(0, rows, terms)

    def at_places(self, dense: Tensor) -> Tensor:
        """Return the entries of a dense tensor at the places of the values."""
        return dense.expand(self.shape)[tuple(self.indices)]


def _ravel(indices: Tensor, sizes: Sequence[int]) -> Tensor:
    flat = indices.new_zeros(indices.shape[1:])
    for index, n in zip(indices, sizes, strict=True):
        flat = flat * n + index
    return flat


def _unravel(places: Tensor, sizes: Sequence[int]) -> Tensor:
    rows = []
    for n in reversed(sizes):
        rows.append(places % max(n, 1))
        places = places // max(n, 1)
    return torch.stack(rows[::-1]) if rows else places.new_zeros((0, places.shape[0]))


class SparseTracer(Tracer):
    """Stands for a sparse tensor with traced values; to the outside its derivative is that of its dense form."""

    _coordinates: Coordinates

    @property
    def _primal(self) -> Tensor:  # type: ignore[override]
        return _of_primal(self._coordinates, self._recorder)

    @property
    def _payload(self) -> Any:
        dense: Any = self._coordinates.dense()
        return dense._payload if self._recorder.is_mine(dense) else None

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Do on the values what can be done there; refuse the rest."""
        kwargs = kwargs or {}
        handler = _FUNCTIONS.get(func)
        if handler is not None:
            return handler(*args, **kwargs)
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        raise _refused(name, "a sparse tensor with traced values", "one of its few operators")

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        """Show places and values."""
        return f"SparseTracer({self._coordinates!r})"


def _refused(operation: str, got: str, expected: str) -> UnsupportedError:
    return UnsupportedError(
        f"sparse: {operation} of a sparse tensor that depends on the inputs: got {got}, expected {expected}. "
        "Use .to_dense() or .coalesce().values() first, or build the sparse tensor afterwards."
    )


def _of_primal(coordinates: Coordinates, recorder: Any) -> Tensor:
    values = recorder.unwrap(coordinates.values)
    coo = torch.sparse_coo_tensor(coordinates.indices, values, coordinates.shape)
    if coordinates.layout is torch.sparse_csr:
        return coo.to_sparse_csr()
    if coordinates.layout is torch.sparse_csc:
        return coo.to_sparse_csc()
    return coo.coalesce() if coordinates.is_coalesced else coo


def traced(coordinates: Coordinates) -> Tensor:
    """Return the tensor that stands for these places and values: a real one if nothing is traced."""
    values = coordinates.values
    if not isinstance(values, Tracer):
        coo = torch.sparse_coo_tensor(coordinates.indices, values, coordinates.shape)
        return (
            coo
            if coordinates.layout is torch.sparse_coo
            else coo.to_sparse(layout=coordinates.layout)
        )
    recorder = values._recorder
    tracer: Any = torch.Tensor._make_wrapper_subclass(
        SparseTracer, coordinates.shape, dtype=values.dtype, device=values.device
    )
    tracer._coordinates = coordinates
    tracer._recorder = recorder
    return tracer  # type: ignore[no-any-return]


def _coordinates(tensor: Any) -> Coordinates:
    """Return places and values of a sparse tensor, traced or not."""
    if isinstance(tensor, SparseTracer):
        return tensor._coordinates
    if tensor.layout not in _LAYOUTS or (tensor.layout is not torch.sparse_coo and tensor.ndim > 2):
        raise _refused("an operator", str(tensor.layout), "COO, or CSR and CSC without batches")
    coo = tensor if tensor.layout is torch.sparse_coo else tensor.to_sparse_coo()
    return Coordinates(
        coo._indices(), coo._values(), tuple(coo.shape), tensor.layout, coo.is_coalesced()
    )


def _is_sparse(value: Any) -> bool:
    return isinstance(value, SparseTracer) or (
        isinstance(value, Tensor) and not isinstance(value, Tracer) and value.layout in _LAYOUTS
    )


# Makers


def _from_dense(x: Tensor, layout: torch.layout, sparse_dim: int | None = None) -> Tensor:
    if layout not in _LAYOUTS:
        raise _refused("conversion", str(layout), "COO, CSR or CSC")
    present = x != 0
    axes = x.ndim if sparse_dim is None else sparse_dim
    if axes < x.ndim:
        present = present.flatten(axes).any(-1)
    indices = present.nonzero().t().contiguous()
    if layout is torch.sparse_csc:
        indices = present.t().nonzero().t().flip(0)
    values = x[tuple(indices)]
    shape = tuple(x.shape)
    return traced(Coordinates(indices, values, shape, layout, layout is torch.sparse_coo, x))


def _to_sparse(
    x: Any,
    sparse_dim: int | None = None,
    *,
    layout: torch.layout | None = None,
    blocksize: Any = None,
    dense_dim: int | None = None,
) -> Tensor:
    layout = torch.sparse_coo if layout is None else layout
    if isinstance(x, SparseTracer):
        coordinates = x._coordinates.coalesced()
        return traced(dataclasses.replace(coordinates, layout=layout))
    if dense_dim is not None:
        sparse_dim = x.ndim - dense_dim
    return _from_dense(x, layout, sparse_dim)


def _converter(layout: torch.layout) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: _to_sparse(x, layout=layout)


def _coo_primitive(recorder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    _, _, size, indices, values, *_ = args
    is_coalesced = bool(kwargs.get("is_coalesced", args[5] if len(args) > 5 else False))
    places = recorder.unwrap(indices)
    return traced(Coordinates(places, values, tuple(size), is_coalesced=is_coalesced))


def _compressed_primitive(recorder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    compressed, plain, values, size, *_ = (
        recorder.unwrap(a) if i < 2 else a for i, a in enumerate(args)
    )
    layout = kwargs.get("layout", args[5] if len(args) > 5 else None)
    if layout not in _LAYOUTS or compressed.ndim != 1:
        raise _refused("a compressed tensor", str(layout), "CSR or CSC without batches")
    counts = compressed.diff()
    long = torch.arange(counts.shape[0], device=counts.device).repeat_interleave(counts)
    pair = (long, plain.long()) if layout is torch.sparse_csr else (plain.long(), long)
    return traced(Coordinates(torch.stack(pair), values, tuple(size), layout))


# Operators that make a sparse tensor of traced values: looked up before rules.
PRIMITIVES: dict[Any, Callable[[Any, tuple[Any, ...], dict[str, Any]], Tensor]] = {
    aten._sparse_coo_tensor_with_dims_and_tensors.default: _coo_primitive,
    aten.sparse_compressed_tensor.comp_plain_value_size: _compressed_primitive,
}


def _sparse_mask(x: Tensor, mask: Any) -> Tensor:
    places = _coordinates(mask)
    return traced(places.with_values(places.at_places(_densified(x))))


def _sampled_addmm(
    input: Any, mat1: Tensor, mat2: Tensor, *, beta: complex = 1, alpha: complex = 1
) -> Tensor:
    places = _coordinates(input).matrix()
    rows, columns = places.indices
    products = (mat1.index_select(0, rows) * mat2.t().index_select(0, columns)).sum(1)
    return traced(places.with_values(beta * places.values + alpha * products))


def _spdiags(
    diagonals: Tensor, offsets: Tensor, shape: Any, layout: torch.layout | None = None
) -> Tensor:
    """Take the places from the same call on an array of positions, which count from 1."""
    order = torch.arange(1, diagonals.numel() + 1).reshape(diagonals.shape)
    place = torch.sparse.spdiags(order, offsets, shape).coalesce()
    values = diagonals.reshape(-1)[place.values() - 1]
    layout = torch.sparse_coo if layout is None else layout
    return traced(Coordinates(place.indices(), values, tuple(shape), layout, True))


# Operators


def _densified(x: Any) -> Any:
    return _coordinates(x).dense() if _is_sparse(x) else x


def _product(left: Any, right: Any, reduce: str | None = None) -> Any:
    if reduce is not None and reduce != "sum":
        return _reduced_product(left, right, reduce)
    if not _is_sparse(right):
        return _coordinates(left).times(right)
    transposed = _coordinates(right).transposed()
    if not _is_sparse(left):
        result = transposed.times(left.t() if left.ndim == 2 else left)
        return result.t() if left.ndim == 2 else result
    first, second = _coordinates(left).matrix(), _coordinates(right).matrix()
    reached = first.with_values(torch.ones_like(first.values, requires_grad=False).detach())
    ones = second.with_values(torch.ones_like(second.values, requires_grad=False).detach())
    places = reached.times(ones.dense()).nonzero().t()
    values = first.times(second.dense())[tuple(places)]
    shape = (first.shape[0], second.shape[1])
    return traced(Coordinates(places, values, shape, first.layout, True))


def _reduced_product(left: Any, right: Any, reduce: str) -> Any:
    """Return the mean, the largest or the least of the terms of a product, for each row and column."""
    places = _coordinates(left).matrix()
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
    if not (_is_sparse(left) and _is_sparse(right)):
        return torch.add(_densified(left), _densified(right), alpha=alpha)
    first, second = _coordinates(left), _coordinates(right)
    indices = torch.cat([first.indices, second.indices], 1)
    values = torch.cat([first.values, alpha * second.values])
    return traced(Coordinates(indices, values, first.shape, first.layout).coalesced())


def _subtracted(left: Any, right: Any, *, alpha: complex = 1) -> Any:
    return _added(left, right, alpha=-alpha)


def _multiplied(left: Any, right: Any) -> Any:
    sparse, other = (left, right) if _is_sparse(left) else (right, left)
    coordinates = _coordinates(sparse).coalesced()
    if isinstance(other, Tensor) and other.ndim:
        other = coordinates.at_places(_densified(other))
    return traced(coordinates.with_values(coordinates.values * other))


def _divided(left: Any, right: Any) -> Any:
    if not _is_sparse(left) or _is_sparse(right):
        raise _refused("a division", "a sparse divisor", "a sparse tensor over a number or tensor")
    coordinates = _coordinates(left).coalesced()
    if isinstance(right, Tensor) and right.ndim:
        right = coordinates.at_places(right)
    return traced(coordinates.with_values(coordinates.values / right))


def _summed(x: Any, dim: Any = None, dtype: torch.dtype | None = None) -> Any:
    coordinates = _coordinates(x)
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
    return traced(Coordinates(coordinates.indices[kept], values, shape).coalesced())


def _softmax(x: Any, dim: int, dtype: torch.dtype | None = None, *, log: bool = False) -> Any:
    """Normalize the values present along ``dim``; what is absent counts as minus infinity."""
    coordinates = _coordinates(x).coalesced()
    values = coordinates.values if dtype is None else coordinates.values.to(dtype)
    axis = dim % len(coordinates.shape)
    if coordinates.num_sparse != len(coordinates.shape):
        raise _refused("softmax", "a tensor with dense axes", "sparse axes only")
    others = [a for a in range(len(coordinates.shape)) if a != axis]
    sizes = [coordinates.shape[a] for a in others]
    group = _ravel(coordinates.indices[others], sizes)
    zeros = values.new_zeros(math.prod(sizes))
    largest = zeros.scatter_reduce(0, group, values, "amax", include_self=False).detach()
    shifted = values - largest[group]
    powers = shifted.exp()
    totals = zeros.index_add(0, group, powers)[group]
    return traced(coordinates.with_values(shifted - totals.log() if log else powers / totals))


def _log_softmax(x: Any, dim: int, dtype: torch.dtype | None = None) -> Any:
    return _softmax(x, dim, dtype, log=True)


def _on_values(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function with f(0) = 0 applied to the values."""

    def apply(x: Any, *args: Any, **kwargs: Any) -> Tensor:
        coordinates = _coordinates(x).coalesced()
        return traced(coordinates.with_values(function(coordinates.values, *args, **kwargs)))

    return apply


def _power(x: Any, exponent: Any) -> Tensor:
    if isinstance(exponent, Tensor) or not exponent > 0:
        raise _refused("a power", f"exponent {exponent!r}", "a positive number")
    return _on_values(torch.pow)(x, exponent)


def _compressed(x: Any, axis: int) -> Tensor:
    coordinates = _coordinates(x)
    counts = torch.bincount(coordinates.indices[axis], minlength=coordinates.shape[axis])
    return torch.nn.functional.pad(counts.cumsum(0), [1, 0])


def _transposed(x: Any, *dims: Any) -> Tensor:
    return traced(_coordinates(x).transposed())


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

    put(lambda x: _coordinates(x).layout, t.layout.__get__)
    put(lambda x: _coordinates(x).layout is torch.sparse_coo, t.is_sparse.__get__)
    put(lambda x: _coordinates(x).layout is torch.sparse_csr, t.is_sparse_csr.__get__)
    put(lambda x: _coordinates(x).is_coalesced, t.is_coalesced)
    put(lambda x: _coordinates(x).num_sparse, t.sparse_dim)
    put(lambda x: len(_coordinates(x).shape) - _coordinates(x).num_sparse, t.dense_dim)
    put(lambda x: _coordinates(x).values.shape[0], t._nnz)
    put(lambda x: _coordinates(x).values, t.values, t._values)
    put(lambda x: _coordinates(x).indices, t.indices, t._indices)
    put(lambda x: _compressed(x, 0), t.crow_indices)
    put(lambda x: _compressed(x, 1), t.ccol_indices)
    put(lambda x: _coordinates(x).indices[1], t.col_indices)
    put(lambda x: _coordinates(x).indices[0], t.row_indices)
    put(lambda x, *args, **kwargs: _coordinates(x).dense(), t.to_dense)
    put(lambda x: traced(_coordinates(x).coalesced()), t.coalesce)
    put(lambda x, **kwargs: traced(_coordinates(x)), *_method("clone"))
    put(_on_values(torch.detach), *_method("detach"))
    put(_to_sparse, t.to_sparse)
    put(_converter(torch.sparse_coo), t.to_sparse_coo)
    put(_converter(torch.sparse_csr), t.to_sparse_csr)
    put(_converter(torch.sparse_csc), t.to_sparse_csc)
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


_FUNCTIONS = _table()


def _call(
    handler: Callable[..., Any],
    recorder: Any,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    return handler(*args, **kwargs)


def _install() -> None:
    """Catch the functions that make a sparse tensor out of a dense traced one."""
    t: Any = torch.Tensor
    names = ("to_sparse", "to_sparse_coo", "to_sparse_csr", "to_sparse_csc")
    makers = [*(getattr(t, name) for name in names), t.sparse_mask]
    makers += [torch.sparse.sampled_addmm, torch.sparse.spdiags]
    for maker in makers:
        handler = _FUNCTIONS[maker]
        functional.SPECIAL[maker] = functools.partial(_call, handler)


_install()
