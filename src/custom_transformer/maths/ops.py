"""Every operation of the model: its forward and its hand-derived backward, side by side.

    y, saved = op_forward(x, weight, ...)           saved: exactly what the backward needs
    dx, dweight, ... = op_backward(dy, saved)       one gradient per input, in input order

`dx` is the gradient of the scalar loss L with respect to x: dx[i] = ∂L/∂x[i], of x's shape. Every backward
follows from dL = Σ dy ∘ δy: put the forward's differential in place of δy and read off the factor of each δx. The
chapter of docs/book that a section names does this step by step.

The functions are pure: they write into no argument and no saved tensor, so that a saved tensor is still what
the forward saw when the backward reads it. Reductions, norms, softmax and the loss are computed in float32 or
wider whatever the inputs' dtype; results have the inputs' dtype. An absent bias (None) has the gradient None.

Shapes: B batch, T time, D d_model, H heads, G heads of keys and values, K head size (D = H·K),
F d_ffn, V vocabulary, N = B·T rows; `...` is any leading shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from custom_transformer.maths.scope import Op, Saved
from custom_transformer.maths.turns import turns

IGNORE_INDEX = -100  # a label that is left out of the loss


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which reductions over `dtype` are computed. (`.float()` would narrow float64.)"""
    return torch.promote_types(dtype, torch.float32)


# ---------------------------------------------------------------------------------------------- embedding
# Derived in docs/book/embedding.md.


def lookup_forward(input_ids: Tensor, table: Tensor) -> tuple[Tensor, Saved]:
    """x[b, t] = table[input_ids[b, t]]        input_ids (B, T) int64, table (V, D) -> x (B, T, D)"""
    return table[input_ids], (input_ids, table)


def lookup_backward(dx: Tensor, saved: Saved, d_head: Tensor | None = None) -> tuple[None, Tensor]:
    """d_table[v] = Σ over the (b, t) where token v stands of dx[b, t]; tokens have no gradient

    dx (B, T, D) -> d_table (V, D): rows that were not looked up get zero. Where the table is also the head's matrix
    it is used twice, so its gradients add: d_head (V, D) is the head's.
    """
    input_ids, table = saved
    d_table = torch.zeros_like(table).index_add(0, input_ids.flatten(), dx.flatten(0, -2).to(table.dtype))
    return None, d_table if d_head is None else d_table + d_head


def positions_forward(x: Tensor, table: Tensor, start: int = 0) -> tuple[Tensor, Saved]:
    """y[b, t] = x[b, t] + table[start + t]        x (B, T, D), table (≥ start + T, D) -> y (B, T, D)"""
    time = x.shape[-2]
    return x + table[start : start + time], (table, start, time)


def positions_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
    """dx = dy;    d_table[start + t] = Σ_b dy[b, t], and zero for the other positions"""
    table, start, time = saved
    d_table = torch.nn.functional.pad(dy.sum(0), (0, 0, start, len(table) - start - time))
    return dy, d_table.to(table.dtype)


# ------------------------------------------------------------------------------------------------- linear
# Derived in docs/book/linear.md.


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Saved]:
    """y = x W + b        computed, and returned, in the weight's dtype

    x (..., D_in), weight (D_in, D_out), bias (D_out,) or None -> y (..., D_out)
    """
    x_cast = x.to(weight.dtype)
    y = x_cast @ weight if bias is None else x_cast @ weight + bias.to(weight.dtype)
    return y, (x_cast, weight, bias, x.dtype)


