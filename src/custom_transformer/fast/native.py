"""GPT-2's stack in kernels that each pass over memory once, around PyTorch's matrix products.

The mathematics is that of gpt2.py, whose results these functions equal. What differs:

- A residual addition is done by the norm that follows it, dropout and the bias before it included.
- The norms' and GELU's outputs are not saved but built again, and no cast of a weight is kept: one more pass over
  memory each, which is short beside a product.
- Attention goes by tiles of queries, which meet only the keys up to their last one, and keeps its probabilities.

Kernels write in place, but only into buffers made here.

Shapes: B batch, T time, D d_model, H heads, K head size, F d_ffn, N = B·T rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.kernels import kernel
from custom_transformer.fast.products import matmul
from custom_transformer.maths.scope import Saved, Scope
from custom_transformer.maths.stack import recomputable_forward, recompute

QUERY_BYTES = 256  # of a column of an attention tile: 64 queries in float32


def _empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


# ----------------------------------------------------------------------------------------- residual and norm


def add_norm_forward(
    x: Tensor,
    h: Tensor | None,
    h_bias: Tensor | None,
    keep: Tensor | None,
    dropout: float,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Saved]:
    """x' = x + dropout(h + h_bias),    y = layer_norm(x')

    x (N, D) in the residual stream's dtype, h (N, D) `dtype` or None -> x' like x, y (N, D) `dtype`
    """
    rows, d = x.shape
    x_sum = x if h is None else torch.empty_like(x)
    y, mean, rstd = _empty(x, rows, d, dtype=dtype), _empty(x, rows), _empty(x, rows)
    kernel("add_norm_forward", dtype)(
        x, h, h_bias, keep, 1 / (1 - dropout), weight, bias, eps, rows, d, x_sum, y, mean, rstd
    )
    return x_sum, y, (x_sum, h is not None, h_bias is not None, keep, dropout, weight, bias, mean, rstd)


def add_norm_backward(
    dy: Tensor, d_residual: Tensor | None, saved: Saved
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """dx, dh, d_h_bias, dweight, dbias; `d_residual` is what reaches x' along its other way, the residual stream."""
    x_sum, has_h, has_h_bias, keep, dropout, weight, bias, mean, rstd = saved
    rows, d = x_sum.shape
    dx, dweight = torch.empty_like(x_sum), torch.empty_like(weight)
    dh = _empty(dy, rows, d) if has_h and (keep is not None or dy.dtype != dx.dtype) else None
    dbias = None if bias is None else torch.empty_like(weight)
    dh_bias = torch.empty_like(weight) if has_h_bias else None
    kernel("add_norm_backward", dy.dtype)(
        dy, d_residual, x_sum, weight, mean, rstd, keep, 1 / (1 - dropout), rows, d, dx, dh, dweight, dbias, dh_bias
    )
    return dx, dx if dh is None else dh, dh_bias, dweight, dbias


def norm_again(saved: Saved, dtype: torch.dtype) -> Tensor:
    """y of an add_norm_forward, rebuilt from what that saved        -> (N, D) `dtype`"""
    x_sum, _, _, _, _, weight, bias, mean, rstd = saved
    y = torch.empty_like(x_sum, dtype=dtype)
    kernel("norm_again", dtype)(x_sum, weight, bias, mean, rstd, *x_sum.shape, y)
    return y


# ------------------------------------------------------------------------------------------------- attention


