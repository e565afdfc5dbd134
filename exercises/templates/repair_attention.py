"""Repair causal attention.

forward     Y = P̃ V,    P̃ = dropout(P),    P = softmax(S),    S = Q Kᵀ / √K, −∞ where a key is in the future
            qkv (B, T, 3·D) -> y (B, T, D)
saved       qkv, lse = log Σ exp S over the keys (B, H, T, 1), the number of heads, keep (B, H, T, T) or None, p
backward    dy (B, T, D) -> dqkv (B, T, 3·D)
"""

import math

import torch

from custom_transformer.maths.ops import attention_scores, merge_heads, split_heads


def causal_attention_backward(dy, saved):
    qkv, lse, n_heads, keep, dropout = saved
    q, k, v = split_heads(qkv, n_heads)
    batch, time, _ = dy.shape
    dy_heads = dy.view(batch, time, n_heads, -1).transpose(1, 2)

    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    probabilities = torch.exp(scores - lse)
    mask = 1.0 if keep is None else keep.to(qkv.dtype) / (1 - dropout)
    dv = (probabilities * mask).transpose(-2, -1) @ dy_heads
    d_probabilities = dy_heads @ v.transpose(-2, -1) * mask
    inner = (d_probabilities * probabilities).sum(-1, keepdim=True)
    d_scores = probabilities * (d_probabilities - inner) / math.sqrt(q.shape[-1])
    return merge_heads(d_scores @ k, d_scores.transpose(-2, -1) @ q, dv)
