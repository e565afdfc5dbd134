"""Repair GELU.

forward     y = ½ x (1 + tanh u),    u = √(2/π) (x + 0.044715 x³)       x of any shape -> y of that shape
saved       x
backward    dy -> dx
"""

import math

import torch

SCALE = math.sqrt(2 / math.pi)


def gelu_backward(dy, saved):
    (x,) = saved
    tau = torch.tanh(SCALE * (x + 0.044715 * x**3))
    du = SCALE * (1 + 0.044715 * x**2)
    return dy * (0.5 * (1 + tau) + 0.5 * x * (1 - tau**2) * du)
