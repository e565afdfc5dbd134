"""The residual addition and the norm after it, as one pass over memory in kernels, forwards and upside down; and the
norm of queries and keys.

Shapes: N = B·T rows, D d_model, H heads, G heads of keys and values, K head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from custom_transformer.fast.kernels import kernel
from custom_transformer.maths.ops import qk_norm_gain
from custom_transformer.maths.scope import Saved


class Addend(NamedTuple):
    """What comes to the residual stream: dropout(h + bias), h (N, D) in the products' dtype; nothing without h."""

    h: Tensor | None = None
    bias: Tensor | None = None
    keep: Tensor | None = None
    dropout: float = 0.0


def add_layer_norm_forward(
    x: Tensor, addend: Addend, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Saved]:
    """x' = x + addend,    y = layer_norm(x')

    x (N, D) in the residual stream's dtype -> x' like x, y (N, D) `dtype`
    """
    return _forward(x, addend, weight, bias, x.new_empty(len(x)), 1e-5, dtype)


def add_rms_norm_forward(
    x: Tensor, addend: Addend, weight: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Saved]:
    """x' = x + addend,    y = rms_norm(x')        x (N, D) -> x', y (N, D) as above"""
    return _forward(x, addend, weight, None, None, eps, dtype)


def _forward(
    x: Tensor,
    addend: Addend,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Saved]:
    h, h_bias, keep, dropout = addend
    rows, d = x.shape
    x_sum = x if h is None else torch.empty_like(x)
    y, rstd = torch.empty_like(x, dtype=dtype), x.new_empty(rows)
    kernel("add_norm_forward", dtype)(
        x, h, h_bias, keep, 1 / (1 - dropout), weight, bias, eps, rows, d, x_sum, y, mean, rstd
    )
    return x_sum, y, (x_sum, h is not None, h_bias is not None, keep, dropout, weight, bias, mean, rstd)


def add_norm_backward(
    dy: Tensor, d_residual: Tensor | None, saved: Saved
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """dx, dh, d_h_bias, dweight, dbias; `d_residual` is what reaches x' along its other way, the residual stream."""
    x_sum, has_h, has_h_bias, keep, dropout, weight, bias, mean, rstd = saved
    dx = torch.empty_like(x_sum)
    dweight = None if weight is None else torch.empty_like(weight)
    dh = torch.empty_like(dy) if has_h and (keep is not None or dy.dtype != dx.dtype) else None
    dbias = None if bias is None else torch.empty_like(bias)
    dh_bias = x_sum.new_empty(x_sum.shape[1]) if has_h_bias else None
    scale, sizes = 1 / (1 - dropout), x_sum.shape
    kernel("add_norm_backward", dy.dtype)(
        dy, d_residual, x_sum, weight, mean, rstd, keep, scale, *sizes, dx, dh, dweight, dbias, dh_bias
    )
    return dx, dx if dh is None else dh, dh_bias, dweight, dbias


def norm_again(saved: Saved, dtype: torch.dtype) -> Tensor:
    """y of the forward, rebuilt from what that saved        -> (N, D) `dtype`"""
    x_sum, _, _, _, _, weight, bias, mean, rstd = saved
    y = torch.empty_like(x_sum, dtype=dtype)
    kernel("norm_again", dtype)(x_sum, weight, bias, mean, rstd, *x_sum.shape, y)
    return y


def qk_norm(qkv: Tensor, n_heads: int, n_kv_heads: int, eps: float) -> Saved:
    """ops.qk_norm_forward of qkv (N, (H + 2·G)·K) in its place; what `qk_norm_backward` takes"""
    heads, normed = n_heads + 2 * n_kv_heads, n_heads + n_kv_heads
    rows, size = len(qkv), qkv.shape[1] // heads
    r = torch.empty(rows, normed, dtype=torch.promote_types(qkv.dtype, torch.float32), device="cpu")
    kernel("qk_norm_forward", qkv.dtype)(qkv, rows, heads, size, normed, eps, qk_norm_gain(size), qkv, r)
    return qkv, r, heads


def qk_norm_backward(dy: Tensor, saved: Saved) -> None:
    """As ops.qk_norm_backward; dy (N, (H + 2·G)·K) becomes dx"""
    y, r, heads = saved
    rows, size = len(y), y.shape[1] // heads
    kernel("qk_norm_backward", y.dtype)(dy, y, r, rows, heads, size, r.shape[1], qk_norm_gain(size), dy)
