"""The model's products as PyTorch's, and everything between them in kernels that pass over memory once.

The mathematics is that of blocks.py and ops.py, whose results these functions equal. What differs:

- A residual addition is done by the norm that follows it, dropout and the bias before it included.
- The norms' and GELU's outputs are not saved but built again, and no cast of a weight is kept: one more pass over
  memory each, which is short beside a product.
- Attention goes by tiles of queries, which meet only the keys up to their last one, and keeps its probabilities.
- The head never holds more of the logits than `ROWS` rows. A tile of them becomes exp(z − top) while it is in the
  processor's cache, top being the largest logit of the row so far, and is multiplied with the head's matrix at once;
  what was added up under an earlier top is scaled to the new one. The one-hot of the labels is added sparsely.

Kernels write in place, but only into buffers made here.

Shapes: B batch, T time, D d_model, H heads, K head size, F d_ffn, V vocabulary, N = B·T rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from custom_transformer.fast.kernels import kernel
from custom_transformer.fast.products import fast_products, matmul
from custom_transformer.maths.blocks import Gradients
from custom_transformer.maths.ops import IGNORE_INDEX, Saved

QUERY_BYTES = 256  # of a column of an attention tile: 64 queries in float32
ROWS = 1024  # rows of logits held at once
TILE = 2048  # columns of a logits tile: with its rows, some megabytes

DrawMasks = Callable[[], Mapping[str, Tensor]]


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


@fast_products
def stack_forward(
    x: Tensor,
    blocks: Sequence[Mapping[str, Tensor]],
    final_norm: Mapping[str, Tensor],
    n_heads: int,
    dtype: torch.dtype,
    draw_masks: DrawMasks,
    dropout: float,
) -> tuple[Tensor, Saved]:
    """As blocks.stack_forward"""
    batch, time, d = x.shape
    x, h, h_bias, keep = x.view(-1, d), None, None, None
    saved = []
    for p in blocks:
        masks = draw_masks()
        x, y, norm_1 = add_norm_forward(x, h, h_bias, keep, dropout, p["norm_1.weight"], p.get("norm_1.bias"), dtype)
        qkv = matmul(y, p["qkv.weight"].to(dtype))
        a, attention = causal_attention_forward(qkv, p.get("qkv.bias"), batch, n_heads, masks.get("attention"), dropout)
        h, h_bias, keep = matmul(a, p["projection.weight"].to(dtype)), p.get("projection.bias"), masks.get("projection")
        x, y, norm_2 = add_norm_forward(x, h, h_bias, keep, dropout, p["norm_2.weight"], p.get("norm_2.bias"), dtype)
        up = matmul(y, p["up.weight"].to(dtype))
        y = torch.empty_like(up)
        kernel("gelu_forward", dtype)(up, p.get("up.bias"), *up.shape, y)
        h, h_bias, keep = matmul(y, p["down.weight"].to(dtype)), p.get("down.bias"), masks.get("down")
        saved.append((p, norm_1, attention, a, norm_2, up))
    h = None if h is None else h.to(x.dtype)
    _, y, last_norm = add_norm_forward(
        x, h, h_bias, keep, dropout, final_norm["weight"], final_norm.get("bias"), x.dtype
    )
    return y.view(batch, time, d), (saved, last_norm, dtype)


@fast_products
def stack_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, list[Gradients], Gradients]:
    """As blocks.stack_backward; `saved` is used up"""
    blocks, last_norm, dtype = saved
    g_norm: Gradients = {}
    g_blocks: list[Gradients] = [{} for _ in blocks]
    dx, dh, d_bias, g_norm["weight"], g_norm["bias"] = add_norm_backward(dy.reshape(-1, dy.shape[-1]), None, last_norm)
    for g in reversed(g_blocks):
        p, norm_1, attention, a, norm_2, up = blocks.pop()
        dh = dh.to(dtype)
        d_up = matmul(dh, p["down.weight"].to(dtype).T)
        g["up.bias"] = torch.empty_like(p["up.bias"]) if "up.bias" in p else None
        kernel("gelu_backward", dtype)(d_up, up, p.get("up.bias"), *up.shape, g["up.bias"])
        g["down.weight"], g["down.bias"] = matmul(up.T, dh), d_bias  # `up` is gelu's output by now
        g["up.weight"] = matmul(norm_again(norm_2, dtype).T, d_up)
        dy_2 = matmul(d_up, p["up.weight"].to(dtype).T)
        dx, dh, g["projection.bias"], g["norm_2.weight"], g["norm_2.bias"] = add_norm_backward(dy_2, dx, norm_2)
        g["projection.weight"] = matmul(a.T, dh)
        da = matmul(dh, p["projection.weight"].to(dtype).T)
        dqkv, g["qkv.bias"] = causal_attention_backward(da, attention)
        g["qkv.weight"] = matmul(norm_again(norm_1, dtype).T, dqkv)
        dy_1 = matmul(dqkv, p["qkv.weight"].to(dtype).T)
        dx, dh, d_bias, g["norm_1.weight"], g["norm_1.bias"] = add_norm_backward(dy_1, dx, norm_1)
    return dx.view(dy.shape), g_blocks, g_norm


# -------------------------------------------------------------------------------------------- head and loss


@fast_products
def linear_cross_entropy_forward(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Saved]:
    """As ops.linear_cross_entropy_forward; the gradients for dL = 1 are made on the way and are what is saved."""
    x_rows, label_rows = x.reshape(-1, x.shape[-1]), labels.reshape(-1).contiguous()
    x_cast = x_rows.to(weight.dtype)
    counted = label_rows != IGNORE_INDEX
    share = counted.to(x.dtype) / counted.sum()  # dL / d(row's loss)
    losses, dx = torch.empty_like(share), torch.empty_like(x_rows)
    dweight = torch.empty_like(weight, dtype=x.dtype)
    for first in range(0, len(x_rows), ROWS):
        part = slice(first, first + ROWS)
        losses[part], dx[part] = _chunk(
            x_cast[part], weight, label_rows[part], share[part], dweight, is_first=first == 0
        )
    # −onehot(label), of dx and of dweight
    rows = label_rows.clamp(min=0)
    dx -= share.unsqueeze(1) * weight[rows]
    dweight.index_add_(0, rows, x_cast.to(x.dtype) * -share.unsqueeze(1))
    loss = torch.where(counted, losses, 0.0).sum() / counted.sum()
    return loss, (dx.view(x.shape), dweight)


def _chunk(
    x: Tensor, weight: Tensor, labels: Tensor, share: Tensor, dweight: Tensor, is_first: bool
) -> tuple[Tensor, Tensor]:
    """Losses (rows,) and Σ_v softmax · weight · share (rows, D) of some rows; dweight is written, or added to."""
    rows, d = x.shape
    vocab = weight.shape[0]
    top = torch.full_like(share, -math.inf)
    total, label_logit = torch.zeros_like(share), torch.zeros_like(share)
    rescale = torch.empty_like(share)
    dx = torch.zeros(rows, d, dtype=share.dtype)
    tiles = []
    for start in range(0, vocab, TILE):
        tile_weight = weight[start : start + TILE]
        exponentials = matmul(x, tile_weight.T)
        tile_top = torch.empty_like(share)
        kernel("loss_tile", x.dtype)(
            exponentials, labels, rows, len(tile_weight), start, top, total, rescale, tile_top, label_logit
        )
        kernel("rescale_add", x.dtype)(dx, rescale, matmul(exponentials, tile_weight), rows, d)
        tiles.append((start, tile_weight.shape[0], exponentials, tile_top))
    losses = top + total.log() - label_logit
    for start, width, exponentials, tile_top in tiles:
        factor = torch.exp(tile_top - top) / total * share
        scaled = torch.empty_like(x)
        kernel("scale_rows", x.dtype)(x, factor, rows, d, scaled)
        product = matmul(exponentials.T, scaled)
        if is_first:
            dweight[start : start + width] = product
        else:
            dweight[start : start + width] += product
    return losses, dx * (share / total).unsqueeze(1)


def linear_cross_entropy_backward(dloss: Tensor | float, saved: Saved) -> tuple[Tensor, Tensor]:
    """As ops.linear_cross_entropy_backward, but dE float32 or wider; `saved` is used up"""
    dx, dweight = saved
    if isinstance(dloss, float) and dloss == 1.0:
        return dx, dweight
    return dx.mul_(dloss), dweight.mul_(dloss)


def tied_embedding_backward(dx: Tensor, d_head: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
    """As ops.tied_embedding_backward, into d_head itself, which is taken over"""
    input_ids, _, position_table = saved
    d_head = d_head.to(dx.dtype)
    d_head.index_add_(0, input_ids.flatten(), dx.flatten(0, -2))
    d_position_table = torch.zeros_like(position_table)
    torch.sum(dx, 0, out=d_position_table[: input_ids.shape[-1]])
    return d_head, d_position_table


# ---------------------------------------------------------------------------------------------- the update


def global_norm(gradients: Mapping[str, Tensor]) -> float:
    """As optim.global_norm"""
    squares = [kernel("sum_of_squares", g.dtype)(g, g.numel()) for g in map(Tensor.contiguous, gradients.values())]
    return math.sqrt(sum(squares))  # type: ignore[arg-type]


def sgd_update(parameter: Tensor, gradient: Tensor, scale: float, lr: float, weight_decay: float) -> None:
    """As optim.sgd_update"""
    kernel("sgd_update", parameter.dtype)(
        parameter, gradient.contiguous(), 1 - lr * weight_decay, lr * scale, parameter.numel()
    )


def adamw_update(
    parameter: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    t: int,
    scale: float,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float,
) -> None:
    """As optim.adamw_update"""
    beta1, beta2 = betas
    kernel("adamw_update", parameter.dtype)(
        parameter,
        gradient.contiguous(),
        m,
        v,
        scale,
        1 - beta1,
        beta2,
        1 - beta2,
        eps,
        1 - lr * weight_decay,
        lr / (1 - beta1**t),
        math.sqrt(1 - beta2**t),
        parameter.numel(),
    )
