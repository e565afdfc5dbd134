"""SGD with weight decay, in place.

    θ ← θ − η (s g + λ θ)

θ is parameter, g gradient, s scale (what clipping multiplies the gradient by), η lr (the learning rate) and
λ weight_decay. In place: the tensor `parameter` itself is changed, and nothing is returned.
"""


def sgd_update(parameter, gradient, scale, lr, weight_decay):
    raise NotImplementedError  # put your lines here
