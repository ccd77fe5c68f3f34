"""The private names of ``torch.distributed.tensor``, which is never imported here: it is there if somebody uses it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pushforward.tape.private_torch import Node

_PACKAGE = "torch.distributed.tensor"


def tensors_module() -> Any:
    """Return ``torch.distributed.tensor`` if it was imported, and not just by another thread, else None."""
    module = sys.modules.get(_PACKAGE)
    return module if hasattr(module, "DTensor") else None


_KINDS = {
    ("torch.distributed.tensor", "_FromTorchTensor"): "from_local",
    ("torch.distributed.tensor", "_ToTorchTensor"): "to_local",
    ("torch.distributed.tensor", "Redistribute"): "identity",
    ("torch.distributed.tensor", "NestedRedistribute"): "identity",
    # Of fully_shard: its backward reduces what gradients the parameters have.
    ("torch.distributed.fsdp", "RegisterPostBackwardFunction"): "identity",
}


def boundary_kind(function: Any) -> str | None:
    """Return what an ``autograd.Function`` of ``torch.distributed`` does, None for one that is called as it is.

    ``'from_local'`` makes distributed tensors, ``'to_local'`` takes them apart, ``'identity'`` is one in its tensors.
    """
    return _KINDS.get((".".join(function.__module__.split(".")[:3]), function.__name__))


def is_housekeeping(hook: Callable[..., Any]) -> bool:
    """Tell whether a hook is one of ``fully_shard``, which fetches parameters for PyTorch's engine."""
    return (getattr(hook, "__module__", None) or "").startswith("torch.distributed.fsdp")


def is_freed(tensor: Tensor) -> bool:
    """Tell whether the memory of a tensor was given back, as ``fully_shard`` does with parameters after the forward."""
    local = getattr(tensor, "_local_tensor", tensor)
    if local.layout is not torch.strided or not local.numel():
        return False
    return local.untyped_storage().size() == 0


def made_by(node: Node) -> tuple[Any, tuple[Any, ...], tuple[Any, ...] | None]:
    """Return mesh and placements with which ``from_local`` was called, and those of cotangents if they were given."""
    given = getattr(node, "grad_placements", None)  # not before PyTorch 2.12
    return node.forward_input_device_mesh, tuple(node.forward_input_placements), given


def taken_from(node: Node) -> tuple[Any, tuple[Any, ...], tuple[Any, ...] | None]:
    """Return mesh and placements of what ``to_local`` was called on, and those of cotangents if they were given."""
    spec, given = node.dtensor_spec, node.grad_placements
    return spec.mesh, tuple(spec.placements), None if given is None else tuple(given)


@contextlib.contextmanager
def plain_tensors_replicated() -> Iterator[None]:
    """Let operators take plain tensors beside distributed ones, as tensors that are the same in every process.

    PyTorch's ``implicit_replication`` does the same, and leaves it off where it was on.
    """
    module = tensors_module()
    if module is None:
        yield
        return
    dispatcher = module.DTensor._op_dispatcher
    before = dispatcher._allow_implicit_replication
    dispatcher._allow_implicit_replication = True
    try:
        yield
    finally:
        dispatcher._allow_implicit_replication = before


def waited_for(tensor: Tensor) -> Tensor:
    """Return what an asynchronous collective gives, once it is there; any other tensor as it is."""
    wait: Callable[[], Tensor] | None = getattr(tensor, "wait", None)
    return tensor if wait is None else wait()
