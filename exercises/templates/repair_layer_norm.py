"""Repair the layer norm.

forward     y = w ∘ x̂ + b,    x̂ = (x − mean x) · rstd,    rstd = (var x + ε)^−½
            x (..., D), weight (D,), bias (D,) or None -> y (..., D); var is the mean of (x − mean x)²
saved       x, weight, bias, mean (..., 1), rstd (..., 1)
backward    dy (..., D) -> dx (..., D), dweight (D,), dbias (D,) or None
"""


def layer_norm_backward(dy, saved):
    x, weight, bias, mean, rstd = saved
    x_hat = (x - mean) * rstd
    dx_hat = dy * weight
    dx = rstd * (dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdim=True))
    dweight = (dy * x_hat).flatten(0, -2).sum(0)
    dbias = None if bias is None else dy.flatten(0, -2).sum(0)
    return dx, dweight, dbias
