"""Through a step of Newton–Schulz: the last exercise.

A matrix that is used five times, and products of products.

    forward     Y = a X + (b A + c A²) X,    A = X Xᵀ       x (M, N) -> y (M, N)
    saved       x
    backward    dy (M, N) -> dx (M, N)
"""

A, B, C = 3.4445, -4.7750, 2.0315


def newton_schulz_step_forward(x):
    a = x @ x.T
    return A * x + (B * a + C * a @ a) @ x, (x,)


def newton_schulz_step_backward(dy, saved):
    (x,) = saved
    raise NotImplementedError  # put your lines here
