"""Repair the RMS norm.

forward     y = w ∘ x̂,    x̂ = x r,    r = (mean x² + ε)^−½         x (..., D), weight (D,) -> y (..., D)
saved       x, weight, r (..., 1)
backward    dy (..., D) -> dx (..., D), dweight (D,)
"""


def rms_norm_backward(dy, saved):
    x, weight, r = saved
    x_hat = x * r
    dx_hat = dy * weight
    dx = r * (dx_hat - x_hat * (dy * x_hat).mean(-1, keepdim=True))
    dweight = (dy * x_hat).flatten(0, -2).sum(0)
    return dx, dweight
