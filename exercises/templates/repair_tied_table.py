"""Repair the tied table: embedding below, head above.

When embeddings are tied, the token table E is used twice: x = E[token] at the bottom of the model, and logits = x Eᵀ at
its top. The head's backward came first; what it found for E is handed in as d_head.

    forward     x[b, t] = table[input_ids[b, t]]        input_ids (B, T), table (V, D) -> x (B, T, D)
    saved       input_ids, table
    backward    dx (B, T, D), saved, d_head (V, D) -> None, d_table (V, D)
"""

import torch


def lookup_backward(dx, saved, d_head):
    input_ids, table = saved
    d_table = torch.zeros_like(table).index_add(0, input_ids.flatten(), dx.flatten(0, -2))
    return None, d_table