def linear_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx = dy Wᵀ,    dW = xᵀ dy,    db = Σ_rows dy

    δy = δx W + x δW + δb, and Σ dy ∘ (δx W) = Σ (dy Wᵀ) ∘ δx, and likewise for W.
    """
    x, weight, bias, input_dtype = saved
    dy = dy.to(weight.dtype)
    dy_rows, x_rows = dy.flatten(0, -2), x.flatten(0, -2)
    dx = (dy @ weight.T).to(input_dtype)
    dweight = x_rows.T @ dy_rows
    dbias = None if bias is None else dy_rows.sum(0, dtype=_wide(dy.dtype)).to(bias.dtype)
    return dx, dweight, dbias


# --------------------------------------------------------------------------------------------- layer norm
# Derived in docs/book/layer_norm.md.


def layer_norm_forward(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5) -> tuple[Tensor, Saved]:
    """y = w ∘ x̂ + b,    x̂ = (x − mean x) · rstd,    rstd = (var x + ε)^−½        (Ba et al. 2016, eq. 4)

    Mean and (biased) variance run over the last axis. x (..., D), weight and bias (D,) -> y (..., D)
    """
    x_wide = x.to(_wide(x.dtype))
    mean = x_wide.mean(-1, keepdim=True)
    rstd = torch.rsqrt((x_wide - mean).square().mean(-1, keepdim=True) + eps)
    y = (x_wide - mean) * rstd * weight
    if bias is not None:
        y = y + bias
    return y.to(x.dtype), (x, weight, bias, mean, rstd)


def layer_norm_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx = rstd · (dx̂ − mean dx̂ − x̂ ∘ mean(dx̂ ∘ x̂)),    dx̂ = dy ∘ w;    dw = Σ_rows dy ∘ x̂;    db = Σ_rows dy

    The first mean is the path through `mean x`, the second the path through `rstd`.
    """
    x, weight, bias, mean, rstd = saved
    dy_wide = dy.to(mean.dtype)
    x_hat = (x - mean) * rstd
    dx_hat = dy_wide * weight
    dx = rstd * (dx_hat - dx_hat.mean(-1, keepdim=True) - x_hat * (dx_hat * x_hat).mean(-1, keepdim=True))
    dweight = (dy_wide * x_hat).flatten(0, -2).sum(0).to(weight.dtype)
    dbias = None if bias is None else dy_wide.flatten(0, -2).sum(0).to(bias.dtype)
    return dx.to(x.dtype), dweight, dbias


# ----------------------------------------------------------------------------------------------- rms norm
# Derived in docs/book/rms_norm.md.


def rms_norm_forward(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Saved]:
    """y = w ∘ x̂,    x̂ = x r,    r = (mean x² + ε)^−½        (Zhang & Sennrich 2019, eq. 4)

    The mean runs over the last axis. x (..., D), weight (D,), or None for y = x̂ -> y (..., D)
    """
    x_wide = x.to(_wide(x.dtype))
    r = torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + eps)
    x_hat = x_wide * r
    return (x_hat if weight is None else x_hat * weight).to(x.dtype), (x, weight, r)


def rms_norm_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor | None]:
    """dx = r (dx̂ − x̂ mean(dx̂ ∘ x̂)),    dx̂ = dy ∘ w;    dw = Σ_rows dy ∘ x̂

    The mean is the path through r: δr = −r³ mean(x ∘ δx), so Σ dx̂ ∘ x δr = −r² Σ dx̂ ∘ x̂ · mean(x ∘ δx).
    """
    x, weight, r = saved
    dy_wide, x_hat = dy.to(r.dtype), x * r
    dx_hat = dy_wide if weight is None else dy_wide * weight
    dx = r * (dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdim=True))
    return dx.to(x.dtype), None if weight is None else (dy_wide * x_hat).flatten(0, -2).sum(0).to(weight.dtype)


# ------------------------------------------------------------------------------------------------ qk norm
# Derived in docs/book/qk_norm.md.

QK_LARGEST = 10.0  # the largest score that a query and a key can have


def qk_norm_gain(head_size: int) -> float:
    """g = √(10 / √K), since a query and a key of root mean square g have at most the score K g² / √K"""
    return math.sqrt(QK_LARGEST / math.sqrt(head_size))


