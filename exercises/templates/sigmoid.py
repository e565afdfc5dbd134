"""y = σ(x): from the result alone.

The forward saved y, and not x.

    forward     y = σ(x) = 1 / (1 + e^−x)       x of any shape -> y of that shape
    saved       y
    backward    dy -> dx
"""

import torch


def sigmoid_forward(x):
    y = torch.sigmoid(x)
    return y, (y,)


def sigmoid_backward(dy, saved):
    (y,) = saved
    raise NotImplementedError  # put your lines here
