"""GPT-2's stack in kernels that each pass over memory once, around PyTorch's matrix products.

The mathematics is that of maths/gpt2.py, whose results these functions equal. What differs:

- A residual addition is done by the norm that follows it, dropout and the bias before it included (norm.py).
- The norms' and GELU's outputs are not saved but built again, and no cast of a weight is kept: one more pass over
  memory each, which is short beside a product.
- Attention goes by tiles of queries, and keeps its probabilities (attention.py).

Kernels write in place, but only into buffers made here.

Shapes: B batch, T time, D d_model, H heads, N = B·T rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.attention import attention_backward, attention_forward
from custom_transformer.fast.decoding import MANY_ROWS, attend_cached, product
from custom_transformer.fast.kernels import kernel
from custom_transformer.fast.norm import Addend, add_layer_norm_forward, add_norm_backward, norm_again
from custom_transformer.fast.products import matmul
from custom_transformer.maths.architecture import GPT2
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.scope import Saved, Scope
from custom_transformer.maths.stack import Stack
from custom_transformer.maths.stack import cached_block_forward as readable_cached_block_forward


def _norm(x: Tensor, addend: Addend, at: Scope, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Saved]:
    return add_layer_norm_forward(x, addend, at[f"{name}.weight"], at.get(f"{name}.bias"), dtype)


def _gelu(up: Tensor, bias: Tensor | None) -> Tensor:
    y = torch.empty_like(up)
    kernel("gelu_forward", up.dtype)(up, bias, *up.shape, y)
    return y


def stack_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """As stack.stack_forward"""
    batch, time, d = x.shape
    heads = (batch, config.n_heads, config.n_heads)
    x, addend = x.view(-1, d), Addend()
    for i in range(config.n_blocks):
        block = at / f"blocks.{i}"
        dropped = block.dropped((batch, config.n_heads, time, time))
        dropped_1, dropped_2 = block.dropped((batch, time, d)), block.dropped((batch, time, d))

        weight = block["qkv.weight"]
        x, y, saved = _norm(x, addend, block, "norm_1", weight.dtype)
        block.save("norm_1", saved)
        a, saved = attention_forward(matmul(y, weight), block.get("qkv.bias"), None, *heads, *dropped)
        block.save("attention", saved)
        block.save("projection", (a,))
        addend = Addend(matmul(a, block["projection.weight"]), block.get("projection.bias"), *dropped_1)

        weight = block["up.weight"]
        x, y, saved = _norm(x, addend, block, "norm_2", weight.dtype)
        block.save("norm_2", saved)
        up = matmul(y, weight)
        block.save("gelu", (up,))
        y = _gelu(up, block.get("up.bias"))
        addend = Addend(matmul(y, block["down.weight"]), block.get("down.bias"), *dropped_2)
    if addend.h is not None:
        addend = addend._replace(h=addend.h.to(x.dtype))
    _, y, saved = _norm(x, addend, at, "final_norm", x.dtype)
    at.save("final_norm", saved)
    return y.view(batch, time, d)


def stack_backward(dy: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """As stack.stack_backward"""
    dx, dh, d_bias, dweight, dbias = add_norm_backward(dy.reshape(-1, dy.shape[-1]), None, at.take("final_norm"))
    at.give("final_norm.weight", dweight)
    at.give("final_norm.bias", dbias)
    for i in reversed(range(config.n_blocks)):
        block = at / f"blocks.{i}"
        weight = block["down.weight"]
        dh = dh.to(weight.dtype)
        d_up = matmul(dh, weight.T)
        (up,), up_bias = block.take("gelu"), block.get("up.bias")
        d_up_bias = None if up_bias is None else torch.empty_like(up_bias)
        kernel("gelu_backward", up.dtype)(d_up, up, up_bias, *up.shape, d_up_bias)
        block.give("down.weight", matmul(up.T, dh))  # `up` is gelu's output by now
        block.give("down.bias", d_bias)
        norm_2 = block.take("norm_2")
        block.give("up.weight", matmul(norm_again(norm_2, d_up.dtype).T, d_up))
        block.give("up.bias", d_up_bias)
        dx, dh, d_bias, dweight, dbias = add_norm_backward(matmul(d_up, block["up.weight"].T), dx, norm_2)
        block.give("norm_2.weight", dweight)
        block.give("norm_2.bias", dbias)

        (a,) = block.take("projection")
        block.give("projection.weight", matmul(a.T, dh))
        block.give("projection.bias", d_bias)
        da = matmul(dh, block["projection.weight"].T)
        dqkv, dbias = attention_backward(da, block.take("attention"))
        norm_1 = block.take("norm_1")
        block.give("qkv.weight", matmul(norm_again(norm_1, dqkv.dtype).T, dqkv))
        block.give("qkv.bias", dbias)
        dx, dh, d_bias, dweight, dbias = add_norm_backward(matmul(dqkv, block["qkv.weight"].T), dx, norm_1)
        block.give("norm_1.weight", dweight)
        block.give("norm_1.bias", dbias)
    return dx.view(dy.shape)


def cached_block_forward(x: Tensor, at: Scope, config: CustomTransformerConfig, cache: KeyValues) -> Tensor:
    """As stack.cached_block_forward"""
    batch, new, d = x.shape
    if new > 1 or batch >= MANY_ROWS:
        return readable_cached_block_forward(GPT2, x, at, config, cache)
    weight, n_heads = at["qkv.weight"], config.n_heads
    rows, h, _ = _norm(x.reshape(batch, d), Addend(), at, "norm_1", weight.dtype)
    a = attend_cached(product(h, weight), at.get("qkv.bias"), None, n_heads, n_heads, cache)
    addend = Addend(product(a, at["projection.weight"]), at.get("projection.bias"))
    rows, h, _ = _norm(rows, addend, at, "norm_2", weight.dtype)
    h = _gelu(product(h, at["up.weight"]), at.get("up.bias"))
    rows = rows + product(h, at["down.weight"])
    if (bias := at.get("down.bias")) is not None:
        rows = rows + bias
    return rows.view(batch, 1, d)


STACK = Stack(stack_forward, stack_backward, cached_block_forward)
