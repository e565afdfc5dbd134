"""y = x W: the gradients of a product.

Write the backward. L is a scalar loss somewhere behind y, and dy its gradient: dy[n, j] = ∂L/∂y[n, j].
Find dx and dweight, of the shapes of x and weight, from dL = Σ dy ∘ δy: how does y change with x, and with W?

    forward     y = x W             x (N, D_in), weight (D_in, D_out) -> y (N, D_out)
    saved       x, weight
    backward    dy (N, D_out) -> dx (N, D_in), dweight (D_in, D_out)
"""


def product_forward(x, weight):
    return x @ weight, (x, weight)


def product_backward(dy, saved):
    x, weight = saved
    raise NotImplementedError  # put your lines here
