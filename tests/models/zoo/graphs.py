"""Networks on graphs: messages along edges, gathered at nodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo.model import Model, Params, randn
from torch import Tensor

SOURCE = torch.tensor([0, 1, 1, 2, 3, 3, 4, 0])
TARGET = torch.tensor([1, 0, 2, 1, 1, 4, 3, 3])
NUM_NODES = 5


def graph_convolution() -> Model:
    """Two layers, normalized by degrees; messages are gathered and added up by ``index_add``."""
    params = {
        "w1": randn(3, 4),
        "w2": randn(4, 2),
        "edge": randn(len(SOURCE), scale=0.5),
    }

    def call(p: Params, x: Tensor) -> Tensor:
        weight = p["edge"].exp()
        degree = weight.new_ones(NUM_NODES).index_add(0, TARGET, weight)
        norm = weight * degree[SOURCE].rsqrt() * degree[TARGET].rsqrt()

        def propagate(h: Tensor) -> Tensor:
            return (h / degree[:, None]).index_add(0, TARGET, norm[:, None] * h[SOURCE])

        h = propagate(x @ p["w1"]).tanh()
        return propagate(h @ p["w2"])

    return Model(call, params, randn(NUM_NODES, 3))


def graph_attention() -> Model:
    """Attention over the incoming edges: scores by gather, softmax by scatter_reduce and scatter_add."""
    params = {"w": randn(3, 4), "a": randn(8)}

    def call(p: Params, x: Tensor) -> Tensor:
        h = x @ p["w"]
        pair = torch.cat([h.index_select(0, SOURCE), h.index_select(0, TARGET)], dim=1)
        score = F.leaky_relu(pair @ p["a"], 0.2)
        largest = score.new_full((NUM_NODES,), -1e3).scatter_reduce(0, TARGET, score, "amax")
        weight = (score - largest.gather(0, TARGET)).exp()
        total = score.new_zeros(NUM_NODES).scatter_add(0, TARGET, weight)
        alpha = weight / total[TARGET].clamp(min=1e-9)
        place = TARGET[:, None].expand(-1, 4)
        return h.new_zeros(NUM_NODES, 4).scatter_add(0, place, alpha[:, None] * h[SOURCE])

    return Model(call, params, randn(NUM_NODES, 3))


def pooled_messages() -> Model:
    """Messages reduced in every way that ``scatter_reduce`` and ``index_reduce`` know, side by side."""
    params = {"w": randn(6, 3), "u": randn(18, 2)}

    def call(p: Params, x: Tensor) -> Tensor:
        message = (torch.cat([x[SOURCE], x[TARGET]], dim=-1) @ p["w"]).sigmoid()
        place = TARGET[:, None].expand_as(message)
        parts = [
            x.scatter_reduce(0, place, message, how, include_self=how in ("sum", "prod"))
            for how in ("sum", "mean", "amax", "amin", "prod")
        ]
        parts.append(x.index_reduce(0, TARGET, message, "mean"))
        return torch.cat(parts, dim=-1) @ p["u"]

    return Model(call, params, randn(NUM_NODES, 3))


def interaction_network() -> Model:
    """Edges and nodes keep states that update one another; the graphs of a batch are summed up by segments."""
    params = {
        "edge": randn(5, 3),
        "node": randn(5, 2),
        "out": randn(2, 2),
        "start": randn(len(SOURCE), 1),
    }
    graph = torch.tensor([0, 0, 1, 1, 1])

    def call(p: Params, x: Tensor) -> Tensor:
        edge = p["start"]
        for _ in range(2):
            pair = torch.cat([edge, x.index_select(0, SOURCE), x.index_select(0, TARGET)], dim=-1)
            update = F.softplus(pair @ p["edge"])
            edge = edge + update.mean(-1, keepdim=True)
            total = update.new_zeros(NUM_NODES, 3)
            total.index_add_(0, TARGET, update, alpha=0.5)
            x = x + F.elu(torch.cat([x, total], dim=-1) @ p["node"])
        lengths = torch.bincount(graph)
        means = torch.segment_reduce(x, "mean", lengths=lengths, axis=0)
        return torch.cat([means @ p["out"], x.new_zeros(2, 2).index_add(0, graph, x)], dim=-1)

    return Model(call, params, randn(NUM_NODES, 2), has_vmap=False, order=1)


MODELS = {
    "graph convolution": graph_convolution,
    "graph attention": graph_attention,
    "pooled messages": pooled_messages,
    "interaction network": interaction_network,
}
