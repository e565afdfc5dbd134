"""An architecture is a value: one that this package does not know computes with every engine and changes no file.

It is Llama's (Touvron et al. 2023): RMS norms, rotary positions, grouped queries, SwiGLU, no biases.

Shapes: B batch, T time, D d_model, H query heads, G key and value heads (H = G·R), K head size, F d_ffn, N = B·T rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.choose import FUSED, NATIVE
from custom_transformer.maths.architecture import GPT2, Architecture, flops_per_token
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.engine import READABLE, Engine
from custom_transformer.maths.gradcheck import check_gradients
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.ops import attention_scores, linear, lookup
from custom_transformer.maths.optim import AdamW
from custom_transformer.maths.parameters import Parameter, Table, decays, layer
from custom_transformer.maths.scope import Op, Saved, Scope
from custom_transformer.runs.generation import generate
from custom_transformer.runs.training import training_step
from tests.helpers import SIZES, random_tokens

GROUPS, BASE = 2, 100.0
CONFIG = CustomTransformerConfig(**(SIZES | {"n_heads": 6, "d_model": 36, "bias": False}))
ENGINES = pytest.mark.parametrize("engine", [READABLE, FUSED, NATIVE], ids=lambda engine: engine.name)
TIED = pytest.mark.parametrize("tied", [True, False])

# ---------------------------------------------------------------------------------------------- the operations


def rms_norm_forward(x: Tensor, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Saved]:
    """y = w ∘ x̂,    x̂ = x r,    r = (mean x² + ε)^−½        (Zhang & Sennrich 2019, eq. 4)"""
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * r * weight, (x, weight, r)


def rms_norm_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
    """dx = r (dx̂ − x̂ mean(dx̂ ∘ x̂)),    dx̂ = dy ∘ w;    dw = Σ_rows dy ∘ x̂        since δr = −r³ mean(x ∘ δx)"""
    x, weight, r = saved
    x_hat, dx_hat = x * r, dy * weight
    dx = r * (dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdim=True))
    return dx, (dy * x_hat).flatten(0, -2).sum(0)


def swiglu_forward(x: Tensor) -> tuple[Tensor, Saved]:
    """y = a σ(a) ∘ b        (Shazeer 2020, eq. 6)        x = a, b side by side (..., 2·F) -> y (..., F)"""
    a, b = x.chunk(2, -1)
    return a * torch.sigmoid(a) * b, (x,)


def swiglu_backward(dy: Tensor, saved: Saved) -> Tensor:
    """da = dy ∘ b ∘ σ (1 + a (1 − σ)),    db = dy ∘ a σ"""
    a, b = saved[0].chunk(2, -1)
    s = torch.sigmoid(a)
    return torch.cat([dy * b * s * (1 + a * (1 - s)), dy * a * s], -1)


def turned(x: Tensor, start: int, direction: int) -> Tensor:
    """Each pair (x_i, x_{i+K/2}) turned by the angle t · base^(−2i/K), or back        (Su et al. 2021, eq. 34)

    x (B, T, heads, K), whose first token stands at position t = `start`. The turn is orthogonal, so that its
    transpose, which the gradient goes through, is the turn back.
    """
    half = x.shape[-1] // 2
    rates = BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(start, start + x.shape[1], dtype=torch.float64), rates)[:, None]
    cos, sin = angles.cos().to(x.dtype), direction * angles.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def heads_of(qkv: Tensor, n_heads: int, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, (H + 2G)·K) -> turned queries (B, H, T, K), turned keys and values (B, G, T, K)"""
    x = qkv.unflatten(-1, (n_heads + 2 * GROUPS, -1))
    q, k, v = x.split([n_heads, GROUPS, GROUPS], 2)
    q, k = turned(q, start, 1), turned(k, start, 1)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Group g's keys and values serve the queries gR … gR + R − 1 (Ainslie et al. 2023) -> P, Y (B, H, T, ·)"""
    k, v = (part.repeat_interleave(q.shape[1] // GROUPS, 1) for part in (k, v))
    probabilities = torch.softmax(attention_scores(q, k), -1).to(v.dtype)
    return probabilities, probabilities @ v


def attention_forward(qkv: Tensor, n_heads: int) -> tuple[Tensor, Saved]:
    q, k, v = heads_of(qkv, n_heads)
    probabilities, y = attend(q, k, v)
    return y.transpose(1, 2).flatten(2), (q, k, v, probabilities)


def attention_backward(dy: Tensor, saved: Saved) -> Tensor:
    """As ops.causal_attention_backward; a key's gradients from the R queries it serves add, and turns are undone."""
    q, k, v, p = saved
    repeats = q.shape[1] // GROUPS
    dy = dy.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)
    dp = dy @ v.repeat_interleave(repeats, 1).mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
    dq = ds @ k.repeat_interleave(repeats, 1)
    dk, dv = ((a.mT @ b).unflatten(1, (GROUPS, repeats)).sum(2) for a, b in ((ds, q), (p, dy)))
    dq, dk, dv = (part.transpose(1, 2) for part in (dq, dk, dv))
    return torch.cat([turned(dq, 0, -1), turned(dk, 0, -1), dv], 2).flatten(2)


def cached_attention_forward(qkv: Tensor, n_heads: int, cache: KeyValues) -> tuple[Tensor, Saved]:
    q, k, v = heads_of(qkv, n_heads, cache.length)
    return attend(q, *cache.append(k, v))[1].transpose(1, 2).flatten(2), ()


rms_norm = Op(rms_norm_forward, rms_norm_backward, ("weight",))
swiglu = Op(swiglu_forward, swiglu_backward)
attention = Op(attention_forward, attention_backward)

# ---------------------------------------------------------------------------------------------- the architecture


def parameters(config: CustomTransformerConfig) -> Table:
    d, f = config.d_model, config.d_ffn
    block = (
        layer("norm_1", False, (d,), "gain")
        | layer("qkv", False, (d, d + 2 * GROUPS * config.head_size), "matrix")
        | layer("out", False, (d, d), "into_stream")
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
    return at.forward("token_embedding", lookup, input_ids)


def embedding_backward(dx: Tensor, at: Scope, d_head: Tensor | None) -> None:
    at.backward("token_embedding", lookup, dx, d_head)


def block_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    h = at.forward("norm_1", rms_norm, x)
    h = at.forward("qkv", linear, h)
    h = at.forward("attention", attention, h, config.n_heads)
    x = x + at.forward("out", linear, h)
    h = at.forward("norm_2", rms_norm, x)
    h = at.forward("gate_up", linear, h)
    h = at.forward("swiglu", swiglu, h)
    return x + at.forward("down", linear, h)


def block_backward(dx: Tensor, at: Scope) -> Tensor:
    dh = at.backward("down", linear, dx)
    dh = at.backward("swiglu", swiglu, dh)
    dh = at.backward("gate_up", linear, dh)
    dx = dx + at.backward("norm_2", rms_norm, dh)
    dh = at.backward("out", linear, dx)
    dh = at.backward("attention", attention, dh)
    dh = at.backward("qkv", linear, dh)
    return dx + at.backward("norm_1", rms_norm, dh)


LLAMA = Architecture(
    "llama-like",
    parameters,
    embedding_forward,
    embedding_backward,
    block_forward,
    block_backward,
    attention,
    cached_attention_forward,
    rms_norm,
)


def reference(
    p: Mapping[str, Tensor], config: CustomTransformerConfig, tokens: Tensor, generator: torch.Generator
) -> Tensor:
    """The same mathematics by PyTorch's own layers, with the turns as products of complex numbers."""
    half, time = config.head_size // 2, tokens.shape[1]
    angles = torch.arange(time)[:, None, None] * BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    turns = torch.polar(torch.ones_like(angles), angles)

    def norm(h: Tensor, name: str) -> Tensor:
        return F.rms_norm(h, h.shape[-1:], p[f"{name}.weight"], 1e-5)

    def turn(h: Tensor) -> Tensor:
        z = torch.complex(h[..., :half], h[..., half:]) * turns
        return torch.cat([z.real, z.imag], -1)

    x = F.embedding(tokens, p["token_embedding"])
    for block in (f"blocks.{i}" for i in range(config.n_blocks)):
        heads = (norm(x, f"{block}.norm_1") @ p[f"{block}.qkv.weight"]).unflatten(-1, (-1, config.head_size))
        q, k, v = heads.split([config.n_heads, GROUPS, GROUPS], 2)
        q, k, v = (h.transpose(1, 2) for h in (turn(q), turn(k), v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + y.transpose(1, 2).flatten(2) @ p[f"{block}.out.weight"]
        gate, up = (norm(x, f"{block}.norm_2") @ p[f"{block}.gate_up.weight"]).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ p[f"{block}.down.weight"]
    return norm(x, "final_norm")


# --------------------------------------------------------------------------------------------------- the tests


def llama(engine: Engine, tied: bool, dtype: torch.dtype = torch.float64, std: float = 0.3) -> CustomTransformer:
    config = CONFIG.model_copy(update={"tie_embeddings": tied})
    model = CustomTransformer(config, dtype=dtype, engine=engine, architecture=LLAMA)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters.values():
        p.add_(std * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))
    return model


@ENGINES
@TIED
def test_every_gradient_is_right(tied: bool, engine: Engine) -> None:
    config = CONFIG.model_copy(update={"tie_embeddings": tied})
    checks = list(check_gradients(config, engine=engine, architecture=LLAMA, reference=reference))
    assert {check.name: check.shape for check in checks} == {name: p.shape for name, p in parameters(config).items()}
    assert [check for check in checks if not check.ok] == []


@pytest.mark.parametrize("name", ["rms_norm", "swiglu", "attention"])
def test_a_wrong_gradient_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = globals()[name]

    def wrong(dy: Tensor, saved: Saved) -> Any:
        found = op.backward(dy, saved)
        return tuple(1.0001 * g for g in found) if isinstance(found, tuple) else 1.0001 * found

    monkeypatch.setitem(globals(), name, op._replace(backward=wrong))
    checks = {check.name: check.ok for check in check_gradients(CONFIG, architecture=LLAMA, reference=reference)}
    assert not checks["blocks.0.qkv.weight"]
    assert checks["final_norm.weight"]


@ENGINES
@TIED
def test_the_cache_gives_the_same_tokens(tied: bool, engine: Engine) -> None:
    model, prompt = llama(engine, tied), random_tokens(time=4)
    rows = [
        generate(model, prompt, 20, generator=torch.Generator().manual_seed(5), use_cache=use_cache)
        for use_cache in (True, False)  # 20: beyond max_seq_len, where the window slides
    ]
    assert torch.equal(*rows)
    assert rows[0].shape == (3, 20)
    assert len(rows[0].unique()) > 5
    readable = generate(llama(READABLE, tied), prompt, 20, generator=torch.Generator().manual_seed(5))
    assert torch.equal(rows[0], readable)


@ENGINES
@TIED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_trains_with_decays_by_role(dtype: torch.dtype, tied: bool, engine: Engine) -> None:
    model, tokens = llama(engine, tied, dtype, std=0.0), random_tokens(batch=6)
    weight_decay = decays(model.table, 0.1)
    without = {"final_norm.weight"} | {f"blocks.{i}.norm_{k}.weight" for i in (0, 1) for k in (1, 2)}
    assert {name for name, decay in weight_decay.items() if decay == 0} == without
    optimizer = AdamW(model.parameters, (0.9, 0.95), weight_decay, rule=model.engine.rules.adamw)
    results = [training_step(model, optimizer, [(tokens[:, :-1], tokens[:, 1:])], 1e-2, 1.0) for _ in range(30)]
    assert {result.status for result in results} == {"ok"}
    assert results[0].loss == pytest.approx(math.log(SIZES["vocab_size"]), rel=0.05)
    assert results[-1].loss < 0.6 * results[0].loss
    assert model.gradients.keys() == model.parameters.keys()


def test_its_flops_are_those_of_its_matrices() -> None:
    d, f, size = CONFIG.d_model, CONFIG.d_ffn, CONFIG.head_size
    matrices = d * (d + 2 * GROUPS * size) + d * d + 3 * d * f
    products = CONFIG.n_blocks * matrices + CONFIG.vocab_size * d
    assert flops_per_token(LLAMA, CONFIG, 11) == 6 * products + 12 * CONFIG.n_blocks * d * 11
    assert flops_per_token(LLAMA, CONFIG, 11) != flops_per_token(GPT2, CONFIG, 11)
