"""Black boxes: nodes without a rule of ours. The node itself is called, by PyTorch's engine; uses are counted."""

from __future__ import annotations

import collections
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.overrides import handle_torch_function, has_torch_function

from pushforward.errors import MissingRuleError
from pushforward.linear.kinds.general import General
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.transposition import per_seed
from pushforward.tape.private_torch import Node, output_metadata

COUNTS: collections.Counter[str] = collections.Counter()  # uses by node

Edge = tuple[int, int]


def maps(
    name: str, node: Node, edges: Sequence[Edge], wanted: Sequence[int]
) -> list[tuple[Edge, torch.dtype, dict[int, AbstractLinearMap]]]:
    """Return (edge, dtype, maps by output) for each active input of ``node``.

    Raises:
        MissingRuleError: PyTorch has no derivative either.
    """
    COUNTS[node.name()] += 1
    if node.name() in ("NotImplemented", "torch::autograd::NotImplemented"):
        raise _missing(name, node, None)
    result = []
    for place, edge in enumerate(edges):
        if edge[0] < 0:
            continue
        target, nr = node.next_functions[place]
        x = output_metadata(target)[nr]
        found: dict[int, AbstractLinearMap] = {}
        for out_nr in wanted:
            out = output_metadata(node)[out_nr]
            pull_one = functools.partial(pulled, node, out_nr, place)
            push_one = functools.partial(pushed, node, out_nr, place)
            found[out_nr] = General(
                tuple(x.shape), tuple(out.shape), per_seed(push_one), per_seed(pull_one)
            )
        result.append((edge, x.dtype, found))
    return result


def pulled(node: Node, out_nr: int, place: int, cotangent: Tensor) -> Tensor:
    """Pull a cotangent of one output of ``node`` to the input at ``place``."""
    if has_torch_function((cotangent,)):
        result: Tensor = handle_torch_function(pulled, (cotangent,), node, out_nr, place, cotangent)
        return result
    target, nr = node.next_functions[place]
    metadata = output_metadata(target)[nr]
    out = output_metadata(node)[out_nr]
    if cotangent.dtype is not out.dtype:
        cotangent = cotangent.to(out.dtype)
    try:
        found = _called(node, out_nr, place, cotangent)
    except NotImplementedError as error:
        raise _missing("pushforward", node, error) from error
    shape = tuple(metadata.shape)
    if found is None:
        return torch.zeros(shape, dtype=metadata.dtype, device=metadata.device)
    if found.shape != shape:
        found = found.sum_to_size(shape)
    if found.dtype is not metadata.dtype:
        found = found.real if found.is_complex() and not metadata.dtype.is_complex else found
        found = found.to(metadata.dtype)
    return found


def _called(node: Node, out_nr: int, place: int, cotangent: Tensor) -> Tensor | None:
    """Call one node, and nothing of what lies behind it: its inputs may depend on each other."""
    if callable(node):
        cotangents: list[Tensor | None] = [None] * len(output_metadata(node))
        cotangents[out_nr] = cotangent
        pulled = node(*cotangents)
        found: Tensor | None = pulled[place] if isinstance(pulled, tuple) else pulled
        return found
    target, nr = node.next_functions[place]
    (found,) = torch.autograd.grad(
        [GradientEdge(node, out_nr)],
        [GradientEdge(target, nr)],
        [cotangent],
        retain_graph=True,
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
    )
    return found


def pushed(node: Node, out_nr: int, place: int, tangent: Tensor) -> Tensor:
    """Push a tangent of the input at ``place`` to one output of ``node``: the pull, differentiated by the cotangent."""
    if has_torch_function((tangent,)):
        result: Tensor = handle_torch_function(pushed, (tangent,), node, out_nr, place, tangent)
        return result
    out = output_metadata(node)[out_nr]
    shape = tuple(out.shape)
    with torch.enable_grad():
        origin = torch.zeros(shape, dtype=out.dtype, device=out.device, requires_grad=True)
        try:
            back = pulled(node, out_nr, place, origin)
        except RuntimeError:
            back = None
        if back is not None and back.requires_grad:
            (found,) = torch.autograd.grad(
                [back],
                [origin],
                [tangent.to(back.dtype)],
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            return found if torch.is_grad_enabled() else found.detach()
    return _by_rows(node, out_nr, place, tangent)


def _by_rows(node: Node, out_nr: int, place: int, tangent: Tensor) -> Tensor:
    """Push by the rows of the Jacobian, where the pull cannot be differentiated."""
    out = output_metadata(node)[out_nr]
    shape = tuple(out.shape)
    basis = torch.eye(
        shape.numel() if isinstance(shape, torch.Size) else _size(shape), dtype=out.dtype
    )
    bases = [basis, 1j * basis] if out.dtype.is_complex else [basis]
    products = []
    for rows in bases:
        pulls = [pulled(node, out_nr, place, row.reshape(shape)) for row in rows]
        products.append(
            torch.stack([torch.real((p.conj() * tangent).sum()) for p in pulls])
            if pulls
            else torch.zeros(0)
        )
    flat = torch.complex(*products) if len(products) == 2 else products[0]
    return flat.reshape(shape)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _missing(name: str, node: Node, error: Exception | None) -> MissingRuleError:
    reason = f" ({error})" if error is not None else ""
    return MissingRuleError(
        f"{name}: no rule for {node.name()}, and PyTorch has no derivative of it{reason}: expected an operator that "
        "one of the two can differentiate. Declare its linear maps with pushforward.rule or pushforward.elementwise "
        "(docs/how-to/add-a-rule.md)."
    )
