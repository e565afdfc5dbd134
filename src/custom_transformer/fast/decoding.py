"""One decoding step (one new token per row) in kernels.

The weights are read from memory once, however many rows there are.

Shapes: B batch, D d_model, H heads, K head size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.kernels import kernel
from custom_transformer.fast.native import add_norm_forward
from custom_transformer.maths import ops
from custom_transformer.maths.architecture import GPT2
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.scope import Scope
from custom_transformer.maths.stack import cached_block_forward as readable_cached_block_forward

MANY_ROWS = 16  # from here on a product is arithmetic rather than reading, and PyTorch's are better at that


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, D_in), weight (D_in, D_out) -> (B, D_out), in the weight's dtype"""
    y = torch.empty(len(x), weight.shape[1], dtype=weight.dtype, device=x.device)
    kernel("few_rows_product", weight.dtype)(x, weight, len(x), *weight.shape, y)
    return y


def cached_block_forward(x: Tensor, at: Scope, config: CustomTransformerConfig, cache: KeyValues) -> Tensor:
    """As stack.cached_block_forward"""
    batch, new, d = x.shape
    if new > 1 or batch >= MANY_ROWS:
        return readable_cached_block_forward(GPT2, x, at, config, cache)
    weight, n_heads, size = at["qkv.weight"], config.n_heads, config.head_size
    dtype = weight.dtype
    rows = x.reshape(batch, d)
    rows, h, _ = add_norm_forward(rows, None, None, None, 0.0, at["norm_1.weight"], at.get("norm_1.bias"), dtype)
    qkv, a = _product(h, weight), torch.empty_like(h)
    cache.reserve(batch, n_heads, new, size, qkv)
    sizes = (batch, n_heads, size, cache.capacity, cache.length)
    kernel("attend_cached", dtype)(qkv, at.get("qkv.bias"), cache.keys, cache.values, *sizes, size**-0.5, a)
    cache.length += 1
    h, bias = _product(a, at["projection.weight"]), at.get("projection.bias")
    rows, h, _ = add_norm_forward(rows, h, bias, None, 0.0, at["norm_2.weight"], at.get("norm_2.bias"), dtype)
    up = _product(h, at["up.weight"])
    h = torch.empty_like(up)
    kernel("gelu_forward", dtype)(up, at.get("up.bias"), *up.shape, h)
    rows = rows + _product(h, at["down.weight"])
    if (bias := at.get("down.bias")) is not None:
        rows = rows + bias
    return rows.view(batch, 1, d)


def last_logits(x: Tensor, weight: Tensor) -> Tensor:
    """As ops.last_logits"""
    if len(x) >= MANY_ROWS:
        return ops.last_logits(x, weight)
    rows = x[:, -1].to(weight.dtype).contiguous()
    logits = torch.empty(len(x), len(weight), dtype=weight.dtype, device=x.device)
    kernel("few_rows_logits", weight.dtype)(rows, weight, len(x), x.shape[2], len(weight), logits)
    return logits
