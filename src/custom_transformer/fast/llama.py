"""Llama's stack in kernels, as GPT-2's in gpt2.py; the mathematics is that of maths/llama.py.

What differs from that, beside what gpt2.py says: queries and keys are turned while heads are split, and their gradients
turned back while heads are merged; of the feed-forward network only the product before SwiGLU is saved.

Shapes: B batch, T time, D d_model, H heads, G heads of keys and values, K head size, F d_ffn, N = B·T rows.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.attention import attention_backward, attention_forward
from custom_transformer.fast.decoding import MANY_ROWS, attend_cached, product
from custom_transformer.fast.kernels import kernel
from custom_transformer.fast.norm import Addend, add_norm_backward, add_rms_norm_forward, norm_again
from custom_transformer.fast.products import matmul
from custom_transformer.maths.architecture import LLAMA
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.ops import rotate
from custom_transformer.maths.scope import Scope
from custom_transformer.maths.stack import Stack
from custom_transformer.maths.stack import cached_block_forward as readable_cached_block_forward


@functools.lru_cache(maxsize=4)
def _turns(time: int, size: int, base: float, dtype: torch.dtype) -> Tensor:
    """Each place's cosines, then its sines: the pairs (1, 0) turned.        -> (T, K)"""
    ones = torch.ones(time, size // 2, dtype=dtype, device="cpu")
    return rotate(torch.cat([ones, torch.zeros_like(ones)], -1), 0, base)


def _swiglu(gate_up: Tensor) -> Tensor:
    rows, width = gate_up.shape
    y = gate_up.new_empty(rows, width // 2)
    kernel("swiglu_forward", gate_up.dtype)(gate_up, *y.shape, y)
    return y


def stack_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """As stack.stack_forward"""
    batch, time, d = x.shape
    heads, eps = (batch, config.n_heads, config.kv_heads), config.norm_eps
    turns = _turns(time, config.head_size, config.rope_base, x.dtype)
    x, addend = x.view(-1, d), Addend()
    for i in range(config.n_blocks):
        block = at / f"blocks.{i}"
        dropped = block.dropped((batch, config.n_heads, time, time))
        dropped_1, dropped_2 = block.dropped((batch, time, d)), block.dropped((batch, time, d))

        weight = block["qkv.weight"]
        x, y, saved = add_rms_norm_forward(x, addend, block["norm_1.weight"], eps, weight.dtype)
        block.save("norm_1", saved)
        a, saved = attention_forward(matmul(y, weight), None, turns, *heads, *dropped)
        block.save("attention", saved)
        block.save("projection", (a,))
        addend = Addend(matmul(a, block["projection.weight"]), None, *dropped_1)

        weight = block["gate_up.weight"]
        x, y, saved = add_rms_norm_forward(x, addend, block["norm_2.weight"], eps, weight.dtype)
        block.save("norm_2", saved)
        gate_up = matmul(y, weight)
        block.save("swiglu", (gate_up,))
        addend = Addend(matmul(_swiglu(gate_up), block["down.weight"]), None, *dropped_2)
    if addend.h is not None:
        addend = addend._replace(h=addend.h.to(x.dtype))
    _, y, saved = add_rms_norm_forward(x, addend, at["final_norm.weight"], eps, x.dtype)
    at.save("final_norm", saved)
    return y.view(batch, time, d)


def stack_backward(dy: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """As stack.stack_backward"""
    dx, dh, _, dweight, _ = add_norm_backward(dy.reshape(-1, dy.shape[-1]), None, at.take("final_norm"))
    at.give("final_norm.weight", dweight)
    for i in reversed(range(config.n_blocks)):
        block = at / f"blocks.{i}"
        weight = block["down.weight"]
        dh = dh.to(weight.dtype)
        y = matmul(dh, weight.T)
        (gate_up,) = block.take("swiglu")
        kernel("swiglu_backward", y.dtype)(y, gate_up, *y.shape)  # dy becomes y, and gate_up its gradient
        block.give("down.weight", matmul(y.T, dh))
        norm_2 = block.take("norm_2")
        block.give("gate_up.weight", matmul(norm_again(norm_2, gate_up.dtype).T, gate_up))
        dx, dh, _, dweight, _ = add_norm_backward(matmul(gate_up, block["gate_up.weight"].T), dx, norm_2)
        block.give("norm_2.weight", dweight)

        (a,) = block.take("projection")
        block.give("projection.weight", matmul(a.T, dh))
        da = matmul(dh, block["projection.weight"].T)
        dqkv, _ = attention_backward(da, block.take("attention"))
        norm_1 = block.take("norm_1")
        block.give("qkv.weight", matmul(norm_again(norm_1, dqkv.dtype).T, dqkv))
        dx, dh, _, dweight, _ = add_norm_backward(matmul(dqkv, block["qkv.weight"].T), dx, norm_1)
        block.give("norm_1.weight", dweight)
    return dx.view(dy.shape)


def cached_block_forward(x: Tensor, at: Scope, config: CustomTransformerConfig, cache: KeyValues) -> Tensor:
    """As stack.cached_block_forward"""
    batch, new, d = x.shape
    if new > 1 or batch >= MANY_ROWS:
        return readable_cached_block_forward(LLAMA, x, at, config, cache)
    weight, eps = at["qkv.weight"], config.norm_eps
    turns = _turns(cache.capacity, config.head_size, config.rope_base, x.dtype)
    rows, h, _ = add_rms_norm_forward(x.reshape(batch, d), Addend(), at["norm_1.weight"], eps, weight.dtype)
    a = attend_cached(product(h, weight), None, turns, config.n_heads, config.kv_heads, cache)
    addend = Addend(product(a, at["projection.weight"]))
    rows, h, _ = add_rms_norm_forward(rows, addend, at["norm_2.weight"], eps, weight.dtype)
    h = _swiglu(product(h, at["gate_up.weight"]))
    return (rows + product(h, at["down.weight"])).view(batch, 1, d)


STACK = Stack(stack_forward, stack_backward, cached_block_forward)
