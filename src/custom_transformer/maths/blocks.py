"""A block of the model, and the stack of them: forwards, and backwards that are the forwards upside down.

A backward undoes its forward's lines from the last to the first, and hands each gradient on to the line before.
`ops` is ops.py, or a module with the same functions.

Shapes: B batch, T time, D d_model, F d_ffn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths import ops
from custom_transformer.maths.ops import Saved

Gradients = dict[str, Tensor | None]  # by a parameter's short name; None where the parameter is absent


def keep_shapes(config: CustomTransformerConfig, batch: int, time: int) -> dict[str, tuple[int, ...]]:
    """Where a block drops something, and the shape of the mask there."""
    return {
        "attention": (batch, config.n_heads, time, time),
        "projection": (batch, time, config.d_model),
        "down": (batch, time, config.d_model),
    }


def draw_keep(shape: tuple[int, ...], dropout: float, generator: torch.Generator) -> Tensor:
    """A dropout mask: True with probability 1 − p. Drawn on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device) >= dropout


def attention_layer_forward(
    x: Tensor,
    p: Mapping[str, Tensor],
    n_heads: int,
    keep: Mapping[str, Tensor],
    dropout: float,
    ops: Any = ops,
) -> tuple[Tensor, Saved]:
    """x + dropout(projection(attention(qkv(norm(x)))))        x (B, T, D) -> (B, T, D)"""
    h, norm = ops.layer_norm_forward(x, p["norm_1.weight"], p.get("norm_1.bias"))
    h, qkv = ops.linear_forward(h, p["qkv.weight"], p.get("qkv.bias"))
    h, attention = ops.causal_attention_forward(h, n_heads, keep.get("attention"), dropout)
    h, projection = ops.linear_forward(h, p["projection.weight"], p.get("projection.bias"))
    h, drop = ops.dropout_forward(h, keep.get("projection"), dropout)
    return x + h, (norm, qkv, attention, projection, drop)


def attention_layer_backward(dx: Tensor, saved: Saved, ops: Any = ops) -> tuple[Tensor, Gradients]:
    """The forward, upside down; the gradients of its parameters under their names."""
    norm, qkv, attention, projection, drop = saved
    g: Gradients = {}
    dh = ops.dropout_backward(dx, drop)
    dh, g["projection.weight"], g["projection.bias"] = ops.linear_backward(dh, projection)
    dh = ops.causal_attention_backward(dh, attention)
    dh, g["qkv.weight"], g["qkv.bias"] = ops.linear_backward(dh, qkv)
    dh, g["norm_1.weight"], g["norm_1.bias"] = ops.layer_norm_backward(dh, norm)
    return dx + dh, g  # x + h hands x to both sides, so their gradients add


def feed_forward_layer_forward(
    x: Tensor, p: Mapping[str, Tensor], keep: Mapping[str, Tensor], dropout: float, ops: Any = ops
) -> tuple[Tensor, Saved]:
    """x + dropout(down(gelu(up(norm(x)))))        x (B, T, D) -> (B, T, D)"""
    h, norm = ops.layer_norm_forward(x, p["norm_2.weight"], p.get("norm_2.bias"))
    h, up = ops.linear_forward(h, p["up.weight"], p.get("up.bias"))
    h, gelu = ops.gelu_forward(h)
    h, down = ops.linear_forward(h, p["down.weight"], p.get("down.bias"))
    h, drop = ops.dropout_forward(h, keep.get("down"), dropout)
    return x + h, (norm, up, gelu, down, drop)


def feed_forward_layer_backward(dx: Tensor, saved: Saved, ops: Any = ops) -> tuple[Tensor, Gradients]:
    """The forward, upside down; the gradients of its parameters under their names."""
    norm, up, gelu, down, drop = saved
    g: Gradients = {}
    dh = ops.dropout_backward(dx, drop)
    dh, g["down.weight"], g["down.bias"] = ops.linear_backward(dh, down)
    dh = ops.gelu_backward(dh, gelu)
    dh, g["up.weight"], g["up.bias"] = ops.linear_backward(dh, up)
    dh, g["norm_2.weight"], g["norm_2.bias"] = ops.layer_norm_backward(dh, norm)
    return dx + dh, g


