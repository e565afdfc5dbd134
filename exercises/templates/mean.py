"""y = mean of x over its last axis.

forward     y[…] = 1/D Σ_d x[…, d]          x (..., D) -> y (...)
saved       x
backward    dy (...) -> dx (..., D)
"""


def mean_forward(x):
    return x.mean(-1), (x,)


def mean_backward(dy, saved):
    (x,) = saved
    raise NotImplementedError  # put your lines here
