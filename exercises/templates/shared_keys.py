"""Grouped queries: a key that several heads share.

forward     y[b, h] = k[b, h // R]          k (B, G, T, K) -> y (B, H, T, K), R = H / G neighbours share one
saved       H, G
backward    dy (B, H, T, K) -> dk (B, G, T, K)
"""


def shared_keys_forward(k, n_heads, n_kv_heads):
    return k.repeat_interleave(n_heads // n_kv_heads, 1), (n_heads, n_kv_heads)


def shared_keys_backward(dy, saved):
    n_heads, n_kv_heads = saved
    raise NotImplementedError  # put your lines here
