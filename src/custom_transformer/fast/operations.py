"""The operations of ops.py one by one in kernels, for blocks of which each result is watched.

Shapes: B batch, T time, D d_model, N = B·T rows; `...` is any leading shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from custom_transformer.fast import norm
from custom_transformer.fast.attention import attention_backward, attention_forward, rotary_turns
from custom_transformer.fast.fused import linear_forward
from custom_transformer.fast.kernels import kernel
from custom_transformer.fast.norm import Addend, add_layer_norm_forward, add_norm_backward, add_rms_norm_forward
from custom_transformer.fast.products import matmul, weight_gradient
from custom_transformer.fast.rows import add_rows, column_sums
from custom_transformer.maths import ops
from custom_transformer.maths.scope import Op, Saved


def lookup_backward(dx: Tensor, saved: Saved, d_head: Tensor | None = None) -> tuple[None, Tensor]:
    """As ops.lookup_backward; into d_head itself, which is taken over"""
    input_ids, table = saved
    d_table = torch.zeros_like(table) if d_head is None else d_head.to(table.dtype).contiguous()
    add_rows(dx.flatten(0, -2), input_ids.flatten(), None, d_table)
    return None, d_table


def positions_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
    """As ops.positions_backward"""
    table, start, time = saved
    d_table = torch.zeros_like(table)
    d_table[start : start + time] = column_sums(dy.flatten(1)).view(time, -1)
    return dy, d_table


def linear_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor | None]:
    """As ops.linear_backward; the weight's gradient float32 or wider"""
    x, weight, bias, input_dtype = saved
    dy_rows = dy.flatten(0, -2).to(weight.dtype)
    dx = matmul(dy_rows, weight.T).view(*dy.shape[:-1], -1).to(input_dtype)
    return dx, weight_gradient(x.flatten(0, -2), dy_rows), None if bias is None else column_sums(dy_rows)


def layer_norm_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Saved]:
    """As ops.layer_norm_forward"""
    _, y, saved = add_layer_norm_forward(x.flatten(0, -2), Addend(), weight, bias, x.dtype)
    return y.view(x.shape), saved


def layer_norm_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor | None]:
    """As ops.layer_norm_backward"""
    dx, _, _, dweight, dbias = add_norm_backward(dy.flatten(0, -2), None, saved)
    assert dweight is not None
    return dx.view(dy.shape), dweight, dbias


def rms_norm_forward(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Saved]:
    """As ops.rms_norm_forward"""
    _, y, saved = add_rms_norm_forward(x.flatten(0, -2), Addend(), weight, eps, x.dtype)
    return y.view(x.shape), saved


def rms_norm_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor | None]:
    """As ops.rms_norm_backward"""
    dx, _, _, dweight, _ = add_norm_backward(dy.flatten(0, -2), None, saved)
    return dx.view(dy.shape), dweight


def gelu_forward(x: Tensor) -> tuple[Tensor, Saved]:
    """As ops.gelu_forward"""
    y = torch.empty_like(x)
    kernel("gelu_forward", x.dtype)(x, None, *x.flatten(0, -2).shape, y)
    return y, (x,)


def gelu_backward(dy: Tensor, saved: Saved) -> Tensor:
    """As ops.gelu_backward"""
    (x,) = saved
    dx = dy.clone()
    kernel("gelu_backward", x.dtype)(dx, x.clone(), None, *x.flatten(0, -2).shape, None)
    return dx


def relu_squared_forward(x: Tensor) -> tuple[Tensor, Saved]:
    """As ops.relu_squared_forward"""
    y = torch.empty_like(x)
    kernel("relu_squared_forward", x.dtype)(x, x.numel(), y)
    return y, (x,)


def relu_squared_backward(dy: Tensor, saved: Saved) -> Tensor:
    """As ops.relu_squared_backward"""
    (x,) = saved
    dx = dy.clone()
    kernel("relu_squared_backward", x.dtype)(dx, x.clone(), x.numel())
    return dx


def qk_norm_forward(qkv: Tensor, n_heads: int, n_kv_heads: int, eps: float) -> tuple[Tensor, Saved]:
    """As ops.qk_norm_forward"""
    y = qkv.clone(memory_format=torch.contiguous_format)
    return y, norm.qk_norm(y.flatten(0, 1), n_heads, n_kv_heads, eps)


def qk_norm_backward(dy: Tensor, saved: Saved) -> Tensor:
    """As ops.qk_norm_backward"""
    dx = dy.clone(memory_format=torch.contiguous_format)
    norm.qk_norm_backward(dx.flatten(0, 1), saved)
    return dx


def swiglu_forward(x: Tensor) -> tuple[Tensor, Saved]:
    """As ops.swiglu_forward"""
    y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    kernel("swiglu_forward", x.dtype)(x, *y.flatten(0, -2).shape, y)
    return y, (x,)


def swiglu_backward(dy: Tensor, saved: Saved) -> Tensor:
    """As ops.swiglu_backward"""
    dx = saved[0].clone()
    kernel("swiglu_backward", dx.dtype)(dy.clone(), dx, *dy.flatten(0, -2).shape)
    return dx


def causal_attention_forward(qkv: Tensor, n_heads: int, keep: Tensor | None, dropout: float) -> tuple[Tensor, Saved]:
    """As ops.causal_attention_forward"""
    y, saved = attention_forward(qkv.flatten(0, 1), None, None, len(qkv), n_heads, n_heads, keep, dropout)
    return y.view(*qkv.shape[:2], -1), saved


def rotary_attention_forward(
    qkv: Tensor, n_heads: int, n_kv_heads: int, base: float, keep: Tensor | None, dropout: float
) -> tuple[Tensor, Saved]:
    """As ops.rotary_attention_forward"""
    batch, time, width = qkv.shape
    wide = torch.promote_types(qkv.dtype, torch.float32)
    turns = rotary_turns(time, width // (n_heads + 2 * n_kv_heads), base, wide)
    y, saved = attention_forward(qkv.flatten(0, 1), None, turns, batch, n_heads, n_kv_heads, keep, dropout)
    return y.view(batch, time, -1), saved


def attention_backward_of_rows(dy: Tensor, saved: Saved) -> Tensor:
    """As ops.causal_attention_backward or ops.rotary_attention_backward"""
    dqkv, _ = attention_backward(dy.flatten(0, 1), saved)
    return dqkv.view(*dy.shape[:2], -1)


EQUALS = {
    ops.lookup: ops.lookup._replace(backward=lookup_backward),
    ops.positions: ops.positions._replace(backward=positions_backward),
    ops.linear: ops.linear._replace(forward=linear_forward, backward=linear_backward),
    ops.layer_norm: ops.layer_norm._replace(forward=layer_norm_forward, backward=layer_norm_backward),
    ops.rms_norm: ops.rms_norm._replace(forward=rms_norm_forward, backward=rms_norm_backward),
    ops.gelu: Op(gelu_forward, gelu_backward),
    ops.relu_squared: Op(relu_squared_forward, relu_squared_backward),
    ops.qk_norm: Op(qk_norm_forward, qk_norm_backward),
    ops.swiglu: Op(swiglu_forward, swiglu_backward),
    ops.causal_attention: Op(causal_attention_forward, attention_backward_of_rows),
    ops.rotary_attention: Op(rotary_attention_forward, attention_backward_of_rows),
}
