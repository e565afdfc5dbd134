"""GPT-2 (Radford et al. 2019): its parameters, its embedding, and its block, forwards and upside down.

Token + position embedding, blocks of x + projection(attention(qkv(norm(x)))) and x + down(gelu(up(norm(x)))), a last
norm, and a head that is the token table again when the embeddings are tied. Linear weights stand as (D_in, D_out),
as in y = x W.

A backward undoes its forward's lines from the last to the first, and hands each gradient on to the line before.

docs/book/block.md goes through the block; docs/book/tied.md through the tied table.

Shapes: B batch, T time, D d_model, H heads, F d_ffn, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths.ops import (
    causal_attention,
    dropout,
    gelu,
    layer_norm,
    linear,
    lookup,
    positions,
    split_heads,
)
from custom_transformer.maths.parameters import Parameter, Table, layer
from custom_transformer.maths.scope import Scope


def parameters(config: CustomTransformerConfig) -> Table:
    """Every parameter's shape and role by its name, in the order of the forward pass."""
    d, f, bias = config.d_model, config.d_ffn, config.bias
    block = (
        layer("norm_1", bias, (d,), "gain")
        | layer("qkv", bias, (d, 3 * d), "into_heads")
        | layer("projection", bias, (d, d), "into_stream")
        | layer("norm_2", bias, (d,), "gain")
        | layer("up", bias, (d, f), "matrix")
        | layer("down", bias, (f, d), "into_stream")
    )
    table = {"token_embedding": Parameter((config.vocab_size, d), "table")}
    table["position_embedding"] = Parameter((config.max_seq_len, d), "table")
    for i in range(config.n_blocks):
        table |= {f"blocks.{i}.{name}": parameter for name, parameter in block.items()}
    table |= layer("final_norm", bias, (d,), "gain")
    return table if config.tie_embeddings else table | {"head.weight": table["token_embedding"]}


def embedding_forward(input_ids: Tensor, at: Scope, start: int = 0) -> Tensor:
    """Tokens that stand from position `start` on        input_ids (B, T) int64 -> x (B, T, D)"""
    x = at.forward("token_embedding", lookup, input_ids)
    x = at.forward("position_embedding", positions, x, start)
    return at.forward("drop", dropout, x, *at.dropped(x.shape))


def embedding_backward(dx: Tensor, at: Scope, d_head: Tensor | None) -> None:
    """The forward, upside down; d_head (V, D) is what the tied head adds to the token table's gradient."""
    dx = at.backward("drop", dropout, dx)
    dx = at.backward("position_embedding", positions, dx)
    at.backward("token_embedding", lookup, dx, d_head)


def block_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """x + projection(attention(qkv(norm(x)))), then x + down(gelu(up(norm(x))))        x (B, T, D) -> (B, T, D)"""
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


def block_backward(dx: Tensor, at: Scope) -> Tensor:
    """The forward, upside down; x + h hands x to both sides, so their gradients add.    dx (B, T, D) -> (B, T, D)"""
    dh = at.backward("drop_2", dropout, dx)
    dh = at.backward("down", linear, dh)
    dh = at.backward("gelu", gelu, dh)
    dh = at.backward("up", linear, dh)
    dx = dx + at.backward("norm_2", layer_norm, dh)
    dh = at.backward("drop_1", dropout, dx)
    dh = at.backward("projection", linear, dh)
    dh = at.backward("attention", causal_attention, dh)
    dh = at.backward("qkv", linear, dh)
    return dx + at.backward("norm_1", layer_norm, dh)


def final_norm_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """x (B, T, D) -> (B, T, D)"""
    return at.forward("final_norm", layer_norm, x)


def final_norm_backward(dx: Tensor, at: Scope) -> Tensor:
    return at.backward("final_norm", layer_norm, dx)


def inside(seen: Mapping[str, Tensor], config: CustomTransformerConfig) -> tuple[Tensor, Tensor, Tensor]:
    """From a block's results by name: its queries and keys (B, H, T, K), and what its units' GELU is given (B, T, F)"""
    q, k, _ = split_heads(seen["qkv"], config.n_heads)
    return q, k, seen["up"]
