"""Clipping: one norm for all gradients.

    global_norm(gradients)          ‖g‖ = √(Σ g²) over all elements of all tensors; gradients: {name: tensor}
    clip_scale(norm, max_norm)      min(1, max_norm / norm), what all gradients are multiplied by; 1 if max_norm is None

Both return a number.
"""


def global_norm(gradients):
    raise NotImplementedError  # put your lines here


def clip_scale(norm, max_norm):
    raise NotImplementedError  # put your lines here
