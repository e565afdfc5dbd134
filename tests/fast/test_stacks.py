"""The fast stacks against the readable ones: over architectures, sizes, dtypes and options."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from custom_transformer import CustomTransformer
from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.choose import FUSED, NATIVE
from custom_transformer.fast.products import fast_products
from custom_transformer.maths import ops
from custom_transformer.maths.architecture import architecture_of
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.engine import READABLE, Engine
from custom_transformer.maths.gradcheck import check_gradients
from custom_transformer.maths.optim import SGD, AdamW
from custom_transformer.maths.parameters import InProducts, Tensors
from custom_transformer.maths.scope import Dropout, Scope
from custom_transformer.runs.generation import generate
from custom_transformer.runs.step import training_step
from tests.fast.closeness import BOUNDS, assert_close, wide
from tests.fast.engines import ENGINES, captured_engine, whole_graphs
from tests.helpers import LLAMA, MODERN, SIZES, random_model, random_tokens

# B, T, D, F, H: all odd and different; several tiles of queries; one of everything.
GPT2_STACKS = [(3, 13, 15, 22, 3), (2, 150, 32, 70, 4), (1, 1, 8, 9, 1)]
# Heads are even, since they turn pairs. G: every query head has its own keys and values, some share them, or all.
LLAMA_STACKS = [(3, 13, 18, 22, 3, 3), (2, 150, 32, 70, 4, 2), (3, 41, 30, 7, 5, 1), (1, 1, 8, 9, 1, 1)]
CONFIGS = [
    *((s[:2], {"bias": bias}, s[2:]) for s, bias in itertools.product(GPT2_STACKS, [True, False])),
    *(
        (s[:2], {"architecture": name, "n_kv_heads": s[5]}, s[2:5])
        for s, name in itertools.product(LLAMA_STACKS, ["llama", "modern"])
    ),
]
ARCHITECTURES = pytest.mark.parametrize("changes", [{}, LLAMA, MODERN], ids=["gpt2", "llama", "modern"])


def random_parameters(config: CustomTransformerConfig, dtype: torch.dtype, generator: torch.Generator) -> Tensors:
    """Of a whole model, on the table's names; gains near 1."""
    return {
        name: 0.3 * torch.randn(shape, generator=generator, dtype=wide(dtype)) + (role == "gain")
        for name, (shape, role) in architecture_of(config).parameters(config).items()
    }


def config_of(d: int, f: int, n_heads: int, **changes: Any) -> CustomTransformerConfig:
    sizes = {"vocab_size": 1, "max_seq_len": 1, "n_blocks": 2, "n_heads": n_heads, "d_model": d, "d_ffn": f}
    return CustomTransformerConfig(**{**sizes, **changes})


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("engine", [NATIVE, FUSED], ids=["native", "fused"])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(("batch_and_time", "changes", "sizes"), CONFIGS)
def test_the_fast_stacks_equal_the_readable_one(
    batch_and_time: tuple[int, int],
    changes: dict[str, Any],
    sizes: tuple[int, int, int],
    dropout: float,
    dtype: torch.dtype,
    engine: Engine,
) -> None:
    config = config_of(*sizes, dropout=dropout, **changes)
    architecture = architecture_of(config)
    generator = torch.Generator().manual_seed(0)
    parameters = random_parameters(config, dtype, generator)
    x, dy = (torch.randn(*batch_and_time, config.d_model, generator=generator, dtype=wide(dtype)) for _ in range(2))
    given = [t.clone() for t in (x, dy)]

    def result(functions: Engine, dtype: torch.dtype) -> Tensors:
        drop = Dropout(dropout, torch.Generator().manual_seed(1)) if dropout else None
        its_own = {name: parameter.to(wide(dtype)) for name, parameter in parameters.items()}
        read = InProducts(its_own, architecture.parameters(config), dtype)
        at = Scope(read, saved={}, equals=functions.equals, dropout=drop)
        stack = functions.stack(architecture)
        with functions.products():
            y = stack.forward(x.to(wide(dtype)), at, config)
            dx = stack.backward(dy.to(wide(dtype)), at, config)
        assert at.saved == {}
        return {"y": y, "dx": dx, **at.gradients}

    results = [result(functions, dtype) for functions in (READABLE, engine)]
    inside = {name for name in parameters if name.startswith(("blocks.", "final_norm"))}
    assert results[0].keys() == {"y", "dx"} | inside
    assert all(results[1][name].dtype == wide(dtype) for name in inside)
    exact = result(READABLE, torch.float64) if dtype == torch.bfloat16 else None
    assert_close(results[1], results[0], BOUNDS[dtype], exact)
    assert torch.equal(x, given[0])
    assert torch.equal(dy, given[1])


