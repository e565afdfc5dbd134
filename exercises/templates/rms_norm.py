"""RMS norm: every element of a row is in its scale.

forward     y = w ∘ x̂,    x̂ = x r,    r = (mean x² + ε)^−½         x (..., D), weight (D,) -> y (..., D)
saved       x, weight, r (..., 1)
backward    dy (..., D) -> dx (..., D), dweight (D,)
"""


def rms_norm_forward(x, weight, eps):
    r = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return x * r * weight, (x, weight, r)


def rms_norm_backward(dy, saved):
    x, weight, r = saved
    raise NotImplementedError  # put your lines here
