"""Transformers: by layers, by attention modules, and by hand."""

from __future__ import annotations

import math

import torch
from models.zoo.model import Model, of_module, randn
from torch import Tensor, nn


class Encoder(nn.Module):
    """Positions added, then layers of causal self-attention; the last one normalizes first."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(randn(3, 6, scale=0.3))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                6, 2, 8, dropout=0.1, activation=activation, batch_first=True, norm_first=norm_first
            )
            for activation, norm_first in (("relu", False), ("gelu", True))
        )
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[-2], dtype=x.dtype)
        x = x + self.positions
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.norm(x).mean(dim=-2)


def transformer_encoder() -> Model:
    return of_module(Encoder().eval(), randn(2, 3, 6))


class AttentionByHand(nn.Module):
    """One block written out: split heads, scaled scores, masked softmax, residual, normalize."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.out = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-2]
        q, k, v = (t.unflatten(-1, (2, 2)).transpose(-2, -3) for t in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.mT / math.sqrt(2)
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return self.norm(x + self.out((weights @ v).transpose(-2, -3).flatten(-2)))


def attention_by_hand() -> Model:
    return of_module(AttentionByHand(), randn(2, 3, 4))


MODELS = {
    "transformer encoder": transformer_encoder,
    "attention by hand": attention_by_hand,
}
