"""S = Q Kᵀ / √K: every query with every key.

    forward     S = Q Kᵀ / √K       q (B, H, T_q, K), k (B, H, T_k, K) -> S (B, H, T_q, T_k)
    saved       q, k
    backward    d_scores (B, H, T_q, T_k) -> dq, dk

Here K is a head's size, q.shape[-1]. (The mask of the future comes in causal_attention.)
"""

import math


def scores_forward(q, k):
    return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), (q, k)


def scores_backward(d_scores, saved):
    q, k = saved
    raise NotImplementedError  # put your lines here