@ARCHITECTURES
@pytest.mark.parametrize("engine", [READABLE, NATIVE, FUSED], ids=lambda engine: engine.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_result_depends_on_what_new_memory_holds(
    dtype: torch.dtype, engine: Engine, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, tokens = [], random_tokens()
    for filled in (True, False):  # deterministic mode may fill each new tensor with NaN
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", filled)
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        model = random_model(dtype, dropout=0.2, engine=engine, **changes)
        optimizer = AdamW(model.parameters, (0.9, 0.999), {}, rule=engine.rules.adamw)
        result = training_step(model, optimizer, [(tokens[:, :-1], tokens[:, 1:])], 1e-2, 1.0)
        text = generate(model, tokens[:, :3], 12, generator=torch.Generator().manual_seed(0))
        torch.use_deterministic_algorithms(before)
        ends.append((result, text, model.state_dict()))
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])
    assert all(torch.equal(p, ends[1][2][name]) for name, p in ends[0][2].items())


@pytest.mark.parametrize(("tie_embeddings", "bias", "dropout"), [(True, True, 0.2), (False, False, 0.0)])
@pytest.mark.parametrize("engine", ["native", "fused", "compiled"])
def test_every_fast_gradient_is_right(tie_embeddings: bool, bias: bool, dropout: float, engine: str) -> None:
    config = random_model(tie_embeddings=tie_embeddings, bias=bias, dropout=dropout).config
    assert [check for check in check_gradients(config, engine=ENGINES[engine]()) if not check.ok] == []


