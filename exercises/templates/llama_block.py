"""A block of Llama, upside down.

As the exercise block, with RMS norms, rotary attention and SwiGLU.

    forward     block_forward below         x (B, T, D) -> (B, T, D)
    backward    dx (B, T, D), the gradient of the block's result -> the gradient of its input
"""

from custom_transformer.maths.ops import dropout, linear, rms_norm, rotary_attention, swiglu


def block_forward(x, at, config):
    batch, time, _ = x.shape
    heads = (config.n_heads, config.kv_heads, config.rope_base)
    h = at.forward("norm_1", rms_norm, x, config.norm_eps)
    h = at.forward("qkv", linear, h)
    h = at.forward("attention", rotary_attention, h, *heads, *at.dropped((batch, config.n_heads, time, time)))
    h = at.forward("projection", linear, h)
    x = x + at.forward("drop_1", dropout, h, *at.dropped(h.shape))
    h = at.forward("norm_2", rms_norm, x, config.norm_eps)
    h = at.forward("gate_up", linear, h)
    h = at.forward("swiglu", swiglu, h)
    h = at.forward("down", linear, h)
    return x + at.forward("drop_2", dropout, h, *at.dropped(h.shape))


def block_backward(dx, at):
    raise NotImplementedError  # put your lines here