def qk_norm_forward(qkv: Tensor, n_heads: int, n_kv_heads: int, eps: float) -> tuple[Tensor, Saved]:
    """y = g x̂ of each query and key, x̂ = x r,  r = (mean x² + ε)^−½; values stay as they are

    The mean runs over a head's K numbers. (Henry et al. 2020, eq. 6, whose g is learnt.)
    qkv (B, T, (H + 2·G)·K) -> y like it
    """
    heads = qkv.to(_wide(qkv.dtype)).unflatten(-1, (n_heads + 2 * n_kv_heads, -1))
    x, values = heads.split([n_heads + n_kv_heads, n_kv_heads], 2)
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    y = torch.cat([qk_norm_gain(x.shape[-1]) * x * r, values], 2)
    return y.flatten(2).to(qkv.dtype), (qkv, r, n_kv_heads)


def qk_norm_backward(dy: Tensor, saved: Saved) -> Tensor:
    """dx = r (dx̂ − x̂ mean(dx̂ ∘ x̂)),    dx̂ = g dy        as in rms_norm_backward, with one w for all: g"""
    qkv, r, n_kv_heads = saved
    (x, _), (dy_heads, d_values) = (
        t.to(r.dtype).unflatten(-1, (r.shape[2] + n_kv_heads, -1)).split([r.shape[2], n_kv_heads], 2) for t in (qkv, dy)
    )
    dx_hat, x_hat = qk_norm_gain(x.shape[-1]) * dy_heads, x * r
    dx = r * (dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdim=True))
    return torch.cat([dx, d_values], 2).flatten(2).to(qkv.dtype)


# --------------------------------------------------------------------------------------------------- gelu
# Derived in docs/book/gelu.md.

_GELU_SCALE = math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715


def gelu_forward(x: Tensor) -> tuple[Tensor, Saved]:
    """y = ½ x (1 + tanh u),    u = √(2/π) (x + 0.044715 x³)        (Hendrycks & Gimpel 2016, section 2)"""
    x_wide = x.to(_wide(x.dtype))
    u = _GELU_SCALE * (x_wide + _GELU_CUBIC * x_wide.pow(3))
    y = 0.5 * x_wide * (1 + torch.tanh(u))
    return y.to(x.dtype), (x,)


def gelu_backward(dy: Tensor, saved: Saved) -> Tensor:
    """dx = dy ∘ (½ (1 + τ) + ½ x (1 − τ²) u′),    τ = tanh u,    u′ = √(2/π) (1 + 3 · 0.044715 x²)"""
    (x,) = saved
    x_wide = x.to(_wide(x.dtype))
    tau = torch.tanh(_GELU_SCALE * (x_wide + _GELU_CUBIC * x_wide.pow(3)))
    du = _GELU_SCALE * (1 + 3 * _GELU_CUBIC * x_wide.square())
    dx = dy * (0.5 * (1 + tau) + 0.5 * x_wide * (1 - tau.square()) * du)
    return dx.to(x.dtype)


# ------------------------------------------------------------------------------------------------- swiglu
# Derived in docs/book/swiglu.md.


def swiglu_forward(x: Tensor) -> tuple[Tensor, Saved]:
    """y = a σ(a) ∘ b        (Shazeer 2020, eq. 6)        x (..., 2·F), the gate a beside b -> y (..., F)"""
    a, b = x.to(_wide(x.dtype)).chunk(2, -1)
    return (a * torch.sigmoid(a) * b).to(x.dtype), (x,)


def swiglu_backward(dy: Tensor, saved: Saved) -> Tensor:
    """da = dy ∘ b ∘ σ (1 + a (1 − σ)),    db = dy ∘ a σ        since σ′ = σ (1 − σ)"""
    (x,) = saved
    a, b = x.to(_wide(x.dtype)).chunk(2, -1)
    s = torch.sigmoid(a)
    return torch.cat([dy * b * s * (1 + a * (1 - s)), dy * a * s], -1).to(x.dtype)


