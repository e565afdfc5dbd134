"""The modern recipe with one part left out, replaced or added, for the race's ablations.

Each is the architecture `modern` with other parameters or another embedding, and the native engine with operations in
the place of its own. None is differentiated: an operation that is new here has its backward beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.choose import NATIVE
from custom_transformer.maths import gpt2, modern, ops
from custom_transformer.maths.architecture import MODERN, Architecture
from custom_transformer.maths.engine import Engine, Head
from custom_transformer.maths.parameters import Parameter, Table, layer
from custom_transformer.maths.scope import Op, Saved, Scope
from custom_transformer.maths.stack import Stack, readable_stack

PAIRS = "with a table of pairs of tokens"  # the square of the vocabulary's size in rows: for bytes only
CAP = 15.0  # of soft-capped logits (Gemma Team 2024, section 2, has 30)


class Variant(NamedTuple):
    architecture: Architecture
    engine: Engine


def _variant(
    equals: dict[Op, Op] | None = None,
    head: Head | None = None,
    stack: Stack | None = None,
    **functions: Callable[..., object],
) -> Variant:
    """equals: operations in the place of modern's; functions: in the place of the architecture's."""
    architecture = replace(MODERN, name="variant", **functions)  # type: ignore[arg-type]
    operations = {**NATIVE.equals, **(equals or {})}
    stacks = {"variant": stack or readable_stack(architecture)}
    return Variant(architecture, replace(NATIVE, equals=operations, stacks=stacks, head=head or NATIVE.head))


def _roles(changed: Callable[[str, Parameter, CustomTransformerConfig], Table]) -> Callable[..., Table]:
    """modern's parameters, each as those that `changed` makes of it."""

    def parameters(config: CustomTransformerConfig) -> Table:
        table: Table = {}
        for name, parameter in modern.parameters(config).items():
            table |= changed(name, parameter, config)
        return table

    return parameters


# ---------------------------------------------------------------------------------------------- operations

UNCHANGED = Op(lambda x, *_: (x, ()), lambda dy, saved: dy)


def positionless_attention_forward(
    qkv: Tensor, n_heads: int, n_kv_heads: int, base: float, keep: Tensor | None, dropout: float
) -> tuple[Tensor, Saved]:
    """`rotary_attention` that turns nothing; every head has keys of its own        qkv (B, T, 3·D) -> (B, T, D)"""
    y, saved = NATIVE.equals[ops.causal_attention].forward(qkv, n_heads, keep, dropout)
    return y, saved


POSITIONLESS = Op(positionless_attention_forward, NATIVE.equals[ops.causal_attention].backward)


def soft_capped_loss_forward(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Saved]:
    """The cross-entropy of y = c tanh(z / c), z = x Eᵀ        x (B, T, D), E (V, D), labels (B, T) -> scalar"""
    y = CAP * (x @ weight.T / CAP).tanh()
    loss, saved = ops.cross_entropy_forward(y, labels)
    return loss, (x, weight, y, saved)


def soft_capped_loss_backward(dloss: Tensor | float, saved: Saved) -> tuple[Tensor, Tensor]:
    """dz = dy ∘ (1 − (y / c)²),  dx = dz E,  dE = dzᵀ x"""
    x, weight, y, of_loss = saved
    dz = ops.cross_entropy_backward(dloss, of_loss) * (1 - (y / CAP).square())
    return dz @ weight, dz.flatten(0, -2).T @ x.flatten(0, -2)


