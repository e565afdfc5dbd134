"""GELU, by tanh: a product of x with a function of x.

forward     y = ½ x (1 + tanh u),    u = √(2/π) (x + 0.044715 x³)       x of any shape -> y of that shape
saved       x
backward    dy -> dx
"""

import math

import torch

SCALE = math.sqrt(2 / math.pi)


def gelu_forward(x):
    u = SCALE * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + torch.tanh(u)), (x,)


def gelu_backward(dy, saved):
    (x,) = saved
    raise NotImplementedError  # put your lines here