@ARCHITECTURES
@pytest.mark.parametrize("engine", [NATIVE, FUSED], ids=["native", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_a_training_step_is_the_same_by_every_engine(
    tie_embeddings: bool, dtype: torch.dtype, engine: Engine, changes: dict[str, Any]
) -> None:
    check_step(engine, dtype, [2, 1], tie_embeddings=tie_embeddings, **changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_generated_code_takes_the_same_training_step(tie_embeddings: bool, dtype: torch.dtype) -> None:
    """Of batches of one size, since torch.compile compiles again for each shape, which takes long."""
    check_step(whole_graphs(), dtype, [2, 2], tie_embeddings=tie_embeddings)


def test_generated_code_does_for_batches_of_two_sizes_without_biases_too() -> None:
    check_step(whole_graphs(), torch.float64, [2, 1], tie_embeddings=False, bias=False)


@pytest.mark.parametrize("changes", [LLAMA, MODERN], ids=["llama", "modern"])
def test_the_other_architectures_graphs_do_too(changes: dict[str, Any]) -> None:
    check_step(captured_engine(), torch.float32, [2, 2], **changes)


def check_step(engine: Engine, dtype: torch.dtype, batches: list[int], **changes: Any) -> None:
    """Three steps by `engine` and by the readable functions, over batches of so many rows each."""
    ends = []
    tokens = random_tokens(batch=sum(batches)).split(batches)
    for functions in (READABLE, engine):
        model = random_model(dtype, engine=functions, **changes)
        before, optimizer = model.state_dict(), SGD({}, functions.rules.sgd)
        pairs = [(rows[:, :-1], rows[:, 1:]) for rows in tokens]
        results = [training_step(model, optimizer, pairs, 1e-2, 0.5) for _ in range(3)]
        ends.append((results, {name: p - before[name] for name, p in model.parameters.items()}))
    for a, b in zip(ends[1][0], ends[0][0], strict=True):
        assert a.status == "ok"
        assert a.loss == pytest.approx(b.loss, rel=BOUNDS[dtype])
        assert a.grad_norm_before_clip == pytest.approx(b.grad_norm_before_clip, rel=BOUNDS[dtype])
    # Three steps' errors add up, and a change is rounded with the parameter it is added to.
    assert_close(ends[1][1], ends[0][1], 10 * BOUNDS[dtype])


@ARCHITECTURES
@pytest.mark.parametrize("engine", [NATIVE, FUSED], ids=["native", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_backward_from_logits_is_the_same_by_every_engine(
    tie_embeddings: bool, dtype: torch.dtype, engine: Engine, changes: dict[str, Any]
) -> None:
    gradients, tokens = [], random_tokens()
    for functions in (READABLE, engine):
        model = random_model(dtype, tie_embeddings=tie_embeddings, engine=functions, **changes)
        _, saved = ops.cross_entropy_forward(model.forward(tokens), tokens)
        model.backward(ops.cross_entropy_backward(1.0, saved))
        gradients.append(model.gradients)
    assert_close(gradients[1], gradients[0], BOUNDS[dtype])


def test_parameters_loaded_from_a_transposed_tensor_train_all_the_same() -> None:
    state = random_model(torch.float32).state_dict()
    state["blocks.0.up.weight"] = state["blocks.0.up.weight"].T.contiguous().T
    model = random_model(torch.float32, engine=NATIVE)
    model.load_state_dict(state)
    tokens = random_tokens()
    assert training_step(model, SGD({}, NATIVE.rules.sgd), [(tokens, tokens)], 0.1, 1.0).status == "ok"


@ARCHITECTURES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_native_runs_give_identical_bits(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    ends = []
    for _ in range(2):
        model = CustomTransformer({**SIZES, **changes, "dropout": 0.1}, dtype=dtype, engine=NATIVE)
        model.training = True
        optimizer, tokens = AdamW(model.parameters, (0.9, 0.999), {}, rule=NATIVE.rules.adamw), random_tokens()
        losses = [training_step(model, optimizer, [(tokens, tokens)], 1e-2, 1.0).loss for _ in range(5)]
        ends.append((losses, model.parameters))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(p, ends[1][1][name]) for name, p in ends[0][1].items())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("batch", [1, 3, 7, 17])
@pytest.mark.parametrize(
    "config",
    [
        config_of(15, 22, 3, bias=True),
        config_of(15, 22, 3, bias=False),
        *(config_of(24, 23, 4, architecture="llama", n_kv_heads=n) for n in (1, 2, 4)),
        config_of(24, 23, 4, architecture="modern", n_kv_heads=2),
    ],
    ids=["biases", "none", "llama 1", "llama 2", "llama 4", "modern"],
)
def test_native_decoding_equals_the_readable_one(
    config: CustomTransformerConfig, batch: int, dtype: torch.dtype
) -> None:
    architecture, capacity, length = architecture_of(config), 40, 30
    generator = torch.Generator().manual_seed(0)
    parameters = random_parameters(config, dtype, generator)
    at = Scope(InProducts(parameters, architecture.parameters(config), dtype)) / "blocks.0"
    x = torch.randn(batch, 1, config.d_model, generator=generator, dtype=wide(dtype))
    past = torch.randn(2, batch, config.kv_heads, capacity, config.head_size, generator=generator).to(dtype)
    head = torch.randn(37, config.d_model, generator=generator).to(dtype)
    results = []
    for engine in (READABLE, NATIVE):
        cache = KeyValues(capacity)
        cache.length, (cache.keys, cache.values) = length, past.clone().unbind()
        y = engine.stack(architecture).cached_block(x, at, config, cache)
        assert cache.length == length + 1
        logits = engine.head.last_logits(y, head)
        results.append({"y": y, "keys": cache.keys, "values": cache.values, "logits": logits})
    assert_close(results[1], results[0], BOUNDS[dtype])


@ARCHITECTURES
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_native_generation_draws_the_readable_ones_tokens(tie_embeddings: bool, changes: dict[str, Any]) -> None:
    texts = [
        generate(
            # float64: no near-tie is decided by rounding
            random_model(tie_embeddings=tie_embeddings, engine=engine, **changes),
            random_tokens(time=4),
            20,  # beyond max_seq_len, where the window slides
            generator=torch.Generator().manual_seed(5),
        )
        for engine in (READABLE, NATIVE)
    ]
    assert torch.equal(texts[0], texts[1])


def test_float32_products_stay_float32_and_the_setting_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    a, b = torch.randn(64, 64), torch.randn(64, 64)

    right = a.double() @ b.double()
    with fast_products():
        product = a @ b
    assert (product - right).norm() / right.norm() < 1e-6
    assert torch.get_float32_matmul_precision() == before
