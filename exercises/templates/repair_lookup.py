"""Repair x = table[token].

forward     x[b, t] = table[input_ids[b, t]]        input_ids (B, T) of integers, table (V, D) -> x (B, T, D)
saved       input_ids, table
backward    dx (B, T, D) -> None (tokens have no gradient), d_table (V, D)
"""

import torch


def lookup_backward(dx, saved):
    input_ids, table = saved
    d_table = torch.zeros_like(table)
    d_table[input_ids] = dx
    return None, d_table
