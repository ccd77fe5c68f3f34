"""Sparse tensors that depend on the inputs: stood for by their places, which are constants, and their values.

Every operator on one is done on its values by ordinary dense operators, so that only those are ever differentiated:
PyTorch's own second derivatives of sparse operators lack terms. What is not listed here is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from pushforward.tape.coordinates import Coordinates, refused
from pushforward.tape.metadata import METADATA
from pushforward.tape.private_functorch import is_wrapped
from pushforward.tape.private_torch import make_wrapper

LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


# What can be done with one; filled by `sparse_operators`.
FUNCTIONS: dict[Any, Callable[..., Any]] = {}


class SparseStandIn(Tensor):
    """Stands for a sparse tensor while the function runs."""

    _coordinates: Coordinates

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
        handler = FUNCTIONS.get(func)
        if handler is not None:
            return handler(*args, **kwargs)
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        raise refused(name, "a sparse tensor", "one of its few operators")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Refuse what came past ``__torch_function__``."""
        raise refused(str(func), "a sparse tensor", "one of its few operators")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Show places and values."""
        return f"SparseStandIn({self._coordinates!r})"


def standing_for(coordinates: Coordinates) -> Tensor:
    """Return the tensor that stands for these places and values: a real one if nothing is followed."""
    values = coordinates.values
    if not values.requires_grad and not is_wrapped(values):
        return _real(coordinates)
    made: SparseStandIn = make_wrapper(
        SparseStandIn, coordinates.shape, dtype=values.dtype, device=values.device
    )
    made._coordinates = coordinates
    return made


def _real(coordinates: Coordinates) -> Tensor:
    coo = torch.sparse_coo_tensor(
        coordinates.indices, coordinates.values, coordinates.shape, check_invariants=False
    )
    if coordinates.layout is not torch.sparse_coo:
        return coo.to_sparse(layout=coordinates.layout)
    return coo.coalesce() if coordinates.is_coalesced else coo


def with_real_ones(tree: Any) -> Any:
    """Return what the function returned with real sparse tensors."""
    return pytree.tree_map_only(SparseStandIn, lambda x: _real(x._coordinates), tree)


def coordinates_of(tensor: Any) -> Coordinates:
    """Return places and values of a sparse tensor, of a real one, too."""
    if isinstance(tensor, SparseStandIn):
        return tensor._coordinates
    if tensor.layout not in LAYOUTS or (tensor.layout is not torch.sparse_coo and tensor.ndim > 2):
        raise refused("an operator", str(tensor.layout), "COO, or CSR and CSC without batches")
    coo = tensor if tensor.layout is torch.sparse_coo else tensor.to_sparse_coo()
    return Coordinates(
        coo._indices(), coo._values(), tuple(coo.shape), tensor.layout, coo.is_coalesced()
    )


def is_sparse(value: Any) -> bool:
    """Tell whether a value is a sparse tensor, or stands for one."""
    return isinstance(value, SparseStandIn) or (
        isinstance(value, Tensor) and value.layout in LAYOUTS
    )
