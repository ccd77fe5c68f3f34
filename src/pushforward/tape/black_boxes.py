"""Black boxes: nodes without a rule of ours. The node itself is called; uses are counted."""

from __future__ import annotations

import collections
import contextlib
import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.overrides import handle_torch_function, has_torch_function

from pushforward.errors import MissingRuleError
from pushforward.linear.kinds.general import General
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.program import in_dtype
from pushforward.linear.transposition import LinearFunction
from pushforward.tape import custom_functions
from pushforward.tape.private_functorch import with_functorch
from pushforward.tape.private_torch import Node, output_metadata, sequence_number

COUNTS: collections.Counter[str] = collections.Counter()  # uses by node

Edge = tuple[int, int]
Caller = Callable[[Node, Sequence[Tensor | None]], Sequence[Tensor | None]]  # of a node


def maps(
    name: str,
    node: Node,
    edges: Sequence[Edge],
    wanted: Sequence[int],
    anchors: Sequence[Tensor] = (),
    is_hooked: bool = False,
) -> list[tuple[Edge, torch.dtype, dict[int, AbstractLinearMap]]]:
    """Return (edge, dtype, maps by output) for each active input of ``node``.

    Args:
        name: The transform, for messages.
        node: The node.
        edges: Where its inputs come from.
        wanted: The outputs that matter.
        anchors: Tensors that depend on all that the node's derivative may depend on.
        is_hooked: Whether the node may have hooks, which PyTorch's engine calls.

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
            push: LinearFunction = functools.partial(pushed, node, out_nr, place)
            pull: LinearFunction = functools.partial(pulled, node, out_nr, place)
            if is_hooked:
                pull = functools.partial(_pulled_with_hooks, node, out_nr, place)
            reason = custom_functions.what_hides(node, _called, out_nr, place)
            if reason is not None:
                text = custom_functions.refusal(name, node, reason)
                push = custom_functions.refusing(text, anchors, push)
                pull = custom_functions.refusing(text, anchors, pull)
            found[out_nr] = General(tuple(x.shape), tuple(out.shape), push, pull)
        result.append((edge, x.dtype, found))
    return result


def pulled(node: Node, out_nr: int, place: int, cotangents: Tensor) -> Tensor:
    """Pull cotangents of one output of ``node``, seeds first, to the input at ``place``.

    It may be called again for another node of the same kind: what the kernels write down is this function's call.
    """
    if has_torch_function((cotangents,)):
        result: Tensor = handle_torch_function(
            pulled, (cotangents,), node, out_nr, place, cotangents
        )
        return result
    return _mapped(functools.partial(_pulled_one, node, out_nr, place), cotangents)


def _pulled_with_hooks(node: Node, out_nr: int, place: int, cotangents: Tensor) -> Tensor:
    """Pull cotangents one by one, as hooks expect them, through one node and its hooks."""
    pull = functools.partial(_pulled_one, node, out_nr, place, caller=_by_engine)
    found = [pull(cotangent) for cotangent in cotangents]
    return torch.stack(found) if found else pulled(node, out_nr, place, cotangents)


def pushed(node: Node, out_nr: int, place: int, tangents: Tensor) -> Tensor:
    """Push tangents of the input at ``place``, seeds first, to one output of ``node``.

    By differentiating the pull with respect to the cotangent; by the rows of the Jacobian where that cannot be.
    """
    if has_torch_function((tangents,)):
        result: Tensor = handle_torch_function(pushed, (tangents,), node, out_nr, place, tangents)
        return result
    out = output_metadata(node)[out_nr]
    is_followed = torch.is_grad_enabled()
    with torch.enable_grad():
        origin = torch.zeros(
            tuple(out.shape), dtype=out.dtype, device=out.device, requires_grad=True
        )
        back = None
        with contextlib.suppress(Exception):  # by rows it raises again
            back = _pulled_one(node, out_nr, place, origin)
        if back is not None and back.requires_grad:

            def push(tangent: Tensor) -> Tensor:
                (found,) = torch.autograd.grad(
                    [back], [origin], [in_dtype(tangent, back.dtype)], create_graph=True
                )
                return found

            with contextlib.suppress(RuntimeError):  # where it does not depend on the cotangent
                found = _mapped(push, tangents)
                return found if is_followed else found.detach()
    pull = functools.partial(pulled, node, out_nr, place)
    return by_rows(pull, tuple(out.shape), out.dtype, tangents)


def _mapped(function: Callable[[Tensor], Tensor], seeds: Tensor) -> Tensor:
    """Map over a leading axis: by ``vmap`` where it can be, else in a loop."""
    count = seeds.shape[0]
    if count > 1:
        with contextlib.suppress(Exception), with_functorch():  # in a loop it raises again
            result: Tensor = torch.func.vmap(function, randomness="same")(seeds)
            return result
    if count:
        return torch.stack([function(seed) for seed in seeds])
    like = function(seeds.new_zeros(seeds.shape[1:]))
    return like.new_zeros((0, *like.shape))


def _pulled_one(
    node: Node, out_nr: int, place: int, cotangent: Tensor, caller: Caller | None = None
) -> Tensor:
    target, nr = node.next_functions[place]
    x, out = output_metadata(target)[nr], output_metadata(node)[out_nr]
    try:
        found = _called(node, out_nr, place, in_dtype(cotangent, out.dtype), caller)
    except MissingRuleError:
        raise
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, NotImplementedError) or "formula was registered" in str(error):
            raise _missing("pushforward", node, error) from error
        raise
    shape = tuple(x.shape)
    if found is None:
        return torch.zeros(shape, dtype=x.dtype, device=x.device)
    if found.shape != shape:
        found = found.sum_to_size(shape)
    return in_dtype(found, x.dtype)


def _called(
    node: Node, out_nr: int, place: int, cotangent: Tensor, caller: Caller | None = None
) -> Tensor | None:
    cotangents: list[Tensor | None] = [None] * len(output_metadata(node))
    cotangents[out_nr] = cotangent
    return (caller or call)(node, cotangents)[place]


def call(node: Node, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Call one node, and nothing of what lies behind it: its inputs may depend on each other.

    Returns what it gives for each of its edges.
    """
    if callable(node):
        found = node(*cotangents)
        return found if isinstance(found, tuple) else (found,)
    with with_functorch():
        if custom_functions.is_called_by_engine(node):
            return _by_engine(node, cotangents)
        found = node.apply(*cotangents)
    return custom_functions.by_edge(node, found if isinstance(found, tuple) else (found,))


