"""Where plain tensors become distributed ones (``DTensor``), and the other way: linear maps of our own.

Between these boundaries operators act on distributed tensors as on any, and their rules hold. PyTorch's own backwards
of the boundaries cannot be differentiated to go forward, and take no batch of seeds.

Every process runs the same program. A distributed tensor is one tensor, however it lies: redistribution is the
identity, and tangents may lie otherwise than their primals. Inputs and outputs that are plain are the same in every
process, but what lies between ``to_local`` and ``from_local`` is a part of its own in each. Sweeps from the inputs or
the outputs on are right all the same; products of maps in any other order would mix the parts up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import UnsupportedError
from pushforward.linear.axes import kept_axes
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.map import AbstractLinearMap
from pushforward.tape.node_types import BOUNDARY
from pushforward.tape.private_distributed import (
    boundary_kind,
    is_freed,
    made_by,
    plain_tensors_replicated,
    taken_from,
    tensors_module,
    waited_for,
)
from pushforward.tape.private_functorch import functorch_level
from pushforward.tape.private_torch import Node, function_of, output_metadata
from pushforward.tape.reader import Edge, Reading

Placements = tuple[Any, ...]
Found = tuple[Edge, torch.dtype, dict[int, AbstractLinearMap]]
Rows = list[list[Tensor]]
Shape = tuple[int, ...]


def mesh_of(tensors: Iterable[Tensor]) -> Any:
    """Return the mesh over which one of the tensors lies, None if there is no distributed one."""
    module = tensors_module()
    if module is None:
        return None
    return next((t.device_mesh for t in tensors if isinstance(t, module.DTensor)), None)


def note(reading: Reading, inputs: Sequence[Tensor]) -> None:
    """Note in what was read whether distributed tensors have a part in it."""
    if tensors_module() is None:
        return
    reading.mesh = mesh_of(inputs)
    if reading.mesh is not None or BOUNDARY in reading.types:
        reading.is_distributed = reading.calls_back = True
        if any(map(is_freed, reading.all_saved())):
            raise UnsupportedError(
                "pushforward: a module under fully_shard: got parameters that it has given back after its forward, "
                "expected them to stay. Call module.set_reshard_after_forward(False) before."
            )


def sweep_of(reading: Reading, compute: Callable[[], Rows]) -> Callable[[], Rows]:
    """Return ``compute``, so that what it makes itself (seeds, masks, zeros) may meet distributed tensors.

    Its results are distributed tensors if an input or an output is.
    """
    return functools.partial(_swept, reading, compute) if reading.is_distributed else compute


def _swept(reading: Reading, compute: Callable[[], Rows]) -> Rows:
    mesh = reading.mesh or mesh_of(reading.anchors)
    with plain_tensors_replicated():
        rows = compute()
    return rows if mesh is None else [[everywhere(t, mesh) for t in row] for row in rows]


def everywhere(tensor: Tensor, mesh: Any) -> Tensor:
    """Return a tensor that is the same in every process as a distributed one, if it is not."""
    module: Any = tensors_module()
    if hasattr(tensor, "placements"):
        return tensor
    if functorch_level() is not None:  # where from_local cannot be called
        with plain_tensors_replicated():
            alike: Tensor = tensor * module.ones((), dtype=tensor.dtype, device_mesh=mesh)
            return alike
    made: Tensor = module.DTensor.from_local(
        tensor, mesh, [module.Replicate()] * mesh.ndim, run_check=False
    )
    return made


def maps(node: Node, edges: Sequence[Edge], wanted: Sequence[int]) -> list[Found]:
    """Return (edge, dtype, maps by output) for each active input of a boundary."""
    kind, outs = boundary_kind(function_of(node)), output_metadata(node)
    found: list[Found] = []
    for place, (edge, (target, nr)) in enumerate(zip(edges, node.next_functions, strict=True)):
        if edge[0] < 0:
            continue
        x = output_metadata(target)[nr]
        if kind == "identity":
            shape = tuple(x.shape)
            found.append((edge, x.dtype, {place: Reshape(shape, shape)} if place in wanted else {}))
        else:
            found.append((edge, x.dtype, {0: _crossing(node, kind, x, outs[0])}))
    return found


def _crossing(node: Node, kind: str | None, x: Any, y: Any) -> AbstractLinearMap:
    """Return the map from plain tensors to distributed ones, or the other way."""
    in_shape, out_shape = tuple(x.shape), tuple(y.shape)
    mesh, placements, given = (made_by if kind == "from_local" else taken_from)(node)
    back = tuple(map(_of_cotangent, placements)) if given is None else tuple(given)
    distributed, local = (out_shape, in_shape) if kind == "from_local" else (in_shape, out_shape)
    if kind == "from_local":
        push = functools.partial(_made, mesh, placements, distributed)
        pull = functools.partial(_taken, mesh, back, local)
    else:
        push = functools.partial(_taken, mesh, placements, local)
        pull = functools.partial(_made, mesh, back, distributed)
    sharded = {axis for p in (*placements, *back) if (axis := _axis(p)) is not None}
    kept = kept_axes(len(distributed), *sharded)
    if len(local) != len(distributed):  # PyTorch 2.13 squeezes the local part of a sum only
        kept = ()
    return General(in_shape, out_shape, push, pull, kept, uniform=True)


def _of_cotangent(placement: Any) -> Any:
    return tensors_module().Replicate() if placement.is_partial() else placement


def _axis(placement: Any) -> int | None:
    return getattr(placement, "dim", None)


def _made(mesh: Any, placements: Placements, shape: Shape, seeds: Tensor) -> Tensor:
    """Return what every process has, seeds first, as a distributed tensor; an axis of size 1 stands for any size."""
    sharded = {_axis(p) for p in placements}
    if seeds.dim() != 1 + len(shape):
        seeds = seeds.reshape(len(seeds), *shape)
    sizes = zip(shape, seeds.shape[1:], strict=True)
    full = (len(seeds), *[n if i in sharded else own for i, (n, own) in enumerate(sizes)])
    stride = torch.empty(full, device="meta").stride()
    made: Tensor = tensors_module().DTensor.from_local(
        seeds.contiguous(),
        mesh,
        _behind_seeds(placements),
        run_check=False,
        shape=torch.Size(full),
        stride=stride,
    )
    return made


def _taken(mesh: Any, placements: Placements, shape: Shape, seeds: Any) -> Tensor:
    """Return the part of ``shape`` that each process has of a distributed tensor, seeds first."""
    seeds = everywhere(seeds, mesh)  # zeros, say
    wanted = _behind_seeds(placements)
    for own, placement in zip(seeds.placements, wanted, strict=True):
        if placement.is_partial() and own != placement:
            raise UnsupportedError(
                f"pushforward: to_local of a distributed tensor whose processes hold parts {shape} of a sum: got a "
                f"tangent that is {own}, expected one that is {placement}. Redistribute it to Replicate() or a Shard "
                "before to_local."
            )
    part = waited_for(seeds.redistribute(mesh, wanted).to_local())
    return part if part.dim() == 1 + len(shape) else part.reshape(len(part), *shape)


def _behind_seeds(placements: Placements) -> list[Any]:
    """Return the placements of a batch of seeds, whose axis comes first."""
    module = tensors_module()
    found = []
    for placement in placements:
        axis = _axis(placement)
        if axis is not None and type(placement) is not module.Shard:
            raise UnsupportedError(
                f"pushforward: a distributed tensor that is {placement}: expected Shard, Replicate or Partial. "
                "Redistribute it to one of these before from_local or to_local."
            )
        found.append(placement if axis is None else module.Shard(axis + 1))
    return found