# ------------------------------------------------------------------------------------------- squared relu
# Derived in docs/book/relu_squared.md.


def relu_squared_forward(x: Tensor) -> tuple[Tensor, Saved]:
    """y = max(x, 0)²        (So et al. 2021, section 4.2)"""
    return x.clamp(min=0).square(), (x,)


def relu_squared_backward(dy: Tensor, saved: Saved) -> Tensor:
    """dx = dy ∘ 2 max(x, 0)"""
    (x,) = saved
    return dy * 2 * x.clamp(min=0)


# ------------------------------------------------------------------------------------------------ dropout
# Derived in docs/book/dropout.md.


def dropout_forward(x: Tensor, keep: Tensor | None, dropout: float) -> tuple[Tensor, Saved]:
    """y = x ∘ keep / (1 − p)        (Srivastava et al. 2014, scaled at training time); keep None: y = x

    x and keep (bool) of one shape; keep is drawn by the caller from its own generator.
    """
    y = x if keep is None else x * keep / (1 - dropout)
    return y, (keep, dropout)


def dropout_backward(dy: Tensor, saved: Saved) -> Tensor:
    """dx = dy ∘ keep / (1 − p)"""
    keep, dropout = saved
    return dy if keep is None else dy * keep / (1 - dropout)


# ---------------------------------------------------------------------------------------------- attention
# Derived in docs/book/attention.md.


