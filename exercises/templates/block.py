"""A block of GPT-2, upside down.

`at` is the block's scope. at.forward("up", linear, h) computes a layer with its parameters and keeps what it saved
under the layer's name. at.backward("up", linear, dh) takes that out again, hands the parameters' gradients on, and
gives the gradient of the layer's input. docs/house.md explains more.

    forward     block_forward below         x (B, T, D) -> (B, T, D)
    backward    dx (B, T, D), the gradient of the block's result -> the gradient of its input
"""

from custom_transformer.maths.ops import causal_attention, dropout, gelu, layer_norm, linear


def block_forward(x, at, config):
    batch, time, _ = x.shape
    h = at.forward("norm_1", layer_norm, x)
    h = at.forward("qkv", linear, h)
    h = at.forward("attention", causal_attention, h, config.n_heads, *at.dropped((batch, config.n_heads, time, time)))
    h = at.forward("projection", linear, h)
    x = x + at.forward("drop_1", dropout, h, *at.dropped(h.shape))
    h = at.forward("norm_2", layer_norm, x)
    h = at.forward("up", linear, h)
    h = at.forward("gelu", gelu, h)
    h = at.forward("down", linear, h)
    return x + at.forward("drop_2", dropout, h, *at.dropped(h.shape))


def block_backward(dx, at):
    raise NotImplementedError  # put your lines here
