"""Causal attention in kernels, with or without turns and shared keys; probabilities are not kept but computed again.

Shapes: B batch, T time, H heads, G heads of keys and values, K head size, N = B·T rows.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from custom_transformer.fast.kernels import kernel
from custom_transformer.maths.ops import rotate
from custom_transformer.maths.scope import Saved


def attention_forward(
    qkv: Tensor,
    bias: Tensor | None,
    turns: Tensor | None,
    batch: int,
    n_heads: int,
    n_kv_heads: int,
    keep: Tensor | None,
    dropout: float,
    probabilities: Tensor | None = None,
) -> tuple[Tensor, Saved]:
    """ops.causal_attention_forward of qkv + bias; with `turns`, ops.rotary_attention_forward.

    qkv (N, (H + 2·G)·K), turns (T, K): of each place the cosines, then the sines, keep (B, H, T, T) bool or None
    -> y (N, H·K). `probabilities` (B, H, T, T), float32 or wider, is written to where it is given.
    """
    heads, time = n_heads + 2 * n_kv_heads, len(qkv) // batch
    size = qkv.shape[1] // heads
    y = qkv.new_empty(len(qkv), n_heads * size)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    tops, inverses = (torch.empty(batch, n_heads, time, dtype=wide, device="cpu") for _ in range(2))
    sizes = (batch, time, n_heads, n_kv_heads, heads, size)
    kernel("attention_forward", qkv.dtype)(
        qkv, bias, turns, keep, 1 / (1 - dropout), *sizes, y, tops, inverses, probabilities
    )
    return y, (qkv, bias, turns, keep, dropout, sizes, tops, inverses)


def attention_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor | None]:
    """d_qkv (N, (H + 2·G)·K) and d_bias, as ops.causal_attention_backward or ops.rotary_attention_backward

    dy (N, H·K)
    """
    qkv, bias, turns, keep, dropout, sizes, tops, inverses = saved
    dqkv = torch.empty_like(qkv)
    dbias = None if bias is None else torch.empty_like(bias)
    kernel("attention_backward", qkv.dtype)(
        dy, qkv, bias, turns, keep, 1 / (1 - dropout), tops, inverses, *sizes, dqkv, dbias
    )
    return dqkv, dbias


def attention_probabilities(q: Tensor, k: Tensor) -> Tensor:
    """As ops.attention_probabilities"""
    batch, n_heads, time, _ = q.shape
    qkv = torch.cat([q, k, k], 1).transpose(1, 2).reshape(batch * time, -1)
    wide = torch.promote_types(q.dtype, torch.float32)
    probabilities = torch.empty(batch, n_heads, time, time, dtype=wide, device="cpu")
    attention_forward(qkv, None, None, batch, n_heads, k.shape[1], None, 0.0, probabilities)
    return probabilities


@functools.lru_cache(maxsize=4)
def rotary_turns(time: int, size: int, base: float, dtype: torch.dtype) -> Tensor:
    """Each place's cosines, then its sines: the pairs (1, 0) turned.        -> (T, K)"""
    ones = torch.ones(time, size // 2, dtype=dtype, device="cpu")
    return rotate(torch.cat([ones, torch.zeros_like(ones)], -1), 0, base)
