"""Mixtures of experts: which network a row goes to depends on values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo.model import Model, Params, randn
from torch import Tensor

NUM_EXPERTS, NUM_CHOSEN = 3, 2


def weights() -> Params:
    return {
        "router": randn(3, NUM_EXPERTS),
        "up": randn(NUM_EXPERTS, 3, 4),
        "down": randn(NUM_EXPERTS, 4, 2),
    }


def routed(p: Params, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights and the numbers of the chosen experts, and how unevenly they are used."""
    logits = x @ p["router"]
    top, chosen = logits.topk(NUM_CHOSEN, dim=-1)
    used = F.one_hot(chosen, NUM_EXPERTS).to(x.dtype).mean((0, 1))
    balance = NUM_EXPERTS * (used * logits.softmax(-1).mean(0)).sum()
    return top.softmax(-1), chosen, balance + logits.logsumexp(-1).square().mean()


def sparse_experts() -> Model:
    """Each expert gets the rows that chose it, and adds its results where they came from."""

    def call(p: Params, x: Tensor) -> Tensor:
        share, chosen, loss = routed(p, x)
        out = x.new_zeros(x.shape[0], 2)
        for expert in range(NUM_EXPERTS):
            rows, place = torch.where(chosen == expert)
            if not rows.numel():
                continue
            y = F.silu(x[rows] @ p["up"][expert]) @ p["down"][expert]
            out.index_add_(0, rows, share[rows, place, None] * y)
        return torch.cat([out.flatten(), loss[None]])

    return Model(call, weights(), randn(4, 3), has_vmap=False)


def gathered_experts() -> Model:
    """Each row gathers the weights of the experts that it chose."""

    def call(p: Params, x: Tensor) -> Tensor:
        share, chosen, loss = routed(p, x)
        hidden = F.gelu(torch.einsum("ri,rcij->rcj", x, p["up"][chosen]))
        y = torch.einsum("rcj,rcjo->rco", hidden, p["down"][chosen])
        return torch.cat([(share[..., None] * y).sum(1).flatten(), loss[None]])

    return Model(call, weights(), randn(3, 3))


def soft_tree() -> Model:
    """A tree of decisions, each taken to a degree; and the leaf that a hard one leads to, straight through."""
    params = {"split": randn(3, 3), "leaf": randn(4, 2)}

    def call(p: Params, x: Tensor) -> Tensor:
        soft = (x @ p["split"]).sigmoid()
        right = soft + ((soft > 0.5).to(x.dtype) - soft).detach()
        first, second = right[:, :1], torch.where(right[:, :1] > 0.5, right[:, 2:], right[:, 1:2])
        reach = (
            torch.cat([1 - first, first], -1)[..., None]
            * torch.cat([1 - second, second], -1)[:, None]
        )
        return (reach.flatten(1) + 0.1 * soft.prod(-1, keepdim=True)) @ p["leaf"]

    return Model(call, params, randn(3, 3), is_smooth=False)


MODELS = {
    "mixture of experts": sparse_experts,
    "mixture of experts by gathering": gathered_experts,
    "tree of decisions": soft_tree,
}