def causal_attention_forward(
    qkv: Tensor, bias: Tensor | None, batch: int, n_heads: int, keep: Tensor | None, dropout: float
) -> tuple[Tensor, Saved]:
    """ops.causal_attention_forward of qkv + bias        qkv (N, 3·D) -> y (N, D)"""
    dtype, time, size = qkv.dtype, qkv.shape[0] // batch, qkv.shape[1] // (3 * n_heads)
    pairs = batch * n_heads
    heads = _empty(qkv, 3, pairs, time, size)
    kernel("split_heads", dtype)(qkv, bias, batch, time, n_heads, size, heads)
    q, k, v = heads
    y = _empty(qkv, batch * time, n_heads * size)
    tiles = []
    queries = QUERY_BYTES // dtype.itemsize
    for first in range(0, time, queries):
        last = min(first + queries, time)
        probabilities = matmul(q[:, first:last], k[:, :last].transpose(1, 2))
        dropped = probabilities if keep is None else torch.empty_like(probabilities)
        kernel("softmax_forward", dtype)(
            probabilities, size**-0.5, keep, 1 / (1 - dropout), pairs, last - first, last, first, time, dropped
        )
        y_tile = matmul(dropped, v[:, :last])
        kernel("merge_heads", dtype)(y_tile, batch, n_heads, last - first, size, first, time, 1, 0, y, None)
        tiles.append((first, last, probabilities, dropped))
    return y, (heads, tiles, bias, batch, n_heads, keep, dropout)


def causal_attention_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor | None]:
    """d_qkv (N, 3·D) and d_bias (3·D), as ops.causal_attention_backward; the keys' tiles add up."""
    heads, tiles, bias, batch, n_heads, keep, dropout = saved
    q, k, v = heads
    dtype, (pairs, time, size) = dy.dtype, q.shape
    dy_heads = dy.view(batch, time, n_heads, size).transpose(1, 2).reshape(pairs, time, size)
    dqkv = _empty(dy, batch * time, 3 * n_heads * size)
    dbias = None if bias is None else torch.zeros_like(bias)
    dbias_of = (None,) * 3 if dbias is None else dbias.view(3, -1).unbind()
    dk = dv = None
    for first, last, probabilities, dropped in reversed(tiles):  # the last meets all keys
        dy_tile = dy_heads[:, first:last]
        d_scores = matmul(dy_tile, v[:, :last].transpose(1, 2))
        kernel("softmax_backward", dtype)(
            d_scores, probabilities, size**-0.5, keep, 1 / (1 - dropout), pairs, last - first, last, first, time
        )
        dq = matmul(d_scores, k[:, :last])
        kernel("merge_heads", dtype)(dq, batch, n_heads, last - first, size, first, time, 3, 0, dqkv, dbias_of[0])
        dv_tile = matmul(dropped.transpose(1, 2), dy_tile)
        dk_tile = matmul(d_scores.transpose(1, 2), q[:, first:last])
        if dk is None or dv is None:
            dk, dv = dk_tile, dv_tile
        else:
            dk[:, :last] += dk_tile
            dv[:, :last] += dv_tile
    kernel("merge_heads", dtype)(dk, batch, n_heads, time, size, 0, time, 3, 1, dqkv, dbias_of[1])
    kernel("merge_heads", dtype)(dv, batch, n_heads, time, size, 0, time, 3, 2, dqkv, dbias_of[2])
    return dqkv, dbias


# -------------------------------------------------------------------------------------------------- the stack


class Stream(NamedTuple):
    """What a block hands to the next: x + dropout(h + bias), which the next norm adds up.

    batch: rows of x and h that are one position, B
    x (N, D): float32 or wider; h (N, D): in the products' dtype, None before the first block
    """

    batch: int
    x: Tensor
    h: Tensor | None = None
    bias: Tensor | None = None
    keep: Tensor | None = None
    p: float = 0.0


class StreamGradient(NamedTuple):
    """What a block's backward hands to that of the block before it: the gradients of a Stream's x, h and bias."""

    dx: Tensor
    dh: Tensor
    d_bias: Tensor | None


def stack_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """As stack.stack_forward"""
    stream = Stream(len(x), x.view(-1, x.shape[-1]))
    for i in range(config.n_blocks):
        stream = recomputable_forward(block_forward, stream, at / f"blocks.{i}", config)
    weight, bias, dtype = at["final_norm.weight"], at.get("final_norm.bias"), x.dtype
    h = None if stream.h is None else stream.h.to(dtype)
    _, y, saved = add_norm_forward(stream.x, h, stream.bias, stream.keep, stream.p, weight, bias, dtype)
    at.save("final_norm", saved)
    return y.view(x.shape)


