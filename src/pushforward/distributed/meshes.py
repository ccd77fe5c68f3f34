"""Meshes of processes: what is asked of them, and what goes between their processes."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from pushforward.errors import ArgumentTypeError, ArgumentValueError, UnsupportedError, message
from pushforward.tape.depth import run_depth
from pushforward.tape.private_functorch import functorch_level
from pushforward.trees import flatten, unflatten

Range = tuple[int, int]


def check_mesh(name: str, mesh: Any) -> None:
    """Refuse what is no mesh, and one that this process has no place in."""
    if not isinstance(mesh, DeviceMesh):
        raise ArgumentTypeError(
            message(
                name,
                "mesh",
                f"{type(mesh).__name__} {mesh!r:.60}",
                "a DeviceMesh",
                "Call torch.distributed.init_process_group(), then "
                'init_device_mesh("cpu", (torch.distributed.get_world_size(),)).',
            )
        )
    if mesh.get_coordinate() is None:
        raise ArgumentValueError(
            message(
                name,
                "mesh",
                f"{mesh}, of which this process is no part",
                "a mesh with a place for every process that calls",
                "Call it in the processes of the mesh only.",
            )
        )


def range_of(size: int, mesh: DeviceMesh) -> Range:
    """Return where the share of this process of ``size`` numbers begins and ends, as ``Shard`` has it."""
    begin, end = 0, size
    for axis, place in enumerate(mesh.get_coordinate() or ()):
        step = -(-(end - begin) // mesh.size(axis))
        begin, end = min(begin + place * step, end), min(begin + (place + 1) * step, end)
    return begin, end


def is_first(mesh: DeviceMesh) -> bool:
    """Tell whether this is the first process of a mesh."""
    return not any(mesh.get_coordinate() or ())


def distributed(
    part: Tensor, mesh: DeviceMesh, placements: list[Placement], shape: tuple[int, ...]
) -> DTensor:
    """Return the distributed tensor of ``shape`` of which this process has a part; nothing is sent."""
    stride = torch.empty(shape, device="meta").stride()
    made: DTensor = DTensor.from_local(
        part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )
    return made


def on_axis(mesh: DeviceMesh, axis: int | None) -> list[Placement]:
    """Return the placements of a tensor that is shared out along an axis; None: the same in every process."""
    return [Replicate() if axis is None else Shard(axis)] * mesh.ndim


def summed(part: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return the sum of what the processes have, in every one of them. Autograd flows through."""
    return distributed(
        part.contiguous(), mesh, [Partial()] * mesh.ndim, tuple(part.shape)
    ).full_tensor()


class _Entered(torch.autograd.Function):
    """The identity of tensors that every process has, whose cotangents are summed over the processes.

    One node for all: were there one for each, processes whose shares differ might sum in different orders.
    """

    @staticmethod
    def forward(mesh: DeviceMesh, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors."""
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the mesh."""
        ctx.mesh = inputs[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        """Sum."""
        return None, *[summed(c, ctx.mesh) for c in cotangents]


def entered(name: str, mesh: DeviceMesh, tree: Any) -> tuple[Any, Tensor | None]:
    """Return arguments as plain tensors that are the same in every process, and what keeps backward passes together.

    Each process computes its share from them; where they require grad, cotangents are summed over the processes. That
    takes all of them, also those whose share does not depend on the arguments: `anchored` makes it.
    """
    if functorch_level() is not None or run_depth():
        raise UnsupportedError(
            message(
                name,
                "where it is called",
                "another transform around it",
                "none, as processes with different shares would not wait for each other there",
                "Go back through its results by torch.autograd, which it keeps in step, or differentiate inside.",
            )
        )
    leaves, spec = flatten(tree)
    leaves = [_plain(name, mesh, x) for x in leaves]
    followed = [isinstance(x, Tensor) and x.requires_grad for x in leaves]
    if not (any(followed) and torch.is_grad_enabled()):
        return unflatten(leaves, spec), None
    apply: Any = _Entered.apply
    found = apply(
        mesh, *[x for x, is_followed in zip(leaves, followed, strict=True) if is_followed]
    )
    anchor = functools.reduce(torch.add, map(_nothing_of, found))
    rest = iter(found)
    leaves = [next(rest) if is_f else x for x, is_f in zip(leaves, followed, strict=True)]
    return unflatten(leaves, spec), anchor


def _nothing_of(tensor: Tensor) -> Tensor:
    """Return -0.0, which no sum shows, with a history that leads to the tensor."""
    end = tensor.reshape(-1)[:1].sum()
    end = end.real if end.is_complex() else end
    never = torch.zeros((), dtype=torch.bool, device=end.device)
    return torch.where(never, end, torch.full_like(end, -0.0))


def anchored(tensor: Tensor, anchor: Tensor | None) -> Tensor:
    """Return the same numbers, with a history that leads to the arguments."""
    return tensor if anchor is None else tensor + anchor.to(tensor.dtype)


def _plain(name: str, mesh: DeviceMesh, x: Any) -> Any:
    if not isinstance(x, DTensor):
        return x
    if x.device_mesh != mesh or not all(p.is_replicate() for p in x.placements):
        raise ArgumentValueError(
            message(
                name,
                "an argument that is a DTensor",
                f"one that is {x.placements} on {x.device_mesh}",
                "one that is the same in every process of the mesh",
                "Use x.redistribute(mesh, [Replicate()] * mesh.ndim), or distributed.vmap for a batch.",
            )
        )
    return x.to_local()


def of_first(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return what every process has, so that only the first one's history counts when cotangents are summed."""
    if not tensor.requires_grad or is_first(mesh):
        return tensor
    never = torch.zeros((), dtype=torch.bool, device=tensor.device)
    return torch.where(never, tensor, tensor.detach())
