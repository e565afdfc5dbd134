"""Another architecture is one value: a block in Llama's manner, defined here, runs everywhere with nothing changed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.choose import FUSED, NATIVE
from custom_transformer.maths import ops
from custom_transformer.maths.architecture import Architecture
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.engine import READABLE, Engine
from custom_transformer.maths.gradcheck import check_gradients
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.optim import AdamW
from custom_transformer.maths.parameters import Parameter, Table, decays, layer
from custom_transformer.maths.scope import Op, Saved, Scope
from custom_transformer.runs.generation import generate
from custom_transformer.runs.training import training_step
from tests.helpers import random_tokens

GROUPS = 2  # of queries that share a key and a value
SIZES = {"vocab_size": 37, "max_seq_len": 13, "n_blocks": 2, "n_heads": 4, "d_model": 24, "d_ffn": 22, "bias": False}

# ---------------------------------------------------------------------------------------------- its operations


def rms_norm_forward(x: Tensor, weight: Tensor) -> tuple[Tensor, Saved]:
    """y = w ∘ x r,    r = (mean x² + ε)^−½        (Zhang & Sennrich 2019, eq. 4)"""
    r = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return weight * x * r, (x, weight, r)


def rms_norm_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
    """dx = r (g − x r² mean(g ∘ x)),    g = dy ∘ w;    dw = Σ_rows dy ∘ x r;    since δr = −r³ mean(x ∘ δx)"""
    x, weight, r = saved
    g = dy * weight
    return r * (g - x * r.square() * (g * x).mean(-1, keepdim=True)), (dy * x * r).flatten(0, -2).sum(0)


def turned(x: Tensor, start: int, sign: int = 1) -> Tensor:
    """Pairs (x_i, x_{i+K/2}) as complex numbers times e^(± i θ_i t), t from `start` on    (Su et al. 2021, eq. 34)"""
    half = x.shape[-1] // 2
    times = torch.arange(start, start + x.shape[-2], dtype=x.dtype)
    angle = times[:, None] * 100.0 ** -(torch.arange(half, dtype=x.dtype) / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), sign * angle)
    return torch.cat([z.real, z.imag], -1)


def shares(qkv: Tensor, n_heads: int, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, (H + 2 G) K) -> turned queries (B, H, T, K), turned keys and values (B, G, T, K)"""
    groups = n_heads // GROUPS
    heads = qkv.unflatten(-1, (n_heads + 2 * groups, -1)).transpose(1, 2)
    q, k, v = heads.split([n_heads, groups, groups], 1)
    return turned(q, start), turned(k, start), v


def attention_forward(qkv: Tensor, n_heads: int, cache: KeyValues | None = None) -> tuple[Tensor, Saved]:
    """Y = softmax(Q Kᵀ / √K + mask) V, each key and value for GROUPS queries    (Ainslie et al. 2023)"""
    q, k, v = shares(qkv, n_heads, cache.length if cache else 0)
    keys, values = (h.repeat_interleave(GROUPS, 1) for h in (cache.append(k, v) if cache else (k, v)))
    p = torch.softmax(ops.attention_scores(q, keys), -1)
    return (p @ values).transpose(1, 2).flatten(2), (q, keys, values, p)


def attention_backward(dy: Tensor, saved: Saved) -> Tensor:
    """As causal attention's; those who share a key add to its gradient, and a turn's transpose turns back."""
    q, keys, values, p = saved
    dy = dy.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)
    dp = dy @ values.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
    dk, dv = ((h.mT @ g).unflatten(1, (-1, GROUPS)).sum(2) for h, g in ((ds, q), (p, dy)))
    return torch.cat([turned(ds @ keys, 0, -1), turned(dk, 0, -1), dv], 1).transpose(1, 2).flatten(2)


def swiglu_forward(x: Tensor) -> tuple[Tensor, Saved]:
    """y = u σ(u) ∘ v,    x = [u, v]        (Shazeer 2020, eq. 6)"""
    u, v = x.chunk(2, -1)
    return u * u.sigmoid() * v, (u, v)


def swiglu_backward(dy: Tensor, saved: Saved) -> Tensor:
    """du = dy ∘ v ∘ σ (1 + u (1 − σ)),    dv = dy ∘ u σ"""
    u, v = saved
    s = u.sigmoid()
    return torch.cat([dy * v * s * (1 + u * (1 - s)), dy * u * s], -1)


rms_norm = Op(rms_norm_forward, rms_norm_backward, ("weight",))
attention = Op(attention_forward, attention_backward)
swiglu = Op(swiglu_forward, swiglu_backward)

# ------------------------------------------------------------------------------- its table, embedding and block