def split_heads(qkv: Tensor, n_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, 3·D) -> queries, keys, values, each (B, H, T, K)"""
    batch, time, _ = qkv.shape
    q, k, v = qkv.view(batch, time, 3, n_heads, -1).permute(2, 0, 3, 1, 4)
    return q, k, v


def merge_heads(*heads: Tensor) -> Tensor:
    """One or more (B, H, T, K) side by side -> (B, T, n·D): the inverse of `split_heads`."""
    batch, _, time, _ = heads[0].shape
    return torch.stack(heads, dim=2).permute(0, 3, 2, 1, 4).reshape(batch, time, -1)


def attention_scores(q: Tensor, k: Tensor) -> Tensor:
    """S = Q Kᵀ / √K, −∞ where a key lies in the query's future; the last query meets the last key.

    q (B, H, T_q, K), k (B, H, T_k, K), T_q ≤ T_k -> S (B, H, T_q, T_k), in float32 or wider
    """
    scores = (q @ k.transpose(-2, -1)).to(_wide(q.dtype)) / math.sqrt(q.shape[-1])
    queries, keys = scores.shape[-2:]
    future = torch.ones(queries, keys, dtype=torch.bool, device=q.device).triu(keys - queries + 1)
    return scores.masked_fill(future, -math.inf)


def causal_attention_forward(qkv: Tensor, n_heads: int, keep: Tensor | None, dropout: float) -> tuple[Tensor, Saved]:
    """Y = P̃ V,    P̃ = dropout(P),    P = softmax(Q Kᵀ / √K + causal mask)        (Vaswani et al. 2017, eq. 1)

    qkv (B, T, 3·D), keep (B, H, T, T) bool or None -> y (B, T, D). P is not saved: the row-wise log Σ exp of the
    scores (B, H, T, 1) is enough to rebuild it (Dao et al. 2022, algorithm 4).
    """
    q, k, v = split_heads(qkv, n_heads)
    scores = attention_scores(q, k)
    lse = torch.logsumexp(scores, -1, keepdim=True)
    probabilities, _ = dropout_forward(torch.exp(scores - lse), keep, dropout)
    y = merge_heads(probabilities.to(v.dtype) @ v)
    return y, (qkv, lse, n_heads, keep, dropout)


def causal_attention_backward(dy: Tensor, saved: Saved) -> Tensor:
    """dV = P̃ᵀ dY,   dP̃ = dY Vᵀ,   dS = P ∘ (dP − Σ_keys dP ∘ P),   dQ = dS K / √K,   dK = dSᵀ Q / √K

    dS is the softmax's Jacobian diag(p) − p pᵀ, row by row. Masked scores have P = 0, hence dS = 0.
    """
    qkv, lse, n_heads, keep, dropout = saved
    q, k, v = split_heads(qkv, n_heads)
    batch, time, _ = dy.shape
    dy_heads = dy.view(batch, time, n_heads, -1).transpose(1, 2)  # (B, H, T, K)

    probabilities = torch.exp(attention_scores(q, k) - lse)
    dropped, drop = dropout_forward(probabilities, keep, dropout)
    dv = dropped.to(v.dtype).transpose(-2, -1) @ dy_heads
    d_probabilities = dropout_backward((dy_heads @ v.transpose(-2, -1)).to(lse.dtype), drop)
    inner = (d_probabilities * probabilities).sum(-1, keepdim=True)
    d_scores = (probabilities * (d_probabilities - inner) / math.sqrt(q.shape[-1])).to(q.dtype)
    dq = d_scores @ k
    dk = d_scores.transpose(-2, -1) @ q
    return merge_heads(dq, dk, dv)


def attention_probabilities(q: Tensor, k: Tensor) -> Tensor:
    """P, for observation.        q (B, H, T, K), k (B, G, T, K), G heads of keys -> (B, H, T, T), float32 or wider"""
    scores = attention_scores(q, shared_by_queries(k, q))
    return torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True))


# ---------------------------------------------------------------------- attention with turns and shared keys
# Derived in docs/book/rotary.md.


def rotate(x: Tensor, start: int, base: float, direction: int = 1) -> Tensor:
    """Each pair (x_i, x_{i + K/2}) turned by t · base^(−2i/K)        (Su et al. 2021, eq. 34)

    x (B, H, T, K), whose first token stands at position t = `start`. So Q Kᵀ depends on distances only. A turn is
    orthogonal: the transpose, through which a gradient goes back, is the turn by −1 times the angle (`direction`).
    """
    wide = _wide(x.dtype)
    cos, sin = turns(start, x.shape[-2], x.shape[-1] // 2, base, wide, x.device)
    sin = direction * sin
    a, b = x.to(wide).chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


def split_groups(
    qkv: Tensor, n_heads: int, n_kv_heads: int, base: float, start: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, (H + 2·G)·K) -> turned queries (B, H, T, K), turned keys and plain values (B, G, T, K)"""
    heads = qkv.unflatten(-1, (n_heads + 2 * n_kv_heads, -1)).transpose(1, 2)
    q, k, v = heads.split([n_heads, n_kv_heads, n_kv_heads], 1)
    return rotate(q, start, base), rotate(k, start, base), v


