"""One decoding step (one new token per row) in kernels.

The weights are read from memory once, however many rows there are.

Shapes: B batch, T time, D d_model, H heads, G heads of keys and values, K head size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from custom_transformer.fast.kernels import kernel
from custom_transformer.maths import ops
from custom_transformer.maths.cache import KeyValues

MANY_ROWS = 16  # from here on a product is arithmetic rather than reading, and PyTorch's are better at that


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, D_in), weight (D_in, D_out) -> (B, D_out), in the weight's dtype"""
    y = torch.empty(len(x), weight.shape[1], dtype=weight.dtype, device=x.device)
    kernel("few_rows_product", weight.dtype)(x, weight, len(x), *weight.shape, y)
    return y


def attend_cached(
    qkv: Tensor, bias: Tensor | None, turns: Tensor | None, n_heads: int, n_kv_heads: int, cache: KeyValues
) -> Tensor:
    """The new tokens' attention to those of `cache`, which their keys and values join.

    qkv (B, (H + 2·G)·K), turns (≥ T, K) as in attention_forward -> (B, H·K)
    """
    batch, heads = len(qkv), n_heads + 2 * n_kv_heads
    size, place = qkv.shape[1] // heads, cache.length
    cache.reserve(batch, n_kv_heads, 1, size, qkv)
    y = qkv.new_empty(batch, n_heads * size)
    sizes = (batch, n_heads, n_kv_heads, heads, size, cache.capacity, place)
    turn = None if turns is None else turns[place]
    kernel("attend_cached", qkv.dtype)(qkv, bias, turn, cache.keys, cache.values, *sizes, size**-0.5, y)
    cache.length += 1
    return y


def last_logits(x: Tensor, weight: Tensor) -> Tensor:
    """As ops.last_logits"""
    if len(x) >= MANY_ROWS:
        return ops.last_logits(x, weight)
    rows = x[:, -1].to(weight.dtype).contiguous()
    logits = torch.empty(len(x), len(weight), dtype=weight.dtype, device=x.device)
    kernel("few_rows_logits", weight.dtype)(rows, weight, len(x), x.shape[2], len(weight), logits)
    return logits