def block_forward(
    x: Tensor,
    p: Mapping[str, Tensor],
    n_heads: int,
    keep: Mapping[str, Tensor],
    dropout: float,
    ops: Any = ops,
) -> tuple[Tensor, Saved]:
    """x (B, T, D) -> (B, T, D), by the block's own parameters `p`; `keep` is empty when nothing is dropped."""
    x, attention_layer = attention_layer_forward(x, p, n_heads, keep, dropout, ops)
    x, feed_forward_layer = feed_forward_layer_forward(x, p, keep, dropout, ops)
    return x, (attention_layer, feed_forward_layer)


def block_backward(dx: Tensor, saved: Saved, ops: Any = ops) -> tuple[Tensor, Gradients]:
    """dx (B, T, D) -> (B, T, D), and the gradients of the block's parameters under their short names"""
    attention_layer, feed_forward_layer = saved
    dx, g_feed_forward = feed_forward_layer_backward(dx, feed_forward_layer, ops)
    dx, g_attention = attention_layer_backward(dx, attention_layer, ops)
    return dx, g_attention | g_feed_forward


# ---------------------------------------------------------------------------------------- for generation


def cached_block_forward(
    x: Tensor, p: Mapping[str, Tensor], n_heads: int, keys: Tensor, values: Tensor, length: int
) -> Tensor:
    """`block_forward` of the newest tokens alone, which attend to earlier ones by their keys and values.

    x (B, T_new, D) -> (B, T_new, D). keys and values (B, H, capacity, K) hold those of `length` tokens at their
    front; the new tokens' are written behind them.
    """
    h, _ = ops.layer_norm_forward(x, p["norm_1.weight"], p.get("norm_1.bias"))
    h, _ = ops.linear_forward(h, p["qkv.weight"], p.get("qkv.bias"))
    q, k, v = ops.split_heads(h, n_heads)
    end = length + x.shape[1]
    keys[:, :, length:end], values[:, :, length:end] = k, v
    probabilities = torch.softmax(ops.attention_scores(q, keys[:, :, :end]), -1).to(v.dtype)
    h = ops.merge_heads(probabilities @ values[:, :, :end])
    h, _ = ops.linear_forward(h, p["projection.weight"], p.get("projection.bias"))
    x, _ = feed_forward_layer_forward(x + h, p, keep={}, dropout=0.0)
    return x


def last_logits(x: Tensor, head_weight: Tensor) -> Tensor:
    """The logits after each row's newest token. x (B, T, D), head_weight (V, D) -> (B, V) in the head's dtype"""
    return x[:, -1].to(head_weight.dtype) @ head_weight.T


# -------------------------------------------------------------------------------------------------- stack


def in_product_dtype(p: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """A block's parameters with the matrices in the dtype of the matrix products."""
    return {name: tensor.to(dtype) if tensor.ndim == 2 else tensor for name, tensor in p.items()}


def stack_forward(
    x: Tensor,
    blocks: Sequence[Mapping[str, Tensor]],
    final_norm: Mapping[str, Tensor],
    n_heads: int,
    dtype: torch.dtype,
    draw_masks: Callable[[], Mapping[str, Tensor]],
    dropout: float,
    block_forward: Callable[..., Any] = block_forward,
    ops: Any = ops,
) -> tuple[Tensor, Saved]:
    """All blocks and the last norm. x (B, T, D) -> (B, T, D)

    blocks: each block's parameters; final_norm: "weight", and "bias" where there are biases; dtype: that of the
    matrix products; draw_masks: called once a block for its dropout masks.
    """
    saved = []
    for p in blocks:
        x, block = block_forward(x, in_product_dtype(p, dtype), n_heads, draw_masks(), dropout, ops)
        saved.append(block)
    x, norm = ops.layer_norm_forward(x, final_norm["weight"], final_norm.get("bias"))
    return x, (saved, norm)


def stack_backward(
    dx: Tensor, saved: Saved, block_backward: Callable[..., Any] = block_backward, ops: Any = ops
) -> tuple[Tensor, list[Gradients], Gradients]:
    """dx (B, T, D) -> (B, T, D), each block's gradients, and the last norm's

    A block's saved tensors are let go as soon as its backward has read them.
    """
    blocks, norm = saved
    g_norm: Gradients = {}
    g_blocks: list[Gradients] = []
    dx, g_norm["weight"], g_norm["bias"] = ops.layer_norm_backward(dx, norm)
    while blocks:
        dx, g = block_backward(dx, blocks.pop(), ops)
        g_blocks.insert(0, g)
    return dx, g_blocks, g_norm
