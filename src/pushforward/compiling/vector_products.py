"""Products of a matrix and a vector as sums of products, which Inductor fuses with what is around them.

A call of BLAS for each costs more than the product of a small matrix, and cuts what is fused in two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

MAX_ELEMENTS = 2**16  # of the matrix


def expand_vector_products(graph: fx.GraphModule) -> None:
    """Write products of small matrices by vectors out. They stay what they are on a GPU."""
    for node in graph.graph.nodes:
        if node.target is aten.addmm.default and not node.kwargs:
            bias, left, right = node.args
        elif node.target is aten.mm.default:
            bias, (left, right) = None, node.args
        else:
            continue
        if not _is_small(left, right):
            continue
        with graph.graph.inserting_before(node):
            if left.meta["val"].shape[0] == 1:  # (1, k), (k, n)
                turned = _called(graph, aten.permute.default, left, [1, 0])
                new = _summed(graph, _called(graph, aten.mul.Tensor, turned, right), 0)
            else:  # (m, k), (k, 1)
                turned = _called(graph, aten.permute.default, right, [1, 0])
                new = _summed(graph, _called(graph, aten.mul.Tensor, left, turned), 1)
            if bias is not None:
                new = _called(graph, aten.add.Tensor, new, bias)
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    graph.recompile()


def _is_small(left: Any, right: Any) -> bool:
    x, y = left.meta.get("val"), right.meta.get("val")
    return (
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and (x.shape[0] == 1 or y.shape[1] == 1)
        and 0 < max(x.numel(), y.numel()) <= MAX_ELEMENTS
    )


def _summed(graph: fx.GraphModule, terms: fx.Node, axis: int) -> fx.Node:
    return _called(graph, aten.sum.dim_IntList, terms, [axis], True)


def _called(graph: fx.GraphModule, op: Any, *args: Any) -> fx.Node:
    node = graph.graph.call_function(op, args)
    node.meta["val"] = op(*fx.node.map_arg(args, lambda n: n.meta["val"]))
    return node
