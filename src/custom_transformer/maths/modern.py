"""The modern recipe: its parameters, its embedding, and its block, forwards and upside down.

After what small models were trained fastest with (Jordan et al. 2024, "modded-nanogpt"): as Llama, but norms have no
gains, queries and keys have a norm of their own, units are squared ReLUs, and what a block adds to the stream begins as
zero.

docs/book/block.md goes through such a block; docs/book/qk_norm.md and relu_squared.md through what is new.

Shapes: B batch, T time, D d_model, H heads, G key and value heads, K head size, F d_ffn, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths.ops import (
    dropout,
    linear,
    lookup,
    qk_norm,
    relu_squared,
    rms_norm,
    rotary_attention,
    split_groups,
)
from custom_transformer.maths.parameters import Parameter, Table, layer
from custom_transformer.maths.scope import Scope


def parameters(config: CustomTransformerConfig) -> Table:
    """Every parameter's shape and role by its name, in the order of the forward pass."""
    d, f = config.d_model, config.d_ffn
    block = (
        layer("qkv", False, (d, d + 2 * config.kv_heads * config.head_size), "into_heads")
        | layer("projection", False, (d, d), "zero_into_stream")
        | layer("up", False, (d, f), "matrix")
        | layer("down", False, (f, d), "zero_into_stream")
    )
    table = {"token_embedding": Parameter((config.vocab_size, d), "table")}
    for i in range(config.n_blocks):
        table |= {f"blocks.{i}.{name}": parameter for name, parameter in block.items()}
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
    """x + projection(attention(qk_norm(qkv(norm(x))))), then x + down(max(up(norm(x)), 0)²)

    x (B, T, D) -> (B, T, D)
    """
    batch, time, _ = x.shape
    heads = (config.n_heads, config.kv_heads)
    h = at.forward("norm_1", rms_norm, x, config.norm_eps)
    h = at.forward("qkv", linear, h)
    h = at.forward("qk_norm", qk_norm, h, *heads, config.norm_eps)
    dropped = at.dropped((batch, config.n_heads, time, time))
    h = at.forward("attention", rotary_attention, h, *heads, config.rope_base, *dropped)
    h = at.forward("projection", linear, h)
    x = x + at.forward("drop_1", dropout, h, *at.dropped(h.shape))
    h = at.forward("norm_2", rms_norm, x, config.norm_eps)
    h = at.forward("up", linear, h)
    h = at.forward("relu_squared", relu_squared, h)
    h = at.forward("down", linear, h)
    return x + at.forward("drop_2", dropout, h, *at.dropped(h.shape))


def block_backward(dx: Tensor, at: Scope) -> Tensor:
    """The forward, upside down; x + h hands x to both sides, so their gradients add.    dx (B, T, D) -> (B, T, D)"""
    dh = at.backward("drop_2", dropout, dx)
    dh = at.backward("down", linear, dh)
    dh = at.backward("relu_squared", relu_squared, dh)
    dh = at.backward("up", linear, dh)
    dx = dx + at.backward("norm_2", rms_norm, dh)
    dh = at.backward("drop_1", dropout, dx)
    dh = at.backward("projection", linear, dh)
    dh = at.backward("attention", rotary_attention, dh)
    dh = at.backward("qk_norm", qk_norm, dh)
    dh = at.backward("qkv", linear, dh)
    return dx + at.backward("norm_1", rms_norm, dh)


def final_norm_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """x (B, T, D) -> (B, T, D)"""
    return at.forward("final_norm", rms_norm, x, config.norm_eps)


def final_norm_backward(dx: Tensor, at: Scope) -> Tensor:
    return at.backward("final_norm", rms_norm, dx)


def inside(seen: Mapping[str, Tensor], config: CustomTransformerConfig) -> tuple[Tensor, Tensor, Tensor]:
    """From a block's results by name: its turned queries (B, H, T, K) and keys (B, G, T, K), and what its units are
    given (B, T, F)"""
    q, k, _ = split_groups(seen["qk_norm"], config.n_heads, config.kv_heads, config.rope_base)
    return q, k, seen["up"]
