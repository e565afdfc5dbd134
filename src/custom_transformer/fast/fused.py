"""The operations of ops.py by PyTorch's own fused kernels: each forward and each backward called explicitly.

For a machine without a compiler and, within torch.compile, for a GPU.

Shapes: B batch, T time, D d_model, V vocabulary, N = B·T rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from custom_transformer.fast.products import matmul
from custom_transformer.maths import ops
from custom_transformer.maths.scope import Op, Saved

aten = torch.ops.aten
_ROWS = 1024  # rows of logits held at once


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Saved]:
    """As ops.linear_forward"""
    x_cast = x.to(weight.dtype)
    y = matmul(x_cast.flatten(0, -2), weight)
    if bias is not None:
        y += bias.to(y.dtype)
    return y.view(*x.shape[:-1], -1), (x_cast, weight, bias, x.dtype)


def linear_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor | None]:
    """As ops.linear_backward"""
    x, weight, bias, input_dtype = saved
    dy_rows = dy.flatten(0, -2).to(weight.dtype)
    dx = matmul(dy_rows, weight.T).view(*dy.shape[:-1], -1).to(input_dtype)
    dbias = None if bias is None else dy_rows.sum(0, dtype=bias.dtype)
    return dx, matmul(x.flatten(0, -2).T, dy_rows), dbias


def layer_norm_forward(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5) -> tuple[Tensor, Saved]:
    """As ops.layer_norm_forward"""
    y, mean, rstd = aten.native_layer_norm(x, weight.shape, weight, bias, eps)
    return y, (x, weight, bias, mean, rstd)


def layer_norm_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor | None]:
    """As ops.layer_norm_backward"""
    x, weight, bias, mean, rstd = saved
    wanted = [True, True, bias is not None]
    dx, dweight, dbias = aten.native_layer_norm_backward(dy, x, weight.shape, mean, rstd, weight, bias, wanted)
    return dx, dweight, dbias


def gelu_forward(x: Tensor) -> tuple[Tensor, Saved]:
    """As ops.gelu_forward"""
    return aten.gelu(x, approximate="tanh"), (x,)


def gelu_backward(dy: Tensor, saved: Saved) -> Tensor:
    """As ops.gelu_backward"""
    (x,) = saved
    dx: Tensor = aten.gelu_backward(dy, x, approximate="tanh")
    return dx


def causal_attention_forward(qkv: Tensor, n_heads: int, keep: Tensor | None, dropout: float) -> tuple[Tensor, Saved]:
    """ops.causal_attention_forward by the fused kernel; as it stands there where that has none: with dropout (whose
    masks are drawn outside), and on a GPU in float32 or for heads of odd sizes.

    qkv (B, T, 3·D) -> y (B, T, D)
    """
    size = qkv.shape[-1] // (3 * n_heads)
    if keep is not None or (qkv.is_cuda and (qkv.dtype != torch.bfloat16 or size % 8 or size > 256)):
        y, saved = ops.causal_attention_forward(qkv, n_heads, keep, dropout)
        return y, (None, saved)
    q, k, v = ops.split_heads(qkv, n_heads)
    if qkv.is_cuda:
        y, *statistics, _ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)
    else:
        y, *statistics = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    return ops.merge_heads(y), ((q, k, v, y), statistics)


def causal_attention_backward(dy: Tensor, saved: Saved) -> Tensor:
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


def linear_cross_entropy_forward(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Saved]:
    """As ops.linear_cross_entropy_forward; the gradients for dL = 1 are made on the way and are what is saved."""
    x_rows, label_rows = x.flatten(0, -2).to(weight.dtype), labels.flatten()
    counted = label_rows != ops.IGNORE_INDEX
    share = counted.to(x.dtype) / counted.sum()  # dL / d(row's loss)
    chunks, dx = [], []
    dweight = torch.zeros_like(weight, dtype=x.dtype)
    for x_part, label, part in zip(
        x_rows.split(_ROWS), label_rows.clamp(min=0).split(_ROWS), share.unsqueeze(1).split(_ROWS), strict=True
    ):
        log_p = torch.log_softmax(matmul(x_part, weight.T), -1, dtype=x.dtype)
        chunks.append(-log_p.gather(-1, label.unsqueeze(1)))
        dz = log_p.exp_().mul_(part).scatter_add_(-1, label.unsqueeze(1), -part).to(weight.dtype)
        dx.append(matmul(dz, weight))
        dweight += matmul(dz.T, x_part)
    loss = torch.where(counted, torch.cat(chunks).squeeze(1), 0.0).sum() / counted.sum()
    return loss, (torch.cat(dx).to(x.dtype).view(x.shape), dweight)


def linear_cross_entropy_backward(dloss: Tensor | float, saved: Saved) -> tuple[Tensor, Tensor]:
    """As ops.linear_cross_entropy_backward"""
    dx, dweight = saved
    return dx * dloss, dweight * dloss


def lookup_backward(dx: Tensor, saved: Saved, d_head: Tensor | None = None) -> tuple[None, Tensor]:
    """As ops.lookup_backward; into d_head itself, which is taken over"""
    if d_head is None:
        return ops.lookup_backward(dx, saved)
    input_ids, _ = saved
    return None, d_head.to(dx.dtype).index_add_(0, input_ids.flatten(), dx.flatten(0, -2))


lookup = ops.lookup._replace(backward=lookup_backward)
linear_cross_entropy = Op(linear_cross_entropy_forward, linear_cross_entropy_backward)
EQUALS = {
    ops.linear: ops.linear._replace(forward=linear_forward, backward=linear_backward),
    ops.layer_norm: ops.layer_norm._replace(forward=layer_norm_forward, backward=layer_norm_backward),
    ops.gelu: Op(gelu_forward, gelu_backward),
    ops.causal_attention: Op(causal_attention_forward, causal_attention_backward),
}
