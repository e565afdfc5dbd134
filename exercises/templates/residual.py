"""y = x + x W: two ways from x to y.

forward     y = x + x W         x (N, D), weight (D, D) -> y (N, D)
saved       x, weight
backward    dy (N, D) -> dx (N, D), dweight (D, D)
"""


def residual_forward(x, weight):
    return x + x @ weight, (x, weight)


def residual_backward(dy, saved):
    x, weight = saved
    raise NotImplementedError  # put your lines here