def parameters(config: CustomTransformerConfig) -> Table:
    d, f, size = config.d_model, config.d_ffn, config.head_size
    table: Table = {"token_embedding": Parameter((config.vocab_size, d), "table")}
    for i in range(config.n_blocks):
        for name in ("norm_1", "norm_2"):
            table |= layer(f"blocks.{i}.{name}", False, (d,), "gain")
        table |= layer(f"blocks.{i}.qkv", False, (d, (config.n_heads + 2 * config.n_heads // GROUPS) * size), "matrix")
        table |= layer(f"blocks.{i}.projection", False, (d, d), "into_stream")
        table |= layer(f"blocks.{i}.up", False, (d, 2 * f), "matrix")
        table |= layer(f"blocks.{i}.down", False, (f, d), "into_stream")
    table |= layer("final_norm", False, (d,), "gain")
    return table if config.tie_embeddings else table | {"head.weight": table["token_embedding"]}


def embedding_forward(input_ids: Tensor, at: Scope, start: int = 0) -> Tensor:
    return at.forward("token_embedding", ops.lookup, input_ids)


def embedding_backward(dx: Tensor, at: Scope, d_head: Tensor | None) -> None:
    at.backward("token_embedding", ops.lookup, dx, d_head)


def block_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    h = at.forward("norm_1", rms_norm, x)
    h = at.forward("qkv", ops.linear, h)
    h = at.forward("attention", attention, h, config.n_heads)
    x = x + at.forward("projection", ops.linear, h)
    h = at.forward("norm_2", rms_norm, x)
    h = at.forward("up", ops.linear, h)
    h = at.forward("swiglu", swiglu, h)
    return x + at.forward("down", ops.linear, h)


def block_backward(dx: Tensor, at: Scope) -> Tensor:
    dh = at.backward("down", ops.linear, dx)
    dh = at.backward("swiglu", swiglu, dh)
    dh = at.backward("up", ops.linear, dh)
    dx = dx + at.backward("norm_2", rms_norm, dh)
    dh = at.backward("projection", ops.linear, dx)
    dh = at.backward("attention", attention, dh)
    dh = at.backward("qkv", ops.linear, dh)
    return dx + at.backward("norm_1", rms_norm, dh)


LLAMA_LIKE = Architecture(
    "llama-like",
    parameters,
    embedding_forward,
    embedding_backward,
    block_forward,
    block_backward,
    attention,
    attention_forward,
    rms_norm,
)


def reference(p: Mapping[str, Tensor], config: CustomTransformerConfig, tokens: Tensor, _: torch.Generator) -> Tensor:
    """The same mathematics a second time, for autograd: heads one by one, rotations as matrices of cosine and sine."""

    def norm(h: Tensor, name: str) -> Tensor:
        return F.rms_norm(h, h.shape[-1:], p[f"{name}.weight"], 1e-5)

    def rotated(h: Tensor) -> Tensor:
        half = h.shape[-1] // 2
        angle = torch.outer(torch.arange(h.shape[1]).double(), 100.0 ** (-torch.arange(half).double() / half))
        a, b = h[..., :half], h[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    size, n_keys = config.head_size, config.n_heads // GROUPS
    x = p["token_embedding"][tokens]
    for block in (f"blocks.{i}" for i in range(config.n_blocks)):
        qkv = (norm(x, f"{block}.norm_1") @ p[f"{block}.qkv.weight"]).split(size, -1)
        heads = []
        for i in range(config.n_heads):
            key = config.n_heads + i // GROUPS
            q, k, v = rotated(qkv[i]), rotated(qkv[key]), qkv[key + n_keys]
            heads.append(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        x = x + torch.cat(heads, -1) @ p[f"{block}.projection.weight"]
        u, v = (norm(x, f"{block}.norm_2") @ p[f"{block}.up.weight"]).chunk(2, -1)
        x = x + (F.silu(u) * v) @ p[f"{block}.down.weight"]
    return norm(x, "final_norm")


# ------------------------------------------------------------------------------------------------- what it can


@pytest.mark.parametrize("engine", [READABLE, FUSED, NATIVE], ids=lambda engine: engine.name)
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_every_gradient_of_another_architecture_is_right(tie_embeddings: bool, engine: Engine) -> None:
    config = CustomTransformerConfig(**SIZES, tie_embeddings=tie_embeddings)
    checks = list(check_gradients(config, 1, engine, LLAMA_LIKE, reference))
    assert [check.name for check in checks] == [*parameters(config)]
    assert [check for check in checks if not check.ok] == []


@pytest.mark.parametrize("engine", [READABLE, NATIVE], ids=lambda engine: engine.name)
def test_another_architecture_trains_and_generates_by_its_cache(engine: Engine) -> None:
    model = CustomTransformer(SIZES, seed=3, engine=engine, architecture=LLAMA_LIKE, dtype=torch.float64)
    optimizer = AdamW(model.parameters, (0.9, 0.99), decays(model.table, 0.1), rule=engine.rules.adamw)
    tokens = random_tokens()
    losses = [training_step(model, optimizer, [(tokens[:, :-1], tokens[:, 1:])], 0.01, 1.0).loss for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    cached, whole = (generate(model, tokens[:, :4], 11, temperature=0.0, use_cache=use) for use in (True, False))
    assert torch.equal(cached, whole)
    assert (cached[:, 4:] == tokens[:, 4:]).double().mean() > 0.8  # what it was taught
