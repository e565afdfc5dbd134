"""y = x W + b: a linear layer.

As the exercise product, with a bias, and with any number of leading axes.

    forward     y = x W + b         x (..., D_in), weight (D_in, D_out), bias (D_out,) or None -> y (..., D_out)
    saved       x, weight, bias, and x's dtype (x was cast to the weight's, in which the product is computed)
    backward    dy (..., D_out) -> dx (..., D_in) in x's dtype, dweight (D_in, D_out), dbias (D_out,) or None
"""


def linear_backward(dy, saved):
    x, weight, bias, input_dtype = saved
    raise NotImplementedError  # put your lines here
