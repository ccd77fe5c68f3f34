"""vmap: over a batch of which each process has a part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from pushforward.distributed.meshes import distributed, on_axis
from pushforward.errors import ArgumentTypeError, ArgumentValueError, message
from pushforward.linear.axes import with_size
from pushforward.tape.private_functorch import functorch_level
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import check_function, named_after
from pushforward.trees import flatten, map_tensors, unflatten

NAME = "distributed.vmap"


@left_alone_by_dynamo
def vmap(
    func: Callable[..., Any],
    in_dims: int | tuple[int | None, ...] = 0,
    out_dims: int = 0,
    *,
    randomness: Literal["error", "same", "different"] = "error",
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """Return a function that maps ``func`` over a batch that lies in several processes; nothing is sent.

    ``vmap(jacfwd(f))(x)`` gives the Jacobian of each sample, where the sample is. Every process calls it, and maps over
    its own samples by PyTorch's ``vmap``.

    Args:
        func: Takes and returns tensors (any pytree) without the axis of the batch.
        in_dims: Which axis of an argument, or of all tensors in it, is the batch; None: it has none. One for all
            arguments, or a tuple of one for each.
        out_dims: Which axis of each output becomes that of the batch.
        randomness: As in ``torch.func.vmap``.
        chunk_size: As in ``torch.func.vmap``, for the samples of each process.

    Returns:
        A function of ``DTensor`` arguments with ``Shard(in_dim)`` over the same axes of the same mesh. Its results are
        ``DTensor`` with ``Shard(out_dims)`` there. Arguments without a batch may be plain tensors that are the same in
        every process, or a ``DTensor`` with ``Replicate``.

    Raises:
        TypeError: An argument with a batch is no ``DTensor``.
        ValueError: Arguments lie differently, or some process has no sample.

    Example:
        In a process of a group:

            x = distribute_tensor(samples, mesh, [Shard(0)])
            J = vmap(jacfwd(network))(x)  # J.placements == (Shard(0),)
    """
    check_function(NAME, func)

    def mapped(*args: Any) -> Any:
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
        if len(dims) != len(args):
            way_out = "Give one for each argument, None for one without a batch."
            got = f"{in_dims} for {len(args)} arguments"
            raise ArgumentValueError(message(NAME, "in_dims", got, "as many", way_out))
        batch = _Batch(args, dims)
        local = [batch.local(arg, dim) for arg, dim in zip(args, dims, strict=True)]
        result = torch.func.vmap(
            func, dims, out_dims, randomness=randomness, chunk_size=chunk_size
        )(*local)
        return map_tensors(lambda y: batch.distributed(y, out_dims), result)

    return named_after(func, mapped)


class _Batch:
    """How a batch lies over a mesh: read from the first argument that has one, and checked in the others."""

    def __init__(self, args: tuple[Any, ...], dims: tuple[int | None, ...]) -> None:
        self._mesh: DeviceMesh | None = None
        self._is_sharded: list[bool] = []  # by axis of the mesh
        self._size = 0
        for position, (arg, dim) in enumerate(zip(args, dims, strict=True)):
            if dim is not None:
                for x in flatten(arg)[0]:
                    if isinstance(x, Tensor):
                        self._add(x, dim, position)
        if self._mesh is None:
            got, way_out = "no argument with a batch", "Give one whose in_dims is not None."
            raise ArgumentValueError(message(NAME, "in_dims", got, "at least one", way_out))

    def _add(self, x: Tensor, dim: int, position: int) -> None:
        what = f"argument {position} (in_dims={dim})"
        if not isinstance(x, DTensor):
            raise ArgumentTypeError(
                message(
                    NAME,
                    what,
                    "a plain tensor",
                    f"a DTensor with Shard({dim})",
                    "Use distribute_tensor(x, mesh, [Shard(0)]), or torch.func.vmap for what is here.",
                )
            )
        axis = dim % max(x.dim(), 1)
        shards = [isinstance(p, Shard) and p.dim == axis for p in x.placements]
        fits = all(s or p.is_replicate() for s, p in zip(shards, x.placements, strict=True))
        if not fits or not any(shards):
            way_out = f"Use x.redistribute(placements=[Shard({axis})])."
            expected = f"Shard({axis}) or Replicate() on each axis of the mesh, and one Shard"
            raise ArgumentValueError(message(NAME, what, x.placements, expected, way_out))
        size = x.shape[axis]
        if self._mesh is None:
            self._mesh, self._is_sharded, self._size = x.device_mesh, shards, size
            self._check_size(what)
        elif (x.device_mesh, shards, size) != (self._mesh, self._is_sharded, self._size):
            got = f"{size} samples that are {x.placements} on {x.device_mesh}"
            expected = f"{self._size}, as those of the argument before, on {self._mesh}"
            way_out = "Distribute all batches alike."
            raise ArgumentValueError(message(NAME, what, got, expected, way_out))

    def _check_size(self, what: str) -> None:
        assert self._mesh is not None
        least = self._size
        for axis, is_sharded in enumerate(self._is_sharded):
            if is_sharded:
                count = self._mesh.size(axis)
                least -= (count - 1) * -(-least // count)
        if least <= 0:
            got = f"{self._size} samples"
            expected = f"one in each process of {self._mesh}"
            way_out = "Take fewer processes, or pad the batch to a multiple of their number."
            raise ArgumentValueError(message(NAME, what, got, expected, way_out))

    def local(self, arg: Any, dim: int | None) -> Any:
        """Return what this process has of an argument."""
        leaves, spec = flatten(arg)
        return unflatten([self._local(x, dim) for x in leaves], spec)

    def _local(self, x: Any, dim: int | None) -> Any:
        mesh = self._mesh
        if mesh is None or not isinstance(x, Tensor):
            return x
        if not isinstance(x, DTensor):
            if not (x.requires_grad and torch.is_grad_enabled()) or functorch_level() is not None:
                return x
            x = DTensor.from_local(x, mesh, on_axis(mesh, None), run_check=False)
        if dim is None and not all(p.is_replicate() for p in x.placements):
            way_out = "Use x.redistribute(placements=[Replicate()]), or give its in_dims."
            what = "an argument without a batch"
            raise ArgumentValueError(message(NAME, what, x.placements, "Replicate()", way_out))
        # Each process has its samples' part of the cotangent of what all of them share.
        back: list[Placement] = [
            (Partial() if dim is None else Shard(dim % x.dim())) if is_sharded else Replicate()
            for is_sharded in self._is_sharded
        ]
        return x.to_local(grad_placements=back)

    def distributed(self, y: Tensor, dim: int) -> Tensor:
        """Return the distributed tensor of which this process has a part."""
        assert self._mesh is not None
        axis = dim % y.dim()
        placements: list[Placement] = [Shard(axis) if s else Replicate() for s in self._is_sharded]
        shape = with_size(y.shape, axis, self._size)
        return distributed(y.contiguous(), self._mesh, placements, shape)
