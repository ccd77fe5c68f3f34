"""Transformers: by layers, by attention modules, and by hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from models.zoo.model import Model, of_module, randn, switched
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


def layers_in_turns() -> Model:
    """Without dropout, training and evaluation give the same numbers by different kernels."""
    layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True)
    return switched(nn.TransformerEncoder(layer, 2), randn(2, 3, 4))


class Padded(nn.Module):
    """An encoder whose second sequence ends early."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.register_buffer("is_padding", torch.tensor([[False] * 3, [False, False, True]]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(x, src_key_padding_mask=self.is_padding)
        return y.masked_fill(self.is_padding[..., None], 0.0).sum(-2)


def padded_encoder() -> Model:
    return switched(Padded(), randn(2, 3, 4))


class Translator(nn.Module):
    """A decoder layer that attends to an encoded sequence of another length."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoderLayer(4, 2, 5, dropout=0.0, activation="gelu")
        self.memory = nn.Parameter(randn(4, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[0], dtype=x.dtype)
        return self.decoder(x, self.memory.sin(), tgt_mask=mask)


def translator() -> Model:
    return switched(Translator(), randn(3, 1, 4))


class CrossAttention(nn.Module):
    """``nn.MultiheadAttention`` with all that it has: other sizes, biases, a row of zeros, a mask, the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            4, 2, kdim=3, vdim=2, add_bias_kv=True, add_zero_attn=True, batch_first=True
        )
        self.keys = nn.Linear(4, 3)
        self.values = nn.Linear(4, 2)
        self.mask = nn.Parameter(randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y, weights = self.attention(
            x, self.keys(x), self.values(x), attn_mask=self.mask, average_attn_weights=False
        )
        return torch.cat([y, weights.sum(1)], dim=-1)


def cross_attention() -> Model:
    return of_module(CrossAttention(), randn(2, 3, 4))


class RotaryBlock(nn.Module):
    """A layer of a language model: RMS norms, rotated queries and keys, shared heads, a gated network."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.RMSNorm(4), nn.RMSNorm(4)])
        self.queries = nn.Linear(4, 8, bias=False)
        self.keys = nn.Linear(4, 4, bias=False)
        self.values = nn.Linear(4, 4, bias=False)
        self.out = nn.Linear(8, 4, bias=False)
        self.gate = nn.Linear(4, 5, bias=False)
        self.up = nn.Linear(4, 5, bias=False)
        self.down = nn.Linear(5, 4, bias=False)

    @staticmethod
    def rotated(x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2], dtype=x.dtype)
        first, second = x.chunk(2, dim=-1)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        q, k, v = (
            layer(y).unflatten(-1, (-1, 2)).transpose(-2, -3)
            for layer in (self.queries, self.keys, self.values)
        )
        y = F.scaled_dot_product_attention(
            self.rotated(q), self.rotated(k), v, is_causal=True, enable_gqa=True
        )
        x = x + self.out(y.transpose(-2, -3).flatten(-2))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def rotary_block() -> Model:
    return of_module(RotaryBlock(), randn(1, 3, 4))


def dropped_out() -> Model:
    """Dropout in training: the same neurons in every derivative of one call."""
    net = nn.Sequential(
        nn.Linear(4, 6), nn.GELU(), nn.Dropout(0.4), nn.Linear(6, 3), nn.AlphaDropout()
    )
    return switched(net, randn(2, 4), draws=True)


MODELS = {
    "transformer encoder": transformer_encoder,
    "attention by hand": attention_by_hand,
    "transformer encoder in training and evaluation": layers_in_turns,
    "padded transformer encoder": padded_encoder,
    "transformer decoder": translator,
    "cross attention": cross_attention,
    "rotary block": rotary_block,
    "dropout": dropped_out,
}