def stack_backward(dy: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """As stack.stack_backward"""
    dx, dh, d_bias, dweight, dbias = add_norm_backward(dy.reshape(-1, dy.shape[-1]), None, at.take("final_norm"))
    gradient = StreamGradient(dx, dh, d_bias)
    at.give("final_norm.weight", dweight)
    at.give("final_norm.bias", dbias)
    for i in reversed(range(config.n_blocks)):
        block = at / f"blocks.{i}"
        recompute(block_forward, block, config)
        gradient = block_backward(gradient, block)
    return gradient.dx.view(dy.shape)


def block_forward(stream: Stream, at: Scope, config: CustomTransformerConfig) -> Stream:
    """As gpt2.block_forward, but that the norms do the additions: its own first the last block's, the next its own"""
    batch, x, h, h_bias, keep, p = stream
    rows, d = x.shape
    time = rows // batch
    keep_attention, p_attention = at.dropped((batch, config.n_heads, time, time))
    (keep_1, p_1), (keep_2, p_2) = at.dropped((batch, time, d)), at.dropped((batch, time, d))

    weight = at["qkv.weight"]
    x, y, saved = add_norm_forward(x, h, h_bias, keep, p, at["norm_1.weight"], at.get("norm_1.bias"), weight.dtype)
    at.save("norm_1", saved)
    qkv = matmul(y, weight)
    a, saved = causal_attention_forward(qkv, at.get("qkv.bias"), batch, config.n_heads, keep_attention, p_attention)
    at.save("attention", saved)
    at.save("projection", (a,))
    h, h_bias = matmul(a, at["projection.weight"]), at.get("projection.bias")

    weight = at["up.weight"]
    x, y, saved = add_norm_forward(x, h, h_bias, keep_1, p_1, at["norm_2.weight"], at.get("norm_2.bias"), weight.dtype)
    at.save("norm_2", saved)
    up = matmul(y, weight)
    at.save("gelu", (up,))
    y = torch.empty_like(up)
    kernel("gelu_forward", up.dtype)(up, at.get("up.bias"), *up.shape, y)
    return Stream(batch, x, matmul(y, at["down.weight"]), at.get("down.bias"), keep_2, p_2)


def block_backward(gradient: StreamGradient, at: Scope) -> StreamGradient:
    """As gpt2.block_backward"""
    dx, dh, d_bias = gradient
    weight = at["down.weight"]
    dh = dh.to(weight.dtype)
    d_up = matmul(dh, weight.T)
    (up,), up_bias = at.take("gelu"), at.get("up.bias")
    d_up_bias = None if up_bias is None else torch.empty_like(up_bias)
    kernel("gelu_backward", up.dtype)(d_up, up, up_bias, *up.shape, d_up_bias)
    at.give("down.weight", matmul(up.T, dh))  # `up` is gelu's output by now
    at.give("down.bias", d_bias)
    norm_2 = at.take("norm_2")
    at.give("up.weight", matmul(norm_again(norm_2, d_up.dtype).T, d_up))
    at.give("up.bias", d_up_bias)
    dx, dh, d_bias, dweight, dbias = add_norm_backward(matmul(d_up, at["up.weight"].T), dx, norm_2)
    at.give("norm_2.weight", dweight)
    at.give("norm_2.bias", dbias)

    (a,) = at.take("projection")
    at.give("projection.weight", matmul(a.T, dh))
    at.give("projection.bias", d_bias)
    da = matmul(dh, at["projection.weight"].T)
    dqkv, dbias = causal_attention_backward(da, at.take("attention"))
    norm_1 = at.take("norm_1")
    at.give("qkv.weight", matmul(norm_again(norm_1, dqkv.dtype).T, dqkv))
    at.give("qkv.bias", dbias)
    dx, dh, d_bias, dweight, dbias = add_norm_backward(matmul(dqkv, at["qkv.weight"].T), dx, norm_1)
    at.give("norm_1.weight", dweight)
    at.give("norm_1.bias", dbias)
    return StreamGradient(dx, dh, d_bias)
