"""Repair Llama's attention: turns and shared keys.

forward     as causal attention, on turned queries and keys; G heads of keys and values serve H heads of queries
            qkv (B, T, (H + 2·G)·K) -> y (B, T, H·K)
saved       qkv, lse (B, H, T, 1), H, G, base of the turns, keep (B, H, T, T) or None, p
backward    dy (B, T, H·K) -> dqkv (B, T, (H + 2·G)·K)
"""

import math

import torch

from custom_transformer.maths.ops import attention_scores, rotate, shared_by_queries, split_groups


def rotary_attention_backward(dy, saved):
    qkv, lse, n_heads, n_kv_heads, base, keep, dropout = saved
    q, k, v = split_groups(qkv, n_heads, n_kv_heads, base)  # q and k are turned already
    k_each, v_each = shared_by_queries(k, q), shared_by_queries(v, q)
    dy_heads = dy.unflatten(-1, (n_heads, -1)).transpose(1, 2)

    probabilities = torch.exp(attention_scores(q, k_each) - lse)
    mask = 1.0 if keep is None else keep.to(qkv.dtype) / (1 - dropout)
    dv_each = (probabilities * mask).transpose(-2, -1) @ dy_heads
    d_probabilities = dy_heads @ v_each.transpose(-2, -1) * mask
    inner = (d_probabilities * probabilities).sum(-1, keepdim=True)
    d_scores = probabilities * (d_probabilities - inner) / math.sqrt(q.shape[-1])
    dq, dk_each = d_scores @ k_each, d_scores.transpose(-2, -1) @ q
    dk, dv = (d.unflatten(1, (n_kv_heads, -1)).sum(2) for d in (dk_each, dv_each))
    heads = torch.cat([rotate(dq, 0, base), rotate(dk, 0, base), dv], 1)
    return heads.transpose(1, 2).flatten(2)
