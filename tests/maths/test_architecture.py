"""An architecture is a value: Llama, and one that this package does not know, compute with every engine.

The unknown one changes no file. Its blocks add attention and feed-forward network of one norm side by side (Wang &
Komatsuzaki 2021), with squared ReLUs (So et al. 2021).

Shapes: B batch, T time, D d_model, F d_ffn.
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
from custom_transformer.maths import llama, modern, ops
from custom_transformer.maths.architecture import Architecture, Units, flops_per_token
from custom_transformer.maths.cache import cached_attention_forward
from custom_transformer.maths.engine import READABLE, Engine
from custom_transformer.maths.gradcheck import check_gradients
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.ops import causal_attention, layer_norm, linear, lookup, relu_squared, split_heads
from custom_transformer.maths.optim import AdamW
from custom_transformer.maths.parameters import Parameter, Table, decays, layer
from custom_transformer.maths.scope import Saved, Scope
from custom_transformer.runs.generation import generate
from custom_transformer.runs.observe import activation_statistics
from custom_transformer.runs.step import training_step
from tests.helpers import LLAMA, MODERN, SIZES, random_tokens

CONFIG = CustomTransformerConfig(**SIZES, bias=False)
LLAMA_CONFIG, MODERN_CONFIG = (CustomTransformerConfig(**SIZES | changes) for changes in (LLAMA, MODERN))
ENGINES = pytest.mark.parametrize("engine", [READABLE, FUSED, NATIVE], ids=lambda engine: engine.name)
TIED = pytest.mark.parametrize("tied", [True, False])


def parameters(config: CustomTransformerConfig) -> Table:
    d, f = config.d_model, config.d_ffn
    block = (
        layer("norm", False, (d,), "gain")
        | layer("qkv", False, (d, 3 * d), "matrix")
        | layer("projection", False, (d, d), "into_stream")
        | layer("up", False, (d, f), "matrix")
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
    h = at.forward("norm", layer_norm, x)
    qkv = at.forward("qkv", linear, h)
    a = at.forward("attention", causal_attention, qkv, config.n_heads, None, 0.0)
    x = x + at.forward("projection", linear, a)
    u = at.forward("units", relu_squared, at.forward("up", linear, h))
    return x + at.forward("down", linear, u)


def block_backward(dx: Tensor, at: Scope) -> Tensor:
    dh = at.backward("up", linear, at.backward("units", relu_squared, at.backward("down", linear, dx)))
    d_qkv = at.backward("attention", causal_attention, at.backward("projection", linear, dx))
    return dx + at.backward("norm", layer_norm, dh + at.backward("qkv", linear, d_qkv))


def final_norm_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    return at.forward("final_norm", layer_norm, x)


def final_norm_backward(dx: Tensor, at: Scope) -> Tensor:
    return at.backward("final_norm", layer_norm, dx)


def inside(seen: Mapping[str, Tensor], config: CustomTransformerConfig) -> tuple[Tensor, Tensor, Tensor]:
    q, k, _ = split_heads(seen["qkv"], config.n_heads)
    return q, k, seen["up"]


PARALLEL = Architecture(
    "parallel",
    parameters,
    embedding_forward,
    embedding_backward,
    block_forward,
    block_backward,
    final_norm_forward,
    final_norm_backward,
    inside,
    Units("relu_squared", 0.0, corner=True),
    causal_attention,
    cached_attention_forward,
)


def reference(
    p: Mapping[str, Tensor], config: CustomTransformerConfig, tokens: Tensor, generator: torch.Generator
) -> Tensor:
    """The same mathematics by PyTorch's own layers."""

    def norm(h: Tensor, name: str) -> Tensor:
        return F.layer_norm(h, h.shape[-1:], p[f"{name}.weight"])

    x = F.embedding(tokens, p["token_embedding"])
    for block in (f"blocks.{i}" for i in range(config.n_blocks)):
        h = norm(x, f"{block}.norm")
        q, k, v = (
            part.unflatten(-1, (config.n_heads, -1)).transpose(1, 2)
            for part in (h @ p[f"{block}.qkv.weight"]).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        units = F.relu(h @ p[f"{block}.up.weight"]).square()
        x = x + y @ p[f"{block}.projection.weight"] + units @ p[f"{block}.down.weight"]
    return norm(x, "final_norm")


# --------------------------------------------------------------------------------------------------- the tests

KINDS = pytest.mark.parametrize(
    ("config", "architecture"),
    [(CONFIG, PARALLEL), (LLAMA_CONFIG, None), (MODERN_CONFIG, None)],
    ids=["parallel", "llama", "modern"],
)


def random_weights(
    config: CustomTransformerConfig,
    architecture: Architecture | None,
    engine: Engine,
    dtype: torch.dtype = torch.float64,
    std: float = 0.3,
) -> CustomTransformer:
    model = CustomTransformer(config, dtype=dtype, engine=engine, architecture=architecture)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters.values():
        p.add_(std * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))
    return model


@ENGINES
@TIED
def test_every_gradient_of_an_unknown_architecture_is_right(tied: bool, engine: Engine) -> None:
    config = CONFIG.model_copy(update={"tie_embeddings": tied})
    checks = list(check_gradients(config, engine=engine, architecture=PARALLEL, reference=reference))
    assert {check.name: check.shape for check in checks} == {name: p.shape for name, p in parameters(config).items()}
    assert [check for check in checks if not check.ok] == []


