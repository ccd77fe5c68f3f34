"""Products of matrices in graphs, written so that they take less time on a CPU; a GPU has them as they come.

- With a vector they are sums of products, which Inductor fuses with what is around them. A call of BLAS for each costs
  more than the product of a small matrix, and cuts what is fused in two. So are products of tiny matrices.
- Rows that are products of two factors, each the same for many rows, are not made: one factor goes to the other side.
- A narrow result is computed transposed: BLAS wants its long axis to be the one that is contiguous.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from pushforward.tape.private_compiler import fake_mode
from pushforward.tape.private_inductor import force_strides

aten = torch.ops.aten

MAX_ELEMENTS = 2**16  # of the matrix that a vector is multiplied with
MAX_UNROLLED = 7  # terms of a sum that Inductor writes without a loop
MAX_TINY = 2**9  # multiplications that take less time than a call
MAX_NARROW = 15  # columns; of 16 on, MKL's own order is as fast
MIN_TURNED = 2**12  # multiplications from which on a narrow product pays for the copy of a matrix

_SAME = {  # up to the shape
    *(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.clone.default),
    *(aten.squeeze.dims, aten.squeeze.dim, aten.unsqueeze.default),
}


class _Product(NamedTuple):
    left: fx.Node  # (m, k), or (batch, m, k)
    right: fx.Node  # (k, n), or (batch, k, n)

    @property
    def sizes(self) -> tuple[int, int, int]:
        m, k = _value(self.left).shape[-2:]
        return m, k, _value(self.right).shape[-1]


def rewrite_products(graph: fx.GraphModule) -> None:
    """Write products of matrices anew where that takes less time."""
    inner = graph.graph
    for node in list(inner.nodes):
        if node.target is aten.addmm.default and not node.kwargs:
            bias, left, right = node.args
        elif node.target in (aten.mm.default, aten.bmm.default):
            bias, (left, right) = None, node.args
        else:
            continue
        if not (_is_real(left) and _is_real(right)):
            continue
        with inner.inserting_before(node):
            new = _rewritten(inner, _Product(left, right))
            if new is None:
                continue
            if bias is not None:
                new = _called(inner, aten.add.Tensor, new, bias)
        node.replace_all_uses_with(new)
        inner.erase_node(node)
    inner.eliminate_dead_code()
    graph.recompile()


def _rewritten(graph: fx.Graph, product: _Product) -> fx.Node | None:
    m, k, n = product.sizes
    if _value(product.left).dim() == 3:
        return _turned(graph, product) if _is_narrow(product) else None
    if min(m, k, n) == 0:
        return None
    if min(m, n) == 1:
        elements = max(_value(x).numel() for x in product)
        return _with_vector(graph, product) if elements <= MAX_ELEMENTS else None
    if k <= MAX_UNROLLED and m * k * n <= MAX_TINY:
        return _unrolled(graph, product)
    new = _with_factors(graph, product) if m * k * n >= MIN_TURNED else None
    if new is None and _is_narrow(product):
        new = _turned(graph, product)
    return new


def _is_narrow(product: _Product) -> bool:
    m, _, n = product.sizes
    return n <= MAX_NARROW and m >= 2 * n and _value(product.left).numel() * n >= MIN_TURNED


def _with_vector(graph: fx.Graph, product: _Product) -> fx.Node:
    left, right = product
    if product.sizes[0] == 1:  # (1, k), (k, n)
        turned = _called(graph, aten.permute.default, left, [1, 0])
        return _summed(graph, _called(graph, aten.mul.Tensor, turned, right), 0, True)
    turned = _called(graph, aten.permute.default, right, [1, 0])  # (m, k), (k, 1)
    return _summed(graph, _called(graph, aten.mul.Tensor, left, turned), 1, True)


def _unrolled(graph: fx.Graph, product: _Product) -> fx.Node:
    columns = _called(graph, aten.unsqueeze.default, product.left, 2)
    rows = _called(graph, aten.unsqueeze.default, product.right, 0)
    return _summed(graph, _called(graph, aten.mul.Tensor, columns, rows), 1, False)


def _turned(graph: fx.Graph, product: _Product) -> fx.Node:
    right, left = _transposed(graph, product.right), _transposed(graph, product.left)
    strides = torch.empty(_value(right).shape, device="meta").stride()
    if _value(right).stride() != strides:
        right = _called(graph, force_strides(), _contiguous(graph, right), list(strides))
    op = aten.mm.default if _value(left).dim() == 2 else aten.bmm.default
    return _contiguous(graph, _transposed(graph, _called(graph, op, right, left)))


def _transposed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    axes = [1, 0] if _value(node).dim() == 2 else [0, 2, 1]
    return _called(graph, aten.permute.default, node, axes)


class _Factors(NamedTuple):
    """The rows x_ik y_jk of a matrix, where i are ``few`` and j are many: both of shape (*leading, k)."""

    few: fx.Node
    many: fx.Node
    few_shape: tuple[int, ...]
    many_shape: tuple[int, ...]


def _with_factors(graph: fx.Graph, product: _Product) -> fx.Node | None:
    """Return Σ_k x_ik y_jk r_kn as the product of y_jk and x_ik r_kn, if the rows j are more than the columns n."""
    m, k, n = product.sizes
    found = _factors(graph, product.left)
    if found is None:
        return None
    few, many = math.prod(found.few_shape[:-1]), math.prod(found.many_shape[:-1])
    if few == 1 or many < 2 * n:
        return None
    x = _called(graph, aten.reshape.default, found.few, [few, 1, k])
    turned = _called(graph, aten.permute.default, product.right, [1, 0])
    both = _called(graph, aten.mul.Tensor, x, turned)
    both = _called(graph, aten.reshape.default, both, [few * n, k])
    both = _called(graph, force_strides(), both, [k, 1])
    y = _called(graph, aten.reshape.default, found.many, [many, k])
    y = _called(graph, aten.permute.default, y, [1, 0])
    result = _called(graph, aten.mm.default, both, y)
    apart = [*found.few_shape[:-1], n, *found.many_shape[:-1]]
    result = _called(graph, aten.view.default, result, apart)
    rest = len(found.few_shape) - 1
    order = [i if found.few_shape[i] > 1 else rest + 1 + i for i in range(rest)] + [rest]
    ones = [i for i in range(len(apart)) if i not in order]
    result = _called(graph, aten.permute.default, result, [*ones, *order])
    return _called(graph, aten.view.default, _contiguous(graph, result), [m, n])


def _factors(graph: fx.Graph, left: fx.Node) -> _Factors | None:
    """Return the factors of a matrix that nothing else takes."""
    k = _value(left).shape[-1]
    while left.target in _SAME and len(left.users) == 1:
        left = left.all_input_nodes[0]
    if left.target not in (aten.mul.Tensor, aten.tanh_backward.default) or len(left.users) > 1:
        return None
    whole, pair = _value(left), list[Any](left.args)
    if any(not isinstance(f, fx.Node) or f.meta["val"].dtype is not whole.dtype for f in pair):
        return None
    shapes = [(1,) * (whole.dim() - f.meta["val"].dim()) + f.meta["val"].shape for f in pair]
    if any(s[-1] != k for s in shapes) or any(
        a > 1 and b > 1 for a, b in zip(*(s[:-1] for s in shapes), strict=True)
    ):
        return None
    first, second = pair
    if left.target is aten.tanh_backward.default:  # g (1 - y²)
        square = _called(graph, aten.mul.Tensor, second, second)
        second = _called(graph, aten.rsub.Scalar, square, 1)
    if math.prod(shapes[0]) <= math.prod(shapes[1]):
        return _Factors(first, second, *shapes)
    return _Factors(second, first, *reversed(shapes))


def _is_real(node: Any) -> bool:
    x = node.meta.get("val")
    return (
        isinstance(x, Tensor)
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
    )


def _value(node: fx.Node) -> Tensor:
    value: Tensor = node.meta["val"]
    return value


def _contiguous(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return _called(graph, aten.clone.default, node, memory_format=torch.contiguous_format)


def _summed(graph: fx.Graph, terms: fx.Node, axis: int, keeps: bool) -> fx.Node:
    return _called(graph, aten.sum.dim_IntList, terms, [axis], keeps)


def _called(graph: fx.Graph, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
    node = graph.call_function(op, args, kwargs)
    with fake_mode():  # of one mode, as those of a graph that was traced with real tensors are not
        node.meta["val"] = op(*fx.node.map_arg(args, lambda n: _like(_value(n))), **kwargs)
    return node


def _like(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
