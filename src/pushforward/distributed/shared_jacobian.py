"""jacobian: one Jacobian whose rows or columns are shared out over the processes of a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from pushforward.distributed.colors import Colors
from pushforward.distributed.meshes import (
    anchored,
    check_mesh,
    distributed,
    entered,
    of_first,
    on_axis,
)
from pushforward.distributed.parts import Along, Part, along_best_axis, flat_part
from pushforward.distributed.sharded_matrix import ShardedMatrix
from pushforward.errors import ArgumentValueError, message
from pushforward.sparse.pattern import pattern_of
from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import (
    Argnums,
    P,
    Selected,
    check_function,
    check_outputs,
    named_after,
    normalize_argnums,
    split_aux,
)
from pushforward.transforms.asked import Asked
from pushforward.transforms.assemble import directions
from pushforward.transforms.chunks import ChunkSize, chunks_of
from pushforward.transforms.jacfwd import arranged
from pushforward.transforms.jacobian import computing
from pushforward.trees import flatten, map_tensors

NAME = "distributed.jacobian"
SHARES = ("rows", "columns")
OUTPUTS = ("dense", "coo", "csr", "csc")


@left_alone_by_dynamo
def jacobian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    mesh: DeviceMesh,
    share: Literal["rows", "columns"],
    mode: Literal["auto", "forward", "reverse", "cross"] = "auto",
    has_aux: bool = False,
    output: Literal["dense", "coo", "csr", "csc"] = "dense",
    pattern: Any = None,
    chunk_size: ChunkSize = None,
    memory_limit: int | None = None,
    progress: bool = False,
    randomness: Literal["error", "same", "different"] = "error",
) -> Callable[P, Any]:
    """Return a function that computes the Jacobian of ``func``, of which each process of a mesh has a part.

    Every process calls it, with the same arguments. Each runs all of ``func`` and computes the rows or the columns that
    are its share; nothing is sent. Share what there is less of: columns where there are fewer inputs than outputs.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree); other arguments may be anything.
        argnums: As in `jacobian` of one process.
        mesh: The processes; over several axes of a mesh, the share along one is shared out along the next.
        share: ``'rows'`` gives each process a range of the positions of each output, ``'columns'`` of each argument.
        mode: As in `jacobian` of one process, for the part of each.
        has_aux: Whether ``func`` returns ``(output, aux)``; ``aux`` is what it is in each process.
        output: ``'dense'``, or the form of the sparse part that each process has: ``'coo'``, ``'csr'`` or ``'csc'``.
        pattern: As in `jacobian` of one process, for a sparse ``output``. Then the colours are shared out: a process
            has the rows or columns of its own.
        chunk_size: As in `jacobian` of one process, for the part of each.
        memory_limit: Likewise.
        progress: Likewise.
        randomness: Likewise. What is drawn is the same in every process only if their generators are.

    Returns:
        A function with ``func``'s arguments, and the results of `jacobian`: each is a ``DTensor`` ``(*out, *in)`` with
        ``Shard`` on one axis of the output (rows) or of the argument (columns): that which gives the largest share
        least, the last of such. It is ``Replicate`` where there is no axis. With a sparse ``output``, each is a
        `ShardedMatrix`. Arguments may be a ``DTensor`` with ``Replicate``. Autograd goes back through the results;
        gradients with respect to arguments are summed over the processes, those of what ``func`` captures are not.

    Raises:
        TypeError: There is no mesh; and as `jacobian`.
        ValueError: ``share`` or ``output`` are not what they may be, or an argument is a shard; and as `jacobian`.
        UnsupportedError: Another transform is around it; and as `jacobian`.

    Example:
        In a process of a group:

            mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
            J = jacobian(residuals, mesh=mesh, share="rows")(x)  # J.to_local() are the rows of this process

    References:
        Griewank and Walther, Evaluating Derivatives (2008), section 3.1: columns are independent of one another.
    """
    check_function(NAME, func)
    check_mesh(NAME, mesh)
    _check_options(share, output, pattern)
    is_sparse = output != "dense"
    colors = None if pattern is None else Colors(NAME, pattern_of(NAME, pattern), share, mesh)

    def part_of(whole: Tensor) -> Part:
        if colors is not None:
            return colors.part
        return flat_part(whole, mesh) if is_sparse else along_best_axis(whole, mesh)

    def partial(
        given: list[Tensor],
        parts: list[Part],
        leaves: list[Tensor],
        selected: Selected,
        kwargs: dict[str, Any],
    ) -> Any:
        if share == "columns":
            given = [
                part.put(x, whole) for part, x, whole in zip(parts, given, leaves, strict=True)
            ]
        result = func(*selected.replaced(given), **kwargs)
        results, aux = split_aux(NAME, result, has_aux)
        found, spec = flatten(results)
        check_outputs(NAME, results, found)
        ends = [torch.empty_like(y, device="meta") for y in found]
        if colors is not None:
            colors.check([math.prod(directions(x)) for x in leaves], [y.numel() for y in found])
        if share == "rows":
            parts = [part_of(y) for y in found]
            found = [part.of(y) for part, y in zip(parts, found, strict=True)]
        return found, (spec, ends, parts, aux)

    of_part = computing(
        partial,
        Asked(
            NAME,
            0,
            mode,
            True,
            output,
            None if colors is None else colors.pattern,
            chunks_of(chunk_size, memory_limit, progress),
            randomness,
        ),
    )

    def compute(*args: Any, **kwargs: Any) -> Any:
        (args, kwargs), anchor = entered(NAME, mesh, (args, kwargs))
        selected = Selected(NAME, args, normalize_argnums(NAME, argnums, len(args)))
        leaves = given = selected.leaves
        parts: list[Part] = []
        if share == "columns":
            parts = [part_of(x) for x in leaves]
            given = [part.of(x) for part, x in zip(parts, leaves, strict=True)]
        rows, (spec, outputs, parts, aux) = of_part(given, parts, leaves, selected, kwargs)
        found = []
        for i, (y, row) in enumerate(zip(outputs, rows, strict=True)):
            pairs = enumerate(zip(leaves, row, strict=True))
            found.append(
                [
                    _whole(local, y, x, share, parts[i if share == "rows" else j], mesh, anchor)
                    for j, (x, local) in pairs
                ]
            )
        result = arranged(found, spec, selected, argnums)
        if not has_aux:
            return result
        return result, map_tensors(lambda t: of_first(t, mesh), aux)

    return named_after(func, compute)


def _whole(
    local: Tensor,
    y: Tensor,
    x: Tensor,
    share: str,
    part: Part,
    mesh: DeviceMesh,
    anchor: Tensor | None,
) -> Tensor | ShardedMatrix:
    """Return the Jacobian of which this process has ``local``."""
    if not isinstance(part, Along):
        return ShardedMatrix(local, y, x, share, part.positions, mesh, anchor)
    axis = part.axis
    if axis is None:
        local = of_first(local, mesh)
    elif share == "columns":
        axis += y.dim()
    local = anchored(local, anchor)
    return distributed(local, mesh, on_axis(mesh, axis), (*y.shape, *directions(x)))


def _check_options(share: Any, output: Any, pattern: Any) -> None:
    if share not in SHARES:
        way_out = "Share what there is less of."
        raise ArgumentValueError(message(NAME, "share", repr(share), f"one of {SHARES}", way_out))
    if output not in OUTPUTS:
        way_out = "Leave it out for dense; the parts of one matrix have one form."
        raise ArgumentValueError(
            message(NAME, "output", repr(output), f"one of {OUTPUTS}", way_out)
        )
    if pattern is not None and output == "dense":
        raise ArgumentValueError(
            message(NAME, "output", "'dense' with a pattern", "a sparse form", "Use output='csr'.")
        )
