"""Llama (Touvron et al. 2023): its parameters, its embedding, and its block, forwards and upside down.

As GPT-2, but with RMS norms, positions as turns of queries and keys, keys and values that groups of heads share, a
gated feed-forward network, and no biases.

docs/book/block.md goes through the block.

Shapes: B batch, T time, D d_model, H heads, G key and value heads, K head size, F d_ffn, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths.ops import dropout, linear, lookup, rms_norm, rotary_attention, split_groups, swiglu
from custom_transformer.maths.parameters import Parameter, Table, layer
from custom_transformer.maths.scope import Scope


def parameters(config: CustomTransformerConfig) -> Table:
    """Every parameter's shape and role by its name, in the order of the forward pass."""
    d, f = config.d_model, config.d_ffn
    block = (
        layer("norm_1", False, (d,), "gain")
        | layer("qkv", False, (d, d + 2 * config.kv_heads * config.head_size), "into_heads")
        | layer("projection", False, (d, d), "into_stream")
        | layer("norm_2", False, (d,), "gain")
        | layer("gate_up", False, (d, 2 * f), "matrix")
        | layer("down", False, (f, d), "into_stream")
    )
    table = {"token_embedding": Parameter((config.vocab_size, d), "table")}
    for i in range(config.n_blocks):
        table |= {f"blocks.{i}.{name}": parameter for name, parameter in block.items()}
    table |= layer("final_norm", False, (d,), "gain")
    return table if config.tie_embeddings else table | {"head.weight": table["token_embedding"]}


def embedding_forward(input_ids: Tensor, at: Scope, start: int = 0) -> Tensor:
    """input_ids (B, T) int64 -> x (B, T, D); positions come in with the attention"""
    x = at.forward("token_embedding", lookup, input_ids)
    return at.forward("drop", dropout, x, *at.dropped(x.shape))


def embedding_backward(dx: Tensor, at: Scope, d_head: Tensor | None) -> None:
    """The forward, upside down; d_head (V, D) is what the tied head adds to the token table's gradient."""
    dx = at.backward("drop", dropout, dx)
    at.backward("token_embedding", lookup, dx, d_head)


def block_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """x + projection(attention(qkv(norm(x)))), then x + down(swiglu(gate_up(norm(x))))    x (B, T, D) -> (B, T, D)"""
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


def block_backward(dx: Tensor, at: Scope) -> Tensor:
    """The forward, upside down; x + h hands x to both sides, so their gradients add.    dx (B, T, D) -> (B, T, D)"""
    dh = at.backward("drop_2", dropout, dx)
    dh = at.backward("down", linear, dh)
    dh = at.backward("swiglu", swiglu, dh)
    dh = at.backward("gate_up", linear, dh)
    dx = dx + at.backward("norm_2", rms_norm, dh)
    dh = at.backward("drop_1", dropout, dx)
    dh = at.backward("projection", linear, dh)
    dh = at.backward("attention", rotary_attention, dh)
    dh = at.backward("qkv", linear, dh)
    return dx + at.backward("norm_1", rms_norm, dh)


def final_norm_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """x (B, T, D) -> (B, T, D)"""
    return at.forward("final_norm", rms_norm, x, config.norm_eps)


def final_norm_backward(dx: Tensor, at: Scope) -> Tensor:
    return at.backward("final_norm", rms_norm, dx)


def inside(seen: Mapping[str, Tensor], config: CustomTransformerConfig) -> tuple[Tensor, Tensor, Tensor]:
    """From a block's results by name: its turned queries (B, H, T, K) and keys (B, G, T, K), and what its units' gate
    is given (B, T, F)"""
    q, k, _ = split_groups(seen["qkv"], config.n_heads, config.kv_heads, config.rope_base)
    return q, k, seen["gate_up"].chunk(2, -1)[0]
