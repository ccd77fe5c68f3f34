"""Functions that read a tensor without computing: they are answered from the primal."""

from __future__ import annotations

from typing import Any

import torch

_PROPERTIES = (
    "shape", "dtype", "device", "layout", "ndim", "is_leaf", "requires_grad", "grad_fn", "itemsize", "nbytes",
    "is_cuda", "is_cpu", "is_sparse", "is_quantized", "is_nested", "is_meta", "is_mps", "is_mkldnn", "is_sparse_csr",
    "is_xpu", "is_xla", "is_ipu", "is_vulkan", "is_maia", "is_mtia", "names", "output_nr", "_version", "_base",
    "retains_grad", "name",
)  # fmt: skip
_METHODS = (
    "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size", "is_contiguous",
    "is_floating_point", "is_complex", "is_signed", "is_conj", "is_neg", "get_device", "is_inference", "is_pinned",
    "is_shared", "has_names", "sym_size", "dim_order", "is_same_size", "is_set_to", "__len__", "is_nonzero",
)  # fmt: skip
_FUNCTIONS = (
    "is_floating_point", "is_complex", "numel", "is_conj", "is_neg", "is_signed", "is_tensor", "get_device",
    "is_same_size", "is_inference", "is_nonzero", "result_type", "promote_types", "can_cast",
)  # fmt: skip


def _collect(names: tuple[str, ...], owner: Any) -> set[Any]:
    return {getattr(owner, name) for name in names if hasattr(owner, name)}


def _getters() -> set[Any]:
    found = set()
    for name in _PROPERTIES:
        descriptor = getattr(torch.Tensor, name, None)
        getter = getattr(descriptor, "__get__", None)
        if getter is not None:
            found.add(getter)
    return found


METADATA: dict[Any, bool] = dict.fromkeys(
    _getters() | _collect(_METHODS, torch.Tensor) | _collect(_FUNCTIONS, torch), True
)