@ENGINES
@pytest.mark.parametrize(("tied", "n_kv_heads", "dropout"), [(True, 2, 0.2), (False, 1, 0.0), (True, 6, 0.0)])
@pytest.mark.parametrize("module", [llama, modern], ids=["llama", "modern"])
def test_every_gradient_with_turns_and_groups_is_right(
    module: Any, tied: bool, n_kv_heads: int, dropout: float, engine: Engine
) -> None:
    changes = {"n_kv_heads": n_kv_heads, "tie_embeddings": tied, "dropout": dropout}
    config = (LLAMA_CONFIG if module is llama else MODERN_CONFIG).model_copy(update=changes)
    checks = list(check_gradients(config, engine=engine))
    table = module.parameters(config)
    assert {check.name: check.shape for check in checks} == {name: p.shape for name, p in table.items()}
    assert [check for check in checks if not check.ok] == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *((llama, name) for name in ("rms_norm", "swiglu", "rotary_attention")),
        *((modern, name) for name in ("rms_norm", "qk_norm", "relu_squared", "rotary_attention")),
    ],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_a_wrong_gradient_is_caught(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = getattr(module, name)

    def wrong(dy: Tensor, saved: Saved) -> Any:
        found = op.backward(dy, saved)
        return tuple(g if g is None else 1.0001 * g for g in found) if isinstance(found, tuple) else 1.0001 * found

    monkeypatch.setattr(module, name, op._replace(backward=wrong))
    checks = {check.name: check.ok for check in check_gradients(LLAMA_CONFIG if module is llama else MODERN_CONFIG)}
    assert not checks["blocks.0.qkv.weight"]
    if module is llama:
        assert checks["final_norm.weight"] is (name != "rms_norm")


@KINDS
@ENGINES
@TIED
def test_the_cache_gives_the_same_tokens(
    config: CustomTransformerConfig, architecture: Architecture | None, tied: bool, engine: Engine
) -> None:
    config, prompt = config.model_copy(update={"tie_embeddings": tied}), random_tokens(time=4)
    model = random_weights(config, architecture, engine)
    rows = [
        generate(model, prompt, 20, generator=torch.Generator().manual_seed(5), use_cache=use_cache)
        for use_cache in (True, False)  # 20: beyond max_seq_len, where the window slides
    ]
    assert torch.equal(*rows)
    assert rows[0].shape == (3, 20)
    assert len(rows[0].unique()) > 5
    readable = random_weights(config, architecture, READABLE)
    assert torch.equal(rows[0], generate(readable, prompt, 20, generator=torch.Generator().manual_seed(5)))


@KINDS
@ENGINES
@TIED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_trains_with_decays_by_role(
    dtype: torch.dtype, config: CustomTransformerConfig, architecture: Architecture | None, tied: bool, engine: Engine
) -> None:
    config, tokens = config.model_copy(update={"tie_embeddings": tied}), random_tokens(batch=6)
    model = random_weights(config, architecture, engine, dtype, std=0.0)
    weight_decay = decays(model.table, 0.1)
    assert {name for name, decay in weight_decay.items() if decay == 0} == {n for n in model.table if "norm" in n}
    optimizer = AdamW(model.parameters, (0.9, 0.95), weight_decay, rule=model.engine.rules.adamw)
    results = [training_step(model, optimizer, [(tokens[:, :-1], tokens[:, 1:])], 1e-2, 1.0) for _ in range(30)]
    assert {result.status for result in results} == {"ok"}
    assert results[0].loss == pytest.approx(math.log(SIZES["vocab_size"]), rel=0.05)
    assert results[-1].loss < 0.6 * results[0].loss
    assert model.gradients.keys() == model.parameters.keys()


@KINDS
def test_it_can_be_observed(config: CustomTransformerConfig, architecture: Architecture | None) -> None:
    model = random_weights(config, architecture, READABLE)
    rows = activation_statistics(model, random_tokens())
    units = model.architecture.units.name
    assert [row["block"] for row in rows] == [0, 1]
    assert {f"{units}_off", f"{units}_dead", "residual_rms", "attention_entropy"} < rows[0].keys()


def test_its_flops_are_those_of_its_matrices() -> None:
    for config, architecture, matrices in (
        (CONFIG, PARALLEL, 4 * CONFIG.d_model**2 + 2 * CONFIG.d_model * CONFIG.d_ffn),
        (LLAMA_CONFIG, None, 36 * (36 + 2 * 2 * 6) + 36 * 36 + 3 * 36 * LLAMA_CONFIG.d_ffn),
    ):
        products = config.n_blocks * matrices + config.vocab_size * config.d_model
        attention = 12 * config.n_blocks * config.d_model * 11
        assert flops_per_token(config, 11, architecture) == 6 * products + attention


def test_turns_keep_lengths_and_know_distances_only() -> None:
    """Scores of turned queries and keys depend on how far apart they stand, not on where."""
    q, k = torch.randn(2, 1, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ops.rotate(q, 7, 100.0).norm(dim=-1), q.norm(dim=-1))
    torch.testing.assert_close(ops.rotate(ops.rotate(q, 7, 100.0), 7, 100.0, -1), q)
    scores = [ops.rotate(q, start, 100.0) @ ops.rotate(k, start, 100.0).mT for start in (0, 40)]
    torch.testing.assert_close(*scores)
