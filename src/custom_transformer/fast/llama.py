"""Llama's stack in kernels, as GPT-2's in gpt2.py; the mathematics is that of maths/llama.py.

What differs from that, beside what gpt2.py says: queries and keys are turned while heads are split, and their gradients
turned back while heads are merged; of the feed-forward network only the product before SwiGLU is saved.

Shapes: B batch, T time, D d_model, H heads, G heads of keys and values, K head size, F d_ffn, N = B·T rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.attention import attention_backward, attention_forward, rotary_turns
from custom_transformer.fast.decoding import attend_cached, product
from custom_transformer.fast.kernels import kernel
from custom_transformer.fast.norm import Addend, add_rms_norm_forward, norm_again
from custom_transformer.fast.products import by_kernel, matmul, weight_gradient
from custom_transformer.fast.stack import Block, Stream, StreamGradient, norm_backward, stack_of
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.scope import Scope


def _swiglu(gate_up: Tensor) -> Tensor:
    rows, width = gate_up.shape
    y = gate_up.new_empty(rows, width // 2)
    kernel("swiglu_forward", gate_up.dtype)(gate_up, *y.shape, y)
    return y


def _matmul_swiglu(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """gate_up = x W (N, 2 F) and swiglu(gate_up) (N, F); x (N, D), W (D, 2 F)"""
    if not by_kernel(x):
        gate_up = matmul(x, weight)
        return gate_up, _swiglu(gate_up)
    (rows, d), width = x.shape, weight.shape[1]
    gate_up, y = x.new_empty(rows, width), x.new_empty(rows, width // 2)
    kernel("product_swiglu", x.dtype)(x, weight, rows, d, width // 2, gate_up, y)
    return gate_up, y


def _matmul_swiglu_backward(dh: Tensor, weight: Tensor, gate_up: Tensor) -> Tensor:
    """swiglu(gate_up) (N, F) again, whose gradient is dh Wᵀ; gate_up (N, 2 F) becomes its own. dh (N, D), W (F, D)"""
    if not by_kernel(dh):
        y = matmul(dh, weight.T)
        kernel("swiglu_backward", y.dtype)(y, gate_up, *y.shape)
        return y
    y = dh.new_empty(len(dh), len(weight))
    kernel("product_swiglu_backward", y.dtype)(dh, weight, *dh.shape, len(weight), gate_up, y)
    return y


def _norm(
    x: Tensor, addend: Addend, at: Scope, name: str, config: CustomTransformerConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    x, y, saved = add_rms_norm_forward(x, addend, at[f"{name}.weight"], config.norm_eps, dtype)
    at.save(name, saved)
    return x, y


def block_forward(stream: Stream, at: Scope, config: CustomTransformerConfig) -> Stream:
    """As maths/llama.block_forward, but that the norms do the additions"""
    batch, x, addend = stream
    rows, d = x.shape
    time = rows // batch
    dropped = at.dropped((batch, config.n_heads, time, time))
    dropped_1, dropped_2 = at.dropped((batch, time, d)), at.dropped((batch, time, d))

    weight = at["qkv.weight"]
    x, y = _norm(x, addend, at, "norm_1", config, weight.dtype)
    turns = rotary_turns(time, config.head_size, config.rope_base, x.dtype)
    heads = (batch, config.n_heads, config.kv_heads)
    a, saved = attention_forward(matmul(y, weight), None, turns, *heads, *dropped)
    at.save("attention", saved)
    at.save("projection", (a,))
    addend = Addend(matmul(a, at["projection.weight"]), None, *dropped_1)

    weight = at["gate_up.weight"]
    x, y = _norm(x, addend, at, "norm_2", config, weight.dtype)
    gate_up, y = _matmul_swiglu(y, weight)
    at.save("swiglu", (gate_up,))
    return Stream(batch, x, Addend(matmul(y, at["down.weight"]), None, *dropped_2))


def block_backward(gradient: StreamGradient, at: Scope) -> StreamGradient:
    """As maths/llama.block_backward"""
    dx, dh, _ = gradient
    weight = at["down.weight"]
    dh = dh.to(weight.dtype)
    (gate_up,) = at.take("swiglu")
    y = _matmul_swiglu_backward(dh, weight, gate_up)
    at.give("down.weight", weight_gradient(y, dh))
    norm_2 = at.take("norm_2")
    at.give("gate_up.weight", weight_gradient(norm_again(norm_2, gate_up.dtype), gate_up))
    dx, dh, _ = norm_backward(matmul(gate_up, at["gate_up.weight"].T), dx, norm_2, at, "norm_2")

    (a,) = at.take("projection")
    at.give("projection.weight", weight_gradient(a, dh))
    da = matmul(dh, at["projection.weight"].T)
    dqkv, _ = attention_backward(da, at.take("attention"))
    norm_1 = at.take("norm_1")
    at.give("qkv.weight", weight_gradient(norm_again(norm_1, dqkv.dtype), dqkv))
    return norm_backward(matmul(dqkv, at["qkv.weight"].T), dx, norm_1, at, "norm_1")


def cached_block_forward(x: Tensor, at: Scope, config: CustomTransformerConfig, cache: KeyValues) -> Tensor:
    """As stack.cached_block_forward"""
    weight = at["qkv.weight"]
    turns = rotary_turns(cache.capacity, config.head_size, config.rope_base, x.dtype)
    rows, h = _norm(x.flatten(0, 1), Addend(), at, "norm_1", config, weight.dtype)
    a = attend_cached(product(h, weight), None, turns, len(x), config.n_heads, config.kv_heads, cache)
    addend = Addend(product(a, at["projection.weight"]))
    rows, h = _norm(rows, addend, at, "norm_2", config, weight.dtype)
    h = _swiglu(product(h, at["gate_up.weight"]))
    return (rows + product(h, at["down.weight"])).view(x.shape)


STACK = stack_of(Block(_norm, block_forward, block_backward, cached_block_forward))
