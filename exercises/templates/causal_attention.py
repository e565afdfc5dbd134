"""Causal attention, the whole of it.

    forward     Y = P̃ V,    P̃ = dropout(P),    P = softmax(S),    S = Q Kᵀ / √K, −∞ where a key is in the future
                qkv (B, T, 3·D) -> y (B, T, D)
    saved       qkv, lse = log Σ exp S over the keys (B, H, T, 1), the number of heads, keep (B, H, T, T) or None, p
    backward    dy (B, T, D) -> dqkv (B, T, 3·D)

P is not saved: it is rebuilt from lse. Four functions help: attention_scores (S with its mask), split_heads,
merge_heads (its inverse), and dropout_forward.
"""

import math

import torch

from custom_transformer.maths.ops import attention_scores, dropout_forward, merge_heads, split_heads


def causal_attention_forward(qkv, n_heads, keep, dropout):
    q, k, v = split_heads(qkv, n_heads)
    scores = attention_scores(q, k)
    lse = torch.logsumexp(scores, -1, keepdim=True)
    probabilities, _ = dropout_forward(torch.exp(scores - lse), keep, dropout)
    return merge_heads(probabilities @ v), (qkv, lse, n_heads, keep, dropout)


def causal_attention_backward(dy, saved):
    qkv, lse, n_heads, keep, dropout = saved
    raise NotImplementedError  # put your lines here
