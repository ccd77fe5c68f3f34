"""Scaled dot product attention: softmax(scale · Q Kᵀ + mask) V, as PyTorch's fused kernels have it.

Batch and heads are kept; so is the place in the query, as each row of the output
needs one row of the query.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import kept_axes
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.contract import Contract
from pushforward.linear.kinds.expand import Expand
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten


def _weights(
    query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> Tensor:
    """Return softmax(scale · Q Kᵀ + mask), ``(*batch, heads, queries, keys)``."""
    scores = query @ key.transpose(-2, -1) * scale
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if mask is not None:
        is_bool = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -math.inf) if is_bool else scores + mask
    return scores.softmax(-1)


def _repeat_heads(x: Tensor, num_heads: int) -> tuple[Tensor, AbstractLinearMap | None]:
    """Repeat the heads of keys and values that groups of queries share."""
    if x.ndim < 3 or x.shape[-3] == num_heads:
        return x, None
    shape, each = tuple(x.shape), num_heads // x.shape[-3]
    apart = (*shape[:-2], 1, *shape[-2:])
    spread = (*shape[:-2], each, *shape[-2:])
    full = (*shape[:-3], num_heads, *shape[-2:])
    linear_map = compose(Reshape(shape, apart), Expand(apart, spread), Reshape(spread, full))
    return x.repeat_interleave(each, -3), linear_map


def attention_maps(
    which: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> tuple[AbstractLinearMap, AbstractLinearMap | None]:
    """Return the maps from query, key, value or mask to the output and to the log-sum-exp.

    Math: Ṡ = scale · (Q̇ Kᵀ + Q K̇ᵀ) + Ṁ, Ṗ = P ⊙ (Ṡ - ⟨P, Ṡ⟩), Ẏ = Ṗ V + P V̇;
    the log-sum-exp moves by ⟨P, Ṡ⟩.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    key, key_heads = _repeat_heads(key, query.shape[-3])
    value, value_heads = _repeat_heads(value, query.shape[-3])
    weights = _weights(query, key, mask, is_causal, scale)
    batch = "abcdefg"[: weights.ndim - 2]
    scores = tuple(weights.shape)
    lengths, out = scores[:-1], (*scores[:-1], value.shape[-1])
    q, k, s = batch + "le", batch + "se", batch + "ls"
    if which == 2:
        result: AbstractLinearMap = Contract(
            tuple(value.shape), out, batch + "sv", s, batch + "lv", weights
        )
        return (result if value_heads is None else compose(value_heads, result)), None
    to_scores: AbstractLinearMap
    if which == 0:
        to_scores = Contract(tuple(query.shape), scores, q, k, s, key * scale)
    elif which == 1:
        to_scores = Contract(tuple(key.shape), scores, k, q, s, query * scale)
        if key_heads is not None:
            to_scores = compose(key_heads, to_scores)
    else:
        assert mask is not None
        to_scores = Expand(tuple(mask.shape), scores)

    def push(seeds: Tensor) -> Tensor:
        product = weights * seeds
        return (product - weights * product.sum(-1, keepdim=True)) @ value

    def pull(seeds: Tensor) -> Tensor:
        product = weights * (seeds @ value.transpose(-2, -1))
        return product - weights * product.sum(-1, keepdim=True)

    normalized = General(scores, out, push, pull, kept_axes(len(scores) - 1))
    total = Contract(scores, lengths, s, s, batch + "l", weights)
    return compose(to_scores, normalized), compose(to_scores, total)


def _without_dropout(name: str, dropout_p: float) -> None:
    if dropout_p:
        raise NotImplementedError(
            f"{name}: got dropout_p={dropout_p}, expected 0: the kernel does not tell which "
            "weights it dropped. "
            "Use the math backend (torch.nn.attention.sdpa_kernel(SDPBackend.MATH))."
        )


def _declare(operator: Any, read: Callable[..., tuple[Tensor | None, float, bool]]) -> None:
    """Declare a kernel; ``read`` makes (mask, dropout_p, is_causal) of what follows the value."""

    def partial(which: int) -> Callable[..., Any]:
        @with_output
        def maps(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            *options: Any,
            out: Any,
            scale: float | None = None,
            **named: Any,
        ) -> tuple[AbstractLinearMap | None, ...]:
            mask, dropout_p, is_causal = read(*options, **named)
            _without_dropout(str(operator), dropout_p)
            pair = attention_maps(which, query, key, value, mask, is_causal, scale)
            # Some kernels pad or do without it
            same = tuple(out[1].shape) == tuple(query.shape[:-1])
            return (pair[0], pair[1] if same else None, *[None] * (len(out) - 2))

        return maps

    names = [argument.name for argument in operator._schema.arguments]
    masks: dict[str, Any] = {"attn_bias": partial(3)} if "attn_bias" in names else {}
    rule(operator, partial(0), partial(1), partial(2), **masks)


_declare(
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    lambda dropout_p=0.0, is_causal=False, attn_mask=None: (attn_mask, dropout_p, is_causal),
)
_declare(
    aten._scaled_dot_product_flash_attention.default,
    lambda dropout_p=0.0, is_causal=False, return_debug_mask=False: (None, dropout_p, is_causal),
)
_declare(
    aten._scaled_dot_product_efficient_attention.default,
    lambda attn_bias, compute_log_sumexp, dropout_p=0.0, is_causal=False: (
        attn_bias,
        dropout_p,
        is_causal,
    ),
)
_declare(
    aten._scaled_dot_product_cudnn_attention.default,
    lambda attn_bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, return_debug_mask=False: (
        attn_bias,
        dropout_p,
        is_causal,
    ),
)
