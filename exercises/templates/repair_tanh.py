"""Repair y = tanh x.

forward     y = tanh x          x of any shape -> y of that shape
saved       y
backward    dy -> dx = dy ∘ (1 − tanh² x)
"""

import torch


def tanh_forward(x):
    y = torch.tanh(x)
    return y, (y,)


def tanh_backward(dy, saved):
    (y,) = saved
    return dy * (1 - torch.tanh(y).square())
