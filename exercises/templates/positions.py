"""y = x + position table: rows that all texts of a batch share.

forward     y[b, t] = x[b, t] + table[start + t]        x (B, T, D), table (P, D), start + T ≤ P -> y (B, T, D)
saved       table, start, T
backward    dy (B, T, D) -> dx (B, T, D), d_table (P, D)
"""

import torch


def positions_forward(x, table, start):
    time = x.shape[1]
    return x + table[start : start + time], (table, start, time)


def positions_backward(dy, saved):
    table, start, time = saved
    raise NotImplementedError  # put your lines here
