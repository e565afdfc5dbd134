"""New tokens after cached ones, in kernels; their weights are read from memory once, however many rows there are.

Shapes: B batch, T_new new tokens per row, D d_model, H heads, G heads of keys and values, K head size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from custom_transformer.fast.kernels import kernel
from custom_transformer.fast.products import matmul
from custom_transformer.maths.cache import KeyValues

MANY_ROWS = 16  # from here on a product is arithmetic rather than reading


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, D_in), weight (D_in, D_out) -> (N, D_out), in the weight's dtype"""
    if len(x) >= MANY_ROWS:
        return matmul(x, weight)
    y = torch.empty(len(x), weight.shape[1], dtype=weight.dtype, device=x.device)
    kernel("few_rows_product", weight.dtype)(x, weight, len(x), *weight.shape, y)
    return y


def attend_cached(
    qkv: Tensor, bias: Tensor | None, turns: Tensor | None, batch: int, n_heads: int, n_kv_heads: int, cache: KeyValues
) -> Tensor:
    """The new tokens' attention to those of `cache`, which their keys and values join, and to each other.

    qkv (B·T_new, (H + 2·G)·K), turns (≥ T, K) as in attention_forward -> (B·T_new, H·K)
    """
    new, heads = len(qkv) // batch, n_heads + 2 * n_kv_heads
    size, place = qkv.shape[1] // heads, cache.length
    cache.reserve(batch, n_kv_heads, new, size, qkv)
    y = qkv.new_empty(len(qkv), n_heads * size)
    sizes = (batch, new, n_heads, n_kv_heads, heads, size, cache.capacity, place)
    turned = None if turns is None else turns[place : place + new]
    kernel("attend_cached", qkv.dtype)(qkv, bias, turned, cache.keys, cache.values, *sizes, y)
    cache.length += new
    return y


def last_logits(x: Tensor, weight: Tensor) -> Tensor:
    """As ops.last_logits"""
    rows = x[:, -1].to(weight.dtype).contiguous()
    if len(x) >= MANY_ROWS:
        return matmul(rows, weight.T)
    logits = torch.empty(len(x), len(weight), dtype=weight.dtype, device=x.device)
    kernel("few_rows_logits", weight.dtype)(rows, weight, len(x), x.shape[2], len(weight), logits)
    return logits