def shared_by_queries(shared: Tensor, q: Tensor) -> Tensor:
    """Keys or values (B, G, T, K) as the H query heads use them: R = H / G neighbours share one -> (B, H, T, K)"""
    return shared.repeat_interleave(q.shape[1] // shared.shape[1], 1)


def rotary_attention_forward(
    qkv: Tensor, n_heads: int, n_kv_heads: int, base: float, keep: Tensor | None, dropout: float
) -> tuple[Tensor, Saved]:
    """As `causal_attention_forward` on turned queries and keys; each group of queries shares its key and value.

    Grouped queries: Ainslie et al. 2023. qkv (B, T, (H + 2·G)·K), keep (B, H, T, T) bool or None -> y (B, T, H·K)
    """
    q, k, v = split_groups(qkv, n_heads, n_kv_heads, base)
    scores = attention_scores(q, shared_by_queries(k, q))
    lse = torch.logsumexp(scores, -1, keepdim=True)
    probabilities, _ = dropout_forward(torch.exp(scores - lse), keep, dropout)
    y = merge_heads(probabilities.to(v.dtype) @ shared_by_queries(v, q))
    return y, (qkv, lse, n_heads, n_kv_heads, base, keep, dropout)


def rotary_attention_backward(dy: Tensor, saved: Saved) -> Tensor:
    """As `causal_attention_backward`; a shared key's gradients add over its queries, and the turns are undone."""
    qkv, lse, n_heads, n_kv_heads, base, keep, dropout = saved
    q, k, v = split_groups(qkv, n_heads, n_kv_heads, base)
    k_each, v_each = shared_by_queries(k, q), shared_by_queries(v, q)
    dy_heads = dy.unflatten(-1, (n_heads, -1)).transpose(1, 2)  # (B, H, T, K)

    probabilities = torch.exp(attention_scores(q, k_each) - lse)
    dropped, drop = dropout_forward(probabilities, keep, dropout)
    dv_each = dropped.to(v.dtype).transpose(-2, -1) @ dy_heads
    d_probabilities = dropout_backward((dy_heads @ v_each.transpose(-2, -1)).to(lse.dtype), drop)
    inner = (d_probabilities * probabilities).sum(-1, keepdim=True)
    d_scores = (probabilities * (d_probabilities - inner) / math.sqrt(q.shape[-1])).to(q.dtype)
    dq, dk_each = d_scores @ k_each, d_scores.transpose(-2, -1) @ q
    dk, dv = (d.unflatten(1, (n_kv_heads, -1)).sum(2) for d in (dk_each, dv_each))
    heads = torch.cat([rotate(dq, 0, base, -1), rotate(dk, 0, base, -1), dv], 1)
    return heads.transpose(1, 2).flatten(2)


# ----------------------------------------------------------------------------------------------- the loss
# Derived in docs/book/cross_entropy.md and docs/book/head.md.


def _token_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """−log softmax(z)[label] per row, 0 where the label does not count; and log Σ_v exp z_v. Float32 or wider."""
    z = logits.to(_wide(logits.dtype))
    lse = torch.logsumexp(z, -1)
    label_logits = z.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(labels == IGNORE_INDEX, 0.0, lse - label_logits), lse


def _token_losses_backward(d_losses: Tensor, logits: Tensor, labels: Tensor, lse: Tensor) -> Tensor:
    """dz = dl ∘ (softmax z − onehot(label)), and zero in the rows that do not count"""
    scale = torch.where(labels == IGNORE_INDEX, 0.0, d_losses).unsqueeze(-1)
    probabilities = torch.exp(logits - lse.unsqueeze(-1))
    dz = (scale * probabilities).scatter_add(-1, labels.clamp(min=0).unsqueeze(-1), -scale)
    return dz.to(logits.dtype)


def cross_entropy_forward(logits: Tensor, labels: Tensor) -> tuple[Tensor, Saved]:
    """L = 1/n Σ (log Σ_v exp z_v − z_label)        the mean over the n labels that are not IGNORE_INDEX, in nats

    logits (..., V), labels (...) int64 -> scalar, float32 or wider; NaN when no label counts (n = 0).
    """
    losses, lse = _token_losses(logits, labels)
    count = (labels != IGNORE_INDEX).sum(dtype=losses.dtype)
    return losses.sum() / count, (logits, labels, lse, count)


def cross_entropy_backward(dloss: Tensor | float, saved: Saved) -> Tensor:
    """dz = dL/n · (softmax z − onehot(label))"""
    logits, labels, lse, count = saved
    return _token_losses_backward(dloss / count, logits, labels, lse)


def linear_cross_entropy_forward(x: Tensor, weight: Tensor, labels: Tensor, rows: int = 1024) -> tuple[Tensor, Saved]:
    """The cross-entropy of z = x Eᵀ, in chunks of `rows` rows, so that z (N, V) never exists at once.

    x (..., D), weight E (V, D), labels (...) int64 -> scalar. E stands as the token table does, one row per token,
    so that one tensor can be both.
    """
    x_rows, label_rows = x.to(weight.dtype).flatten(0, -2), labels.flatten()
    chunks = [
        _token_losses(x_chunk @ weight.T, label_chunk)
        for x_chunk, label_chunk in zip(x_rows.split(rows), label_rows.split(rows), strict=True)
    ]
    losses, lse = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    count = (label_rows != IGNORE_INDEX).sum(dtype=losses.dtype)
    return losses.sum() / count, (x_rows, weight, label_rows, lse, count, rows, x.shape, x.dtype)


def linear_cross_entropy_backward(dloss: Tensor | float, saved: Saved) -> tuple[Tensor, Tensor]:
    """dx = dz E,    dE = dzᵀ x,    dz as in `cross_entropy_backward`, rebuilt chunk by chunk"""
    x, weight, labels, lse, count, rows, input_shape, input_dtype = saved
    d_losses = dloss / count
    dx = []
    dweight = torch.zeros_like(weight, dtype=_wide(weight.dtype))
    for x_chunk, label_chunk, lse_chunk in zip(x.split(rows), labels.split(rows), lse.split(rows), strict=True):
        dz = _token_losses_backward(d_losses, x_chunk @ weight.T, label_chunk, lse_chunk)
        dx.append(dz @ weight)
        dweight = dweight + dz.T @ x_chunk
    return torch.cat(dx).view(input_shape).to(input_dtype), dweight.to(weight.dtype)


def linear_cross_entropy_scores(x: Tensor, weight: Tensor, labels: Tensor, rows: int = 1024) -> tuple[Tensor, Tensor]:
    """For evaluation: each label's loss in nats, and the likeliest token; both 0 where a label does not count.

    x (..., D), weight (V, D), labels (...) int64 -> losses (...) float32 or wider, predicted (...) int64; in chunks of
    `rows` rows, as the loss. Rows whose label does not count are left out: evaluation has many.
    """
    counted = labels != IGNORE_INDEX
    x_rows, label_rows = x.to(weight.dtype)[counted], labels[counted]
    losses, predicted = [], []
    for x_chunk, label_chunk in zip(x_rows.split(rows), label_rows.split(rows), strict=True):
        logits = x_chunk @ weight.T
        losses.append(_token_losses(logits, label_chunk)[0])
        predicted.append(logits.argmax(-1))
    return in_places(torch.cat(losses), counted), in_places(torch.cat(predicted), counted)


def in_places(values: Tensor, places: Tensor) -> Tensor:
    """values (n,), places (...) bool with n of them true -> (...), 0 where they are false"""
    all_places = torch.zeros_like(places, dtype=values.dtype)
    all_places[places] = values
    return all_places


def last_logits(x: Tensor, weight: Tensor) -> Tensor:
    """The logits after each row's newest token.        x (B, T, D), weight (V, D) -> (B, V) in the weight's dtype"""
    return x[:, -1].to(weight.dtype) @ weight.T


# ----------------------------------------------------------------------- the pairs, with their parameters' names

lookup = Op(lookup_forward, lookup_backward, ("",))
positions = Op(positions_forward, positions_backward, ("",))
linear = Op(linear_forward, linear_backward, ("weight", "bias"))
layer_norm = Op(layer_norm_forward, layer_norm_backward, ("weight", "bias"))
rms_norm = Op(rms_norm_forward, rms_norm_backward, ("weight",))
gelu = Op(gelu_forward, gelu_backward)
qk_norm = Op(qk_norm_forward, qk_norm_backward)
relu_squared = Op(relu_squared_forward, relu_squared_backward)
swiglu = Op(swiglu_forward, swiglu_backward)
dropout = Op(dropout_forward, dropout_backward)
causal_attention = Op(causal_attention_forward, causal_attention_backward)
rotary_attention = Op(rotary_attention_forward, rotary_attention_backward)
linear_cross_entropy = Op(linear_cross_entropy_forward, linear_cross_entropy_backward)