def soft_capped_scores(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each label's loss, 0 where it does not count, and the likeliest token, (B, T)"""
    y = CAP * (x @ weight.T / CAP).tanh()
    losses = cross_entropy(y.flatten(0, -2), labels.flatten(), ignore_index=ops.IGNORE_INDEX, reduction="none")
    return losses.view(labels.shape), y.argmax(-1)


# ----------------------------------------------------------------------------------------------- embeddings


def with_positions(name: str, parameter: Parameter, config: CustomTransformerConfig) -> Table:
    table = {name: parameter}
    if name == "token_embedding":
        table["position_embedding"] = Parameter((config.max_seq_len, config.d_model), "table")
    return table


def with_pairs(name: str, parameter: Parameter, config: CustomTransformerConfig) -> Table:
    table = {name: parameter}
    if name == "token_embedding":
        table["pair_embedding"] = Parameter((config.vocab_size**2, config.d_model), "table")
    return table


def pairs_forward(input_ids: Tensor, at: Scope, start: int = 0) -> Tensor:
    """x = E[token] + P[the token before it, token]; the first has itself before it        (B, T) -> (B, T, D)"""
    before = torch.cat([input_ids[:, :1], input_ids[:, :-1]], 1)
    x = at.forward("token_embedding", ops.lookup, input_ids)
    return x + at.forward("pair_embedding", ops.lookup, before * at["token_embedding"].shape[0] + input_ids)


def pairs_backward(dx: Tensor, at: Scope, d_head: Tensor | None) -> None:
    at.backward("pair_embedding", ops.lookup, dx)
    at.backward("token_embedding", ops.lookup, dx, d_head)


# Value embeddings: each block adds an embedding of the token to its values (Jordan et al. 2024, "modded-nanogpt", after
# Zhou et al. 2024, "Value residual learning"). The stream that the stack is given carries them behind x.

_QK_NORM = NATIVE.equals[ops.qk_norm]


def qk_norm_and_values_forward(
    qkv: Tensor, values: Tensor, n_heads: int, n_kv_heads: int, eps: float
) -> tuple[Tensor, Saved]:
    """qkv (B, T, 3·D), values (B, T, D) -> (B, T, 3·D)"""
    y, saved = _QK_NORM.forward(qkv, n_heads, n_kv_heads, eps)
    q_and_k, v = y.split([2 * values.shape[-1], values.shape[-1]], -1)
    return torch.cat([q_and_k, v + values], -1), saved


def qk_norm_and_values_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
    return _QK_NORM.backward(dy, saved), dy.chunk(3, -1)[2]


QK_NORM_AND_VALUES = Op(qk_norm_and_values_forward, qk_norm_and_values_backward, ("values",))


def with_value_tables(config: CustomTransformerConfig) -> Table:
    """The tables come last, so that all other parameters begin as they do without them."""
    table = Parameter((config.vocab_size, config.d_model), "table")
    return modern.parameters(config) | {f"blocks.{i}.value_embedding": table for i in range(config.n_blocks)}


def _value_tables(at: Scope) -> list[str]:
    return [name for name in at.parameters if name.endswith(".value_embedding")]


def with_values_forward(input_ids: Tensor, at: Scope, start: int = 0) -> Tensor:
    """x, and the values of each of n blocks behind it        (B, T) -> (B, T, (1 + n)·D)"""
    x = modern.embedding_forward(input_ids, at, start)
    return torch.cat([x, *(at.forward(name, ops.lookup, input_ids) for name in _value_tables(at))], -1)


def with_values_backward(dx: Tensor, at: Scope, d_head: Tensor | None) -> None:
    tables = _value_tables(at)
    dx, *d_values = dx.chunk(1 + len(tables), -1)
    for name, dv in zip(tables, d_values, strict=True):
        at.backward(name, ops.lookup, dv)
    modern.embedding_backward(dx, at, d_head)


# -------------------------------------------------------------------------------------------------- streams


def valued_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """(B, T, (1 + n)·D) -> (B, T, D)"""
    x, *values = x.chunk(1 + config.n_blocks, -1)
    for i, of_block in enumerate(values):
        given = {**at.parameters, f"blocks.{i}.qk_norm.values": of_block}
        x = modern.block_forward(x.contiguous(), replace(at, parameters=given) / f"blocks.{i}", config)
    return modern.final_norm_forward(x, at, config)


def valued_backward(dx: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """(B, T, D) -> (B, T, (1 + n)·D)"""
    d_values: list[Tensor] = []
    dx = modern.final_norm_backward(dx, at)
    for i in reversed(range(config.n_blocks)):
        dx = modern.block_backward(dx, at / f"blocks.{i}")
        d_values.insert(0, at.gradients.pop(f"blocks.{i}.qk_norm.values"))
    return torch.cat([dx, *d_values], -1)


def with_shares(name: str, parameter: Parameter, config: CustomTransformerConfig) -> Table:
    """Two numbers per block, which begin as 1 and 0."""
    if not name.endswith(".qkv.weight"):
        return {name: parameter}
    block = name.removesuffix("qkv.weight")
    shares = {f"{block}of_stream": Parameter((1,), "gain"), f"{block}of_first": Parameter((1,), "bias")}
    return shares | {name: parameter}


def mixing_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """Each block is given a x + b x₀, where x₀ is what the first was given        (B, T, D) -> (B, T, D)"""
    first = x
    for i in range(config.n_blocks):
        block = at / f"blocks.{i}"
        block.save("mix", (x, first))
        x = modern.block_forward(block["of_stream"] * x + block["of_first"] * first, block, config)
    return modern.final_norm_forward(x, at, config)


def mixing_backward(dx: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """dx = a dh, dx₀ += b dh, da = Σ dh ∘ x, db = Σ dh ∘ x₀"""
    dx = modern.final_norm_backward(dx, at)
    d_first = torch.zeros_like(dx)
    for i in reversed(range(config.n_blocks)):
        block = at / f"blocks.{i}"
        dh, (x, first) = modern.block_backward(dx, block), block.take("mix")
        block.give("of_stream", (dh * x).sum()[None])
        block.give("of_first", (dh * first).sum()[None])
        d_first, dx = d_first + block["of_first"] * dh, block["of_stream"] * dh
    return dx + d_first


# ------------------------------------------------------------------------------------------------- variants


def _drawn(name: str, parameter: Parameter, _: CustomTransformerConfig) -> Table:
    return {name: parameter._replace(role="into_stream") if parameter.role == "zero_into_stream" else parameter}


def _with_gains(name: str, parameter: Parameter, config: CustomTransformerConfig) -> Table:
    gains = {"qkv": "norm_1", "up": "norm_2"}
    layer_name = name.removesuffix(".weight").rpartition(".")[2]
    if layer_name not in gains:
        return {name: parameter}
    norm = name.split(layer_name)[0] + gains[layer_name]
    return layer(norm, False, (config.d_model,), "gain") | {name: parameter}


VARIANTS = {
    "no QK-norm": _variant({ops.qk_norm: UNCHANGED}),
    "GELU in place of ReLU²": _variant({ops.relu_squared: NATIVE.equals[ops.gelu]}),
    "learnt positions in place of turns": _variant(
        {ops.rotary_attention: POSITIONLESS},
        parameters=_roles(with_positions),
        embedding_forward=gpt2.embedding_forward,
        embedding_backward=gpt2.embedding_backward,
    ),
    "projections begin drawn, not 0": _variant(parameters=_roles(_drawn)),
    "blocks' norms with gains": _variant(parameters=_roles(_with_gains)),
    PAIRS: _variant(parameters=_roles(with_pairs), embedding_forward=pairs_forward, embedding_backward=pairs_backward),
    "with soft-capped logits": _variant(
        head=Head(Op(soft_capped_loss_forward, soft_capped_loss_backward), soft_capped_scores)
    ),
    "with value embeddings": _variant(
        {ops.qk_norm: QK_NORM_AND_VALUES},
        stack=Stack(valued_forward, valued_backward, readable_stack(MODERN).cached_block),
        parameters=with_value_tables,
        embedding_forward=with_values_forward,
        embedding_backward=with_values_backward,
    ),
    "with the first stream mixed in": _variant(
        stack=Stack(mixing_forward, mixing_backward, readable_stack(MODERN).cached_block),
        parameters=_roles(with_shares),
    ),
}
