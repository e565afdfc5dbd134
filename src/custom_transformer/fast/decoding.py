"""Generation's step of one new token a row, in kernels: by as many passes over the weights as there are rows, one.

Shapes: B batch, D d_model, H heads, K head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from custom_transformer.fast.kernels import kernel
from custom_transformer.fast.native import add_norm_forward
from custom_transformer.maths import blocks

MANY_ROWS = 16  # from here on a product is arithmetic rather than reading, and PyTorch's are better at that


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, D_in), weight (D_in, D_out) -> (B, D_out), in the weight's dtype"""
    y = torch.empty(len(x), weight.shape[1], dtype=weight.dtype)
    kernel("few_rows_product", weight.dtype)(x, weight, len(x), *weight.shape, y)
    return y


def cached_block_forward(
    x: Tensor, p: Mapping[str, Tensor], n_heads: int, keys: Tensor, values: Tensor, length: int
) -> Tensor:
    """As blocks.cached_block_forward"""
    batch, new, d = x.shape
    if new > 1 or batch >= MANY_ROWS:
        return blocks.cached_block_forward(x, p, n_heads, keys, values, length)
    dtype, size, capacity = keys.dtype, keys.shape[3], keys.shape[2]
    rows = x.reshape(batch, d)
    rows, h, _ = add_norm_forward(rows, None, None, None, 0.0, p["norm_1.weight"], p.get("norm_1.bias"), dtype)
    qkv, a = _product(h, p["qkv.weight"]), torch.empty_like(h)
    kernel("attend_cached", dtype)(
        qkv, p.get("qkv.bias"), keys, values, batch, n_heads, size, capacity, length, size**-0.5, a
    )
    h, bias = _product(a, p["projection.weight"]), p.get("projection.bias")
    rows, h, _ = add_norm_forward(rows, h, bias, None, 0.0, p["norm_2.weight"], p.get("norm_2.bias"), dtype)
    up = _product(h, p["up.weight"])
    h = torch.empty_like(up)
    kernel("gelu_forward", dtype)(up, p.get("up.bias"), *up.shape, h)
    rows = rows + _product(h, p["down.weight"])
    if "down.bias" in p:
        rows = rows + p["down.bias"]
    return rows.view(batch, 1, d)


def last_logits(x: Tensor, head_weight: Tensor) -> Tensor:
    """As blocks.last_logits"""
    if len(x) >= MANY_ROWS:
        return blocks.last_logits(x, head_weight)
    rows = x[:, -1].to(head_weight.dtype).contiguous()
    logits = torch.empty(len(x), len(head_weight), dtype=head_weight.dtype)
    kernel("few_rows_logits", head_weight.dtype)(rows, head_weight, len(x), x.shape[2], len(head_weight), logits)
    return logits
