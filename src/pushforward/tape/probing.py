"""What a node does not save and yet can tell: it is called on positions, and says where they went."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.kinds.gather import Gather
from pushforward.linear.kinds.mask import Mask
from pushforward.linear.map import AbstractLinearMap
from pushforward.tape.private_torch import Node, in_backward_pass, output_metadata, without_modes

Edge = tuple[int, int]

_BASE = 128  # every floating type holds these integers

# ----- Joined tensors: of constants among them nothing is saved -----


def joined_shapes(node: Node, axes: Sequence[int]) -> tuple[Shape, ...]:
    """Return the shape of each tensor that ``node`` joined along ``axes``.

    A constant's is made up: together, neighbours are as long as the place that they take.
    """
    out = tuple(output_metadata(node)[0].shape)
    known = [
        None if target is None else _promoted(tuple(output_metadata(target)[nr].shape), out)
        for target, nr in node.next_functions
    ]
    is_single = known.count(None) == 1
    rest = {a: out[a] - sum(shape[a] for shape in known if shape is not None) for a in axes}
    nothing = tuple(0 if a in axes else n for a, n in enumerate(out))
    found: list[Shape] = []
    end = dict.fromkeys(axes, 0)
    waiting: int | None = None  # the first of neighbouring constants
    for place, shape in enumerate(known):
        if shape is None:
            waiting = place if waiting is None else waiting
            found.append(nothing)
            continue
        if waiting is not None and 0 not in shape:
            start = {a: end[a] + rest[a] if is_single else _start(node, place, a) for a in axes}
            gap = [start[a] - end[a] if a in axes else n for a, n in enumerate(out)]
            found[waiting], end, waiting = tuple(gap), start, None
        found.append(shape)
        end = {a: end[a] + shape[a] for a in axes}
    return tuple(found)


def _promoted(shape: Shape, out: Shape) -> Shape:
    """Return the shape with as many axes as ``out``: an empty vector may be joined to anything."""
    if len(shape) == len(out):
        return shape
    return (1,) * (len(out) - len(shape)) + shape if math.prod(shape) else (0,) * len(out)


def _start(node: Node, place: int, axis: int) -> int:
    """Return where an input of ``node`` begins along an axis of the output."""
    out = output_metadata(node)[0]
    start = 0
    with without_modes():
        index = torch.arange(out.shape[axis], device=out.device)
        for power, digits in _digits(index, out.shape[axis]):
            shape = [-1 if a == axis else 1 for a in range(len(out.shape))]
            cotangent = digits.to(out.dtype).reshape(shape).expand(tuple(out.shape))
            found = node(cotangent)
            found = found[place] if isinstance(found, tuple) else found
            start += power * int(found.detach().reshape(-1)[0].real)
    return start


# ----- Movements: every element of the output is one of the input, or none -----


def read_moved(node: Node, signature: list[object], tensors: list[object]) -> None:
    """Read where a node moved its inputs' elements; it has to be called where it does more than that."""
    found: list[Tensor | None] = []
    if in_backward_pass():  # in which a node cannot be asked
        signature.append("computes")
        return
    with torch._C.DisableTorchFunction():  # nothing of the function's is computed again
        for place, (target, _) in enumerate(node.next_functions):
            index = None if target is None else _taken(node, place)
            if target is not None and index is None:
                signature.append("computes")
                return
            found.append(index)
    tensors.extend(found)


def moved_maps(
    node: Node, edges: Sequence[Edge], saved: Sequence[Tensor | None]
) -> list[tuple[Edge, torch.dtype, dict[int, AbstractLinearMap]]] | None:
    """Return (edge, dtype, maps) for each active input of a node that moves; None if it does more."""
    if not saved:
        return None
    out = tuple(output_metadata(node)[0].shape)
    result: list[tuple[Edge, torch.dtype, dict[int, AbstractLinearMap]]] = []
    for place, (edge, index) in enumerate(zip(edges, saved, strict=True)):
        if edge[0] < 0 or index is None:
            continue
        target, nr = node.next_functions[place]
        x = output_metadata(target)[nr]
        shape = tuple(x.shape)
        axes = tuple(range(len(shape))), tuple(range(len(out)))
        linear_map: AbstractLinearMap = Gather(shape, out, index, *axes)
        if place == 0 and len(edges) > 1:  # what is written to keeps its places
            linear_map = Mask(shape, out, (index >= 0).reshape(out))
        result.append((edge, x.dtype, {0: linear_map}))
    return result


def _taken(node: Node, place: int) -> Tensor | None:
    """Return which element of an input each of the output is, -1 for none; None if it is not so."""
    target, nr = node.next_functions[place]
    x, out = output_metadata(target)[nr], output_metadata(node)[0]
    size = math.prod(x.shape)
    if not size or not math.prod(out.shape):
        return torch.full((math.prod(out.shape),), -1, device=x.device)
    if x.dtype.is_complex != out.dtype.is_complex:
        return None
    index = torch.arange(size, device=x.device)
    powers, digits = zip(*_digits(index, size), strict=True)
    irregular = (index * index * 37 + index * 11) % (_BASE - 1) + 1
    seeds = torch.stack([torch.ones_like(index), irregular, *digits]).to(x.dtype)
    if x.dtype.is_complex:
        seeds = seeds * (1 + 1j)  # a part alone may be written
    with contextlib.suppress(RuntimeError):
        pushed = _pushed(node, place, seeds.reshape(len(seeds), *x.shape))
        if pushed.is_complex():
            if not torch.equal(pushed.real, pushed.imag):
                return None
            pushed = pushed.real
        ones, check, *places = pushed.long()
        found = torch.stack([p * power for p, power in zip(places, powers, strict=True)]).sum(0)
        is_taken = ones == 1
        found = torch.where(is_taken, found, -1)
        inside = found.clamp(0, size - 1)
        expected = torch.where(is_taken, seeds.real.long()[:, inside], 0)
        is_exact = (found == torch.where(is_taken, inside, -1)).all()
        is_exact &= (pushed == expected).all() & (check == expected[1]).all()
        if is_exact and (place or len(node.next_functions) == 1 or _keeps(found)):
            return found
    return None


def _pushed(node: Node, place: int, tangents: Tensor) -> Tensor:
    """Return what becomes of each of ``tangents``, flat: the pull is differentiated by its cotangent."""
    out = output_metadata(node)[0]
    shape = tuple(out.shape)
    with torch.enable_grad():
        origin = torch.zeros(shape, dtype=out.dtype, device=out.device, requires_grad=True)
        back = node(origin)
        back = back[place] if isinstance(back, tuple) else back
        if back is None or not back.requires_grad:  # nothing of the input is left
            return torch.zeros(len(tangents), math.prod(shape), device=out.device)
        found = [
            torch.autograd.grad([back], [origin], [t.to(back.dtype)], retain_graph=True)[0]
            for t in tangents
        ]
    return torch.stack(found).reshape(len(tangents), math.prod(shape))


def _keeps(index: Tensor) -> bool:
    """Tell whether every element that is taken stands where it stood."""
    return bool(((index < 0) | (index == torch.arange(len(index), device=index.device))).all())


def _digits(index: Tensor, size: int) -> list[tuple[int, Tensor]]:
    """Return (power, digit) of positions below ``size``: numbers that every floating type holds."""
    found = [(1, index % _BASE)]
    power = _BASE
    while power < size:
        found.append((power, index // power % _BASE))
        power *= _BASE
    return found
