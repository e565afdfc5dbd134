"""y = a ∘ b: element by element.

forward     y[i, j] = a[i, j] b[i, j]       a, b and y of one shape
saved       a, b
backward    dy -> da, db
"""


def multiply_forward(a, b):
    return a * b, (a, b)


def multiply_backward(dy, saved):
    a, b = saved
    raise NotImplementedError  # put your lines here
