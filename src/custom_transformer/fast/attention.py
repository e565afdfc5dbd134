"""Causal attention by tiles of queries, in kernels around PyTorch's products.

A tile's queries meet only the keys up to its last one. Its probabilities are kept for the backward. Queries that share
their keys and values are neighbouring rows of one product: it has R times the rows, and nothing is repeated.

Shapes: B batch, T time, H heads, G heads of keys and values, R = H / G, K head size, N = B·T rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from custom_transformer.fast.kernels import kernel
from custom_transformer.fast.products import matmul
from custom_transformer.maths.scope import Saved

COLUMN_BYTES = 256  # of a column of a tile: 64 rows in float32


def attention_forward(
    qkv: Tensor,
    bias: Tensor | None,
    turns: Tensor | None,
    batch: int,
    n_heads: int,
    n_kv_heads: int,
    keep: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Saved]:
    """ops.causal_attention_forward of qkv + bias; with `turns`, ops.rotary_attention_forward.

    qkv (N, (H + 2·G)·K), turns (T, K): of each place the cosines, then the sines, keep (B, H, T, T) bool or None
    -> y (N, H·K)
    """
    dtype, time, heads = qkv.dtype, len(qkv) // batch, n_heads + 2 * n_kv_heads
    shared, pairs, size = n_heads // n_kv_heads, batch * n_kv_heads, qkv.shape[1] // heads
    parts = qkv.new_empty(qkv.numel()).split([pairs * time * n * size for n in (shared, 1, 1)])
    q, k, v = (part.view(pairs, -1, size) for part in parts)
    kernel("split_heads", dtype)(qkv, bias, turns, batch, time, n_heads, n_kv_heads, heads, size, q, k, v)
    y = qkv.new_empty(len(qkv), n_heads * size)
    tiles = []
    queries = max(1, COLUMN_BYTES // (dtype.itemsize * shared))
    for first in range(0, time, queries):
        last = min(first + queries, time)
        count = last - first
        probabilities = matmul(q[:, first * shared : last * shared], k[:, :last].transpose(1, 2))
        dropped = probabilities if keep is None else torch.empty_like(probabilities)
        kernel("softmax_forward", dtype)(
            probabilities, size**-0.5, keep, 1 / (1 - dropout), pairs, count, shared, last, first, time, dropped
        )
        y_tile = matmul(dropped, v[:, :last])
        kernel("merge_heads", dtype)(
            y_tile, None, batch, n_kv_heads, count, shared, size, first, time, n_heads, 0, y, None
        )
        tiles.append((first, last, probabilities, dropped))
    return y, (q, k, v, tiles, bias, turns, batch, keep, dropout)


def attention_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor | None]:
    """d_qkv (N, (H + 2·G)·K) and d_bias, as ops.causal_attention_backward or ops.rotary_attention_backward

    dy (N, H·K). The tiles' gradients of keys and values add up.
    """
    q, k, v, tiles, bias, turns, batch, keep, dropout = saved
    dtype, (pairs, time, size) = dy.dtype, k.shape
    groups, shared = pairs // batch, q.shape[1] // time
    n_heads, heads = groups * shared, groups * (shared + 2)
    dy_heads = dy.view(batch, time, groups, shared, size).transpose(1, 2).reshape(q.shape)
    dqkv = dy.new_empty(len(dy), heads * size)
    dbias = None if bias is None else torch.zeros_like(bias)
    sums = (None,) * 3 if dbias is None else dbias.split([n * size for n in (n_heads, groups, groups)])
    dk = dv = None
    for first, last, probabilities, dropped in reversed(tiles):  # the last meets all keys
        count, rows = last - first, slice(first * shared, last * shared)
        d_scores = matmul(dy_heads[:, rows], v[:, :last].transpose(1, 2))
        kernel("softmax_backward", dtype)(
            d_scores, probabilities, size**-0.5, keep, 1 / (1 - dropout), pairs, count, shared, last, first, time
        )
        dq = matmul(d_scores, k[:, :last])
        kernel("merge_heads", dtype)(
            dq, turns, batch, groups, count, shared, size, first, time, heads, 0, dqkv, sums[0]
        )
        dv_tile = matmul(dropped.transpose(1, 2), dy_heads[:, rows])
        dk_tile = matmul(d_scores.transpose(1, 2), q[:, rows])
        if dk is None or dv is None:
            dk, dv = dk_tile, dv_tile
        else:
            dk[:, :last] += dk_tile
            dv[:, :last] += dv_tile
    sizes = (batch, groups, time, 1, size, 0, time, heads)
    kernel("merge_heads", dtype)(dk, turns, *sizes, n_heads, dqkv, sums[1])
    kernel("merge_heads", dtype)(dv, None, *sizes, n_heads + groups, dqkv, sums[2])
    return dqkv, dbias
