"""Attention of new tokens to earlier ones, whose keys and values are kept.

Shapes: B batch, T time, D d_model, H heads, G heads of keys and values, K head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from custom_transformer.maths.ops import attention_scores, merge_heads, shared_by_queries, split_groups, split_heads
from custom_transformer.maths.scope import Saved


class KeyValues:
    """One block's keys and values of the tokens so far, (B, G, T, K) at the front of (B, G, capacity, K)."""

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0  # T
        self.keys = self.values = torch.empty(0, device="cpu")

    def reserve(self, batch: int, n_heads: int, new: int, size: int, like: Tensor) -> None:
        """Makes room at the first token; raises ValueError if `new` further tokens of as many rows do not fit."""
        shape = (batch, n_heads, self.capacity, size)
        if not self.length:
            self.keys, self.values = (torch.empty(shape, dtype=like.dtype, device=like.device) for _ in range(2))
        if self.length + new > self.capacity or self.keys.shape != shape:
            raise ValueError(
                f"{new} tokens after {self.length}, in {batch} rows, do not fit into keys and values of the shape "
                f"{tuple(self.keys.shape)}"
            )

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those of all tokens, the new ones' k and v (B, G, T_new, K) included."""
        batch, n_heads, new, size = k.shape
        self.reserve(batch, n_heads, new, size, k)
        start, self.length = self.length, self.length + new
        self.keys[:, :, start : self.length], self.values[:, :, start : self.length] = k, v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


def cached_attention_forward(
    qkv: Tensor, n_heads: int, keep: Tensor | None, dropout: float, cache: KeyValues
) -> tuple[Tensor, Saved]:
    """`causal_attention_forward` of the newest tokens alone, which attend to earlier ones through `cache`

    qkv (B, T_new, 3·D) -> y (B, T_new, D). Nothing is dropped and nothing saved: no backward follows.
    """
    q, k, v = split_heads(qkv, n_heads)
    keys, values = cache.append(k, v)
    probabilities = torch.softmax(attention_scores(q, keys), -1).to(v.dtype)
    return merge_heads(probabilities @ values), ()


def cached_rotary_attention_forward(
    qkv: Tensor, n_heads: int, n_kv_heads: int, base: float, keep: Tensor | None, dropout: float, cache: KeyValues
) -> tuple[Tensor, Saved]:
    """`rotary_attention_forward` of the newest tokens alone, as above; cached keys are turned already

    qkv (B, T_new, (H + 2·G)·K) -> y (B, T_new, H·K)
    """
    q, k, v = split_groups(qkv, n_heads, n_kv_heads, base, cache.length)
    keys, values = (shared_by_queries(part, q) for part in cache.append(k, v))
    probabilities = torch.softmax(attention_scores(q, keys), -1).to(v.dtype)
    return merge_heads(probabilities @ values), ()
