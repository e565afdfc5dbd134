"""GPT-2's stack in kernels that each pass over memory once, and the products of products.py.

The mathematics is that of maths/gpt2.py, whose results these functions equal. What differs:

- A residual addition is done by the norm that follows it, dropout and the bias before it included (norm.py).
- The norms' and GELU's outputs are not saved but built again, and no cast of a weight is kept: one more pass over
  memory each, which is short beside a product.
- Attention is one pass, and its probabilities are computed again (attention.py).

Kernels write in place, but only into buffers made here.

Shapes: B batch, T time, D d_model, H heads, N = B·T rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.attention import attention_backward, attention_forward
from custom_transformer.fast.decoding import attend_cached, product
from custom_transformer.fast.kernels import kernel
from custom_transformer.fast.norm import Addend, add_layer_norm_forward, norm_again
from custom_transformer.fast.products import matmul, weight_gradient
from custom_transformer.fast.stack import Block, Stream, StreamGradient, norm_backward, stack_of
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.scope import Scope


def _norm(
    x: Tensor, addend: Addend, at: Scope, name: str, config: CustomTransformerConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    x, y, saved = add_layer_norm_forward(x, addend, at[f"{name}.weight"], at.get(f"{name}.bias"), dtype)
    at.save(name, saved)
    return x, y


def _gelu(up: Tensor, bias: Tensor | None) -> Tensor:
    y = torch.empty_like(up)
    kernel("gelu_forward", up.dtype)(up, bias, *up.shape, y)
    return y


def block_forward(stream: Stream, at: Scope, config: CustomTransformerConfig) -> Stream:
    """As maths/gpt2.block_forward, but that the norms do the additions"""
    batch, x, addend = stream
    rows, d = x.shape
    time = rows // batch
    dropped = at.dropped((batch, config.n_heads, time, time))
    dropped_1, dropped_2 = at.dropped((batch, time, d)), at.dropped((batch, time, d))

    weight = at["qkv.weight"]
    x, y = _norm(x, addend, at, "norm_1", config, weight.dtype)
    heads = (batch, config.n_heads, config.n_heads)
    a, saved = attention_forward(matmul(y, weight), at.get("qkv.bias"), None, *heads, *dropped)
    at.save("attention", saved)
    at.save("projection", (a,))
    addend = Addend(matmul(a, at["projection.weight"]), at.get("projection.bias"), *dropped_1)

    weight = at["up.weight"]
    x, y = _norm(x, addend, at, "norm_2", config, weight.dtype)
    up = matmul(y, weight)
    at.save("gelu", (up,))
    y = _gelu(up, at.get("up.bias"))
    return Stream(batch, x, Addend(matmul(y, at["down.weight"]), at.get("down.bias"), *dropped_2))


def block_backward(gradient: StreamGradient, at: Scope) -> StreamGradient:
    """As maths/gpt2.block_backward"""
    dx, dh, d_bias = gradient
    weight = at["down.weight"]
    dh = dh.to(weight.dtype)
    d_up = matmul(dh, weight.T)
    (up,), up_bias = at.take("gelu"), at.get("up.bias")
    d_up_bias = None if up_bias is None else torch.empty_like(up_bias)
    kernel("gelu_backward", up.dtype)(d_up, up, up_bias, *up.shape, d_up_bias)
    at.give("down.weight", weight_gradient(up, dh))  # `up` is gelu's output by now
    at.give("down.bias", d_bias)
    norm_2 = at.take("norm_2")
    at.give("up.weight", weight_gradient(norm_again(norm_2, d_up.dtype), d_up))
    at.give("up.bias", d_up_bias)
    dx, dh, d_bias = norm_backward(matmul(d_up, at["up.weight"].T), dx, norm_2, at, "norm_2")

    (a,) = at.take("projection")
    at.give("projection.weight", weight_gradient(a, dh))
    at.give("projection.bias", d_bias)
    da = matmul(dh, at["projection.weight"].T)
    dqkv, dbias = attention_backward(da, at.take("attention"))
    norm_1 = at.take("norm_1")
    at.give("qkv.weight", weight_gradient(norm_again(norm_1, dqkv.dtype), dqkv))
    at.give("qkv.bias", dbias)
    return norm_backward(matmul(dqkv, at["qkv.weight"].T), dx, norm_1, at, "norm_1")


def cached_block_forward(x: Tensor, at: Scope, config: CustomTransformerConfig, cache: KeyValues) -> Tensor:
    """As stack.cached_block_forward"""
    weight, n_heads = at["qkv.weight"], config.n_heads
    rows, h = _norm(x.flatten(0, 1), Addend(), at, "norm_1", config, weight.dtype)
    a = attend_cached(product(h, weight), at.get("qkv.bias"), None, len(x), n_heads, n_heads, cache)
    addend = Addend(product(a, at["projection.weight"]), at.get("projection.bias"))
    rows, h = _norm(rows, addend, at, "norm_2", config, weight.dtype)
    h = _gelu(product(h, at["up.weight"]), at.get("up.bias"))
    rows = rows + product(h, at["down.weight"])
    if (bias := at.get("down.bias")) is not None:
        rows = rows + bias
    return rows.view(x.shape)


STACK = stack_of(Block(_norm, block_forward, block_backward, cached_block_forward))
