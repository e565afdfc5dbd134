"""Rotary positions: pairs that are turned.

Each pair (x_i, x_{i + K/2}) is turned by an angle that grows with the position t = start, start + 1, …:
t · base^(−2i/K). So the product of a turned query and a turned key depends on their distance only.

    forward     y = rotate(x, start, base)      x (B, H, T, K) -> y (B, H, T, K)
    saved       start, base
    backward    dy -> dx
"""

from custom_transformer.maths.ops import rotate


def rotate_forward(x, start, base):
    return rotate(x, start, base), (start, base)


def rotate_backward(dy, saved):
    start, base = saved
    raise NotImplementedError  # put your lines here