def _by_engine(node: Node, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Let PyTorch's engine call one node: with its hooks, and cotangents of other outputs as it asked for them.

    What the node gives is taken from a hook: what arrives at its inputs has passed the hooks of those.
    """
    captured: list[Sequence[Tensor | None]] = []

    def capture(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None]) -> None:
        captured.append(inputs)

    given = [(nr, cotangent) for nr, cotangent in enumerate(cotangents) if cotangent is not None]
    # The last one made: the engine calls what leads to it, and no other of the edges does.
    edges = [edge for edge in node.next_functions if edge[0] is not None]
    targets = {max(edges, key=lambda edge: _age(edge[0]))}
    if callable(node):
        # The engine gives it cotangents of those inputs alone that are asked for, which hooks may miss.
        targets = set(edges)
    handle = node.register_hook(capture)
    try:
        torch.autograd.grad(
            [GradientEdge(node, nr) for nr, _ in given],
            [GradientEdge(*target) for target in targets],
            [cotangent for _, cotangent in given],
            retain_graph=True,
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    finally:
        handle.remove()
    return captured[-1]


def _age(node: Node) -> int:
    """Return a number that is greater for nodes made later; leaves, which lead nowhere, come first."""
    return sequence_number(node) if node.next_functions else -1


def by_rows(
    pull: LinearFunction, out_shape: tuple[int, ...], out_dtype: torch.dtype, tangents: Tensor
) -> Tensor:
    """Push by the rows of the Jacobian, which ``pull`` gives."""
    count, num_seeds, size = math.prod(out_shape), tangents.shape[0], math.prod(tangents.shape[1:])
    basis = torch.eye(count, dtype=out_dtype, device=tangents.device)
    products = []
    for rows in (basis, 1j * basis) if out_dtype.is_complex else (basis,):
        pulls = pull(rows.reshape(count, *out_shape)).reshape(count, size)
        columns = tangents.reshape(num_seeds, size)
        product = columns.to(torch.promote_types(pulls.dtype, columns.dtype)) @ pulls.conj().t()
        products.append(product.real if product.is_complex() else product)
    flat = torch.complex(*products) if len(products) == 2 else products[0]
    return flat.reshape(num_seeds, *out_shape)


def _missing(name: str, node: Node, error: Exception | None) -> MissingRuleError:
    reason = f" ({error})" if error is not None else ""
    return MissingRuleError(
        f"{name}: no rule for {node.name()}, and PyTorch has no derivative of it{reason}: expected an operator that "
        "one of the two can differentiate. Declare its linear maps with pushforward.rule or pushforward.elementwise "
        "(docs/how-to/add-a-rule.md)."
    )
