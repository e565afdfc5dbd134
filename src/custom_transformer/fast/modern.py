"""The modern recipe's stack in kernels, as Llama's in llama.py; the mathematics is that of maths/modern.py.

What differs from that, beside what llama.py says: queries and keys are normed in place, and of the feed-forward network
only the product before the squared ReLU is saved.

Shapes: B batch, T time, D d_model, H heads, G heads of keys and values, K head size, F d_ffn, N = B·T rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.attention import attention_backward, attention_forward, rotary_turns
from custom_transformer.fast.decoding import attend_cached, product
from custom_transformer.fast.kernels import kernel
from custom_transformer.fast.norm import Addend, add_rms_norm_forward, norm_again, qk_norm, qk_norm_backward
from custom_transformer.fast.products import matmul, weight_gradient
from custom_transformer.fast.stack import Block, Stream, StreamGradient, norm_backward, stack_of
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.scope import Scope


def _units(up: Tensor) -> Tensor:
    y = torch.empty_like(up)
    kernel("relu_squared_forward", up.dtype)(up, up.numel(), y)
    return y


def _norm(
    x: Tensor, addend: Addend, at: Scope, name: str, config: CustomTransformerConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    x, y, saved = add_rms_norm_forward(x, addend, None, config.norm_eps, dtype)
    at.save(name, saved)
    return x, y


def block_forward(stream: Stream, at: Scope, config: CustomTransformerConfig) -> Stream:
    """As maths/modern.block_forward, but that the norms do the additions"""
    batch, x, addend = stream
    rows, d = x.shape
    time = rows // batch
    dropped = at.dropped((batch, config.n_heads, time, time))
    dropped_1, dropped_2 = at.dropped((batch, time, d)), at.dropped((batch, time, d))

    weight = at["qkv.weight"]
    x, y = _norm(x, addend, at, "norm_1", config, weight.dtype)
    qkv = matmul(y, weight)
    at.save("qk_norm", qk_norm(qkv, config.n_heads, config.kv_heads, config.norm_eps))
    turns = rotary_turns(time, config.head_size, config.rope_base, x.dtype)
    a, saved = attention_forward(qkv, None, turns, batch, config.n_heads, config.kv_heads, *dropped)
    at.save("attention", saved)
    at.save("projection", (a,))
    addend = Addend(matmul(a, at["projection.weight"]), None, *dropped_1)

    weight = at["up.weight"]
    x, y = _norm(x, addend, at, "norm_2", config, weight.dtype)
    up = matmul(y, weight)
    at.save("relu_squared", (up,))
    return Stream(batch, x, Addend(matmul(_units(up), at["down.weight"]), None, *dropped_2))


def block_backward(gradient: StreamGradient, at: Scope) -> StreamGradient:
    """As maths/modern.block_backward"""
    dx, dh, _ = gradient
    weight = at["down.weight"]
    dh = dh.to(weight.dtype)
    d_up = matmul(dh, weight.T)
    (up,) = at.take("relu_squared")
    kernel("relu_squared_backward", up.dtype)(d_up, up, up.numel())  # `up` becomes the units' result
    at.give("down.weight", weight_gradient(up, dh))
    norm_2 = at.take("norm_2")
    at.give("up.weight", weight_gradient(norm_again(norm_2, d_up.dtype), d_up))
    dx, dh, _ = norm_backward(matmul(d_up, at["up.weight"].T), dx, norm_2, at, "norm_2")

    (a,) = at.take("projection")
    at.give("projection.weight", weight_gradient(a, dh))
    da = matmul(dh, at["projection.weight"].T)
    dqkv, _ = attention_backward(da, at.take("attention"))
    qk_norm_backward(dqkv, at.take("qk_norm"))
    norm_1 = at.take("norm_1")
    at.give("qkv.weight", weight_gradient(norm_again(norm_1, dqkv.dtype), dqkv))
    return norm_backward(matmul(dqkv, at["qkv.weight"].T), dx, norm_1, at, "norm_1")


def cached_block_forward(x: Tensor, at: Scope, config: CustomTransformerConfig, cache: KeyValues) -> Tensor:
    """As stack.cached_block_forward"""
    weight = at["qkv.weight"]
    turns = rotary_turns(cache.capacity, config.head_size, config.rope_base, x.dtype)
    rows, h = _norm(x.flatten(0, 1), Addend(), at, "norm_1", config, weight.dtype)
    qkv = product(h, weight)
    qk_norm(qkv, config.n_heads, config.kv_heads, config.norm_eps)
    a = attend_cached(qkv, None, turns, len(x), config.n_heads, config.kv_heads, cache)
    addend = Addend(product(a, at["projection.weight"]))
    rows, h = _norm(rows, addend, at, "norm_2", config, weight.dtype)
    h = _units(product(h, at["up.weight"]))
    return (rows + product(h, at["down.weight"])).view(x.shape)


STACK = stack_of(Block(_norm, block_forward, block_backward, cached_block_forward))
