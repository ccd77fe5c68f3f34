"""PyTorch's in-place functions, each with the one that gives the new values instead of writing them."""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_NUMBERS = (
    "add", "sub", "mul", "truediv", "div", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift", "matmul",
)  # fmt: skip
_LAYOUTS = ("squeeze_", "unsqueeze_", "transpose_", "t_", "swapaxes_", "swapdims_", "as_strided_")
# These change no elements.
_NO_WRITES = {
    "requires_grad_", "detach_", "retain_grad_", "share_memory_", "rename_", "resize_", "resize_as_", "set_",
    "sparse_resize_", "sparse_resize_and_clear_", *_LAYOUTS,
}  # fmt: skip


def _filled(target: Tensor, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(target.dtype).expand(target.shape)
    return torch.full_like(target, value)


def _twins() -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name in dir(Tensor):
        if name.startswith("_") or not name.endswith("_") or name in _NO_WRITES:
            continue
        twin = getattr(Tensor, name[:-1], None)
        if isinstance(twin, types.GetSetDescriptorType):
            twin = None
        found[getattr(Tensor, name)] = twin
        if hasattr(torch, name):
            found[getattr(torch, name)] = twin
    for name, function in vars(functional).items():
        if name.endswith("_") and not name.startswith("_"):
            found[function] = getattr(functional, name[:-1], None)
    for name in _NUMBERS:
        method = getattr(Tensor, f"__i{name}__", None)
        if method is not None:
            found[method] = getattr(Tensor, f"__{name}__", None)
    for owner in (Tensor, torch):
        found[owner.zero_] = torch.zeros_like
        found[owner.fill_] = _filled
    return found


def _switched() -> dict[Any, int]:
    found = {}
    for function in vars(functional).values():
        if inspect.isfunction(function):
            names = list(inspect.signature(function).parameters)
            if "inplace" in names:
                found[function] = names.index("inplace")
    return found


TWINS = _twins()  # None: there is no such function
SWITCHED = _switched()  # functions with an argument that says whether they write, and its place
# Those that change how the tensor itself lies in memory, and nothing in memory.
LAYING_OUT = {
    getattr(owner, name) for name in _LAYOUTS for owner in (Tensor, torch) if hasattr(owner, name)
}
# Those that save nothing of what they write to.
SAVING_NOTHING = {
    Tensor.add_, Tensor.sub_, Tensor.__iadd__, Tensor.__isub__, Tensor.zero_, torch.zero_, Tensor.fill_, torch.fill_,
}  # fmt: skip
# Those that save their result, and that `vmap` has no rule for: the write counts twice, and the result may not be read.
COUNTED_TWICE = {
    getattr(owner, name)
    for name in ("hypot_", "pow_", "__ipow__", "float_power_", "ldexp_", "cumprod_")
    for owner in (Tensor, torch)
    if hasattr(owner, name)
}


def is_basic(index: Any) -> bool:
    """Tell whether an index takes a view."""
    if type(index) is not tuple:
        return type(index) in _BASIC
    for i in index:  # noqa: SIM110 (a third of the time)
        if type(i) not in _BASIC:
            return False
    return True


_BASIC = {int, slice, type(None), type(Ellipsis)}
