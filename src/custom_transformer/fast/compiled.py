"""For a GPU: the block functions through torch.compile, attention by PyTorch's fused kernels, both called explicitly.

torch.compile sees forward graphs only: the backward is a function of its own. One block is compiled, not the stack
of them, so that compiling takes as long for a deep model as for a shallow one.

Shapes: B batch, T time, D d_model.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from custom_transformer import blocks, ops

aten = torch.ops.aten


def attention_forward(qkv: Tensor, n_heads: int, keep: Tensor | None, dropout: float) -> tuple[Tensor, ops.Saved]:
    """ops.causal_attention_forward by the fused kernel; as it stands there where that has none: with dropout (whose
    masks are drawn outside), and for float32 on a GPU.        qkv (B, T, 3·D) -> y (B, T, D)"""
    if keep is not None or (qkv.is_cuda and qkv.dtype != torch.bfloat16):
        y, saved = ops.causal_attention_forward(qkv, n_heads, keep, dropout)
        return y, (None, saved)
    q, k, v = ops.split_heads(qkv, n_heads)
    if qkv.is_cuda:
        y, *statistics, _ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)
    else:
        y, *statistics = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    return ops.merge_heads(y), ((q, k, v, y), statistics)


def attention_backward(dy: Tensor, saved: ops.Saved) -> Tensor:
    """ops.causal_attention_backward by the fused kernel.        dy (B, T, D) -> dqkv (B, T, 3·D)"""
    heads, statistics = saved
    if heads is None:
        return ops.causal_attention_backward(dy, statistics)
    q, k, v, y = heads
    dy_heads = dy.view(dy.shape[0], dy.shape[1], q.shape[1], -1).transpose(1, 2)
    if dy.is_cuda:
        lse, *lengths, seed, offset = statistics
        dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(
            dy_heads, q, k, v, y, lse, *lengths, 0.0, True, seed, offset
        )
    else:
        (lse,) = statistics
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(dy_heads, q, k, v, y, lse, 0.0, True)
    return ops.merge_heads(dq, dk, dv)


block_forward = functools.partial(blocks.block_forward, attention_forward=attention_forward)
block_backward = functools.partial(blocks.block_backward, attention_backward=attention_backward)
